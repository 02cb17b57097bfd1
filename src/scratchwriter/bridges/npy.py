"""One position as a .npy file."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scratchwriter.errors import ExportCancelledError
from scratchwriter.reader import ScratchDataset


def save_npy(
    dataset: ScratchDataset,
    out: Path,
    position: int | None,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int | None], object] | None = None,
    cancel: Any = None,
) -> Path:
    """Save the array of a position as it is now; see `ScratchDataset.export`."""
    if os.path.lexists(out) and (out.is_dir() or not overwrite):
        raise FileExistsError(f"{out} exists: choose another name, or overwrite=True.")
    arrays = dataset.arrays
    if position is None and len(arrays) > 1:
        raise ValueError(
            f"A .npy file holds one of the {len(arrays)} positions: give "
            f"position=0 to {len(arrays) - 1}."
        )
    if position is not None and position not in range(len(arrays)):
        raise ValueError(
            f"position={position} does not exist: give position=0 to {len(arrays) - 1}."
        )
    array = np.asarray(arrays[position or 0])
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    with unfinished.open("xb") as file:
        try:
            np.lib.format.write_array_header_1_0(file, header)
            total = math.prod(array.shape[:-2])
            for done, index in enumerate(np.ndindex(array.shape[:-2]), 1):
                file.write(np.ascontiguousarray(array[index]).data)
                if progress is not None:
                    progress(done, total)
                if cancel is not None and cancel.is_set():
                    raise ExportCancelledError(f"{out.name}: cancelled, not written")
            if os.path.lexists(out) and not overwrite:
                raise FileExistsError(f"{out} was made by another program meanwhile.")
            file.close()
            unfinished.replace(out)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    return out
