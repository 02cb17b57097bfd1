from typing import Any, Final, Literal

__pyx_capi__: Final[dict[str, object]]  # for the other compiled modules

def plain_text(metadata: dict[Any, Any], /) -> Literal["ascii", "unicode"] | None:
    """Return which text plain metadata have; None for others.

    Plain are those whose keys are text and whose values are text, numbers, bools or None,
    of exactly those types: what derives from them may not be what it looks like. Integers
    are plain that fit in 64 bits.
    """
