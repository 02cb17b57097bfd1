"""What is logged beside the frames; for the other compiled modules."""

from typing import final

@final
class MetadataLog:
    """The lines of frame_metadata.jsonl."""

    def __new__(cls, keep: bool) -> MetadataLog: ...

@final
class SkipLog:
    """The ranges of skips.bin."""

    def __new__(cls) -> SkipLog: ...
