from typing import Any, Final

__pyx_capi__: Final[dict[str, object]]  # for the other compiled modules

def is_plain(metadata: dict[Any, Any], /) -> bool:
    """Tell whether all keys are text and all values text, numbers, bools or None.

    Integers are plain that fit in 64 bits.

    Exactly those types: what derives from them may not be what it looks like.
    """
