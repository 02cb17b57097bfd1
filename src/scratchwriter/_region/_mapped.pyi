import sys
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

MAX_NBYTES: Final[int]
__pyx_capi__: Final[dict[str, object]]  # for the other compiled modules

@final
class MappedRegion:
    """A region whose addresses are reserved once and that grows in place.

    See `scratchwriter._region.Region` for its methods.

    Parameters
    ----------
    reserve_nbytes : int
        Addresses to reserve, rounded up to pages; the region cannot outgrow them.
    path : pathlib.Path, optional
        File to make and map. None: anonymous memory.
    huge_pages : bool
        Ask for huge pages of memory.
    """

    def __new__(
        cls, reserve_nbytes: int, path: Path | None = None, *, huge_pages: bool = False
    ) -> MappedRegion: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def path(self) -> Path | None: ...
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def extend(self, nbytes: int) -> None: ...
    def allocate(self, start: int, stop: int) -> None: ...
    def continue_in_file(self, path: Path, start: int) -> None: ...
    def save(self) -> None: ...
    @property
    def is_saved(self) -> bool: ...
    def trim(self, nbytes: int) -> None: ...
    def array(
        self, dtype: np.dtype[np.generic], shape: tuple[int, ...]
    ) -> npt.NDArray[Any]: ...

def map_file(path: Path) -> memoryview:
    """See `view_file`; keeps no file open."""
