"""Names of positions in an OME-Zarr, where each is a folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scratchwriter.dimensions import Position

_MOST_NAME_NBYTES = 200  # file systems take 255, and a number may be appended


def need_names(positions: Sequence[Position], *, on_plate: bool) -> None:
    """Check that no position would lie outside of the store, or in its own metadata.

    On a plate `unique_names` gives names where it must, so only the wells' are checked.

    Raises
    ------
    ValueError
        If one would, or if the name of a well is not of letters and digits.
    """
    for position in positions:
        is_long = len(position.name.encode(errors="replace")) > _MOST_NAME_NBYTES
        if not on_plate and (is_long or not _is_inside(position.name)):
            raise ValueError(
                f"In an OME-Zarr a position is a folder, and {position.name[:80]!r} cannot "
                "be its name: export to .ome.tiff, or each position as .npy"
            )
        well = position.plate_row, position.plate_column
        if on_plate and not all(map(_is_of_ngff, well)):
            raise ValueError(
                "In an OME-Zarr rows and columns of a plate are of letters and digits, and "
                f"{well} are not: export to .ome.tiff, or each position as .npy"
            )


def _is_of_ngff(name: str | None) -> bool:
    """Return whether a name is one for a plate (https://ngff.openmicroscopy.org/0.5/)."""
    return re.fullmatch("[A-Za-z0-9]+", name or "") is not None


def _is_inside(name: str) -> bool:
    """Return whether a name leads into a store, and not to the store's own metadata."""
    parts = re.split(r"[/\\]", name)
    leads_out = any(part in ("", ".", "..", "zarr.json") for part in parts)
    return not leads_out and parts[0] != "OME" and not Path(name).drive


def unique_names(positions: Sequence[Position], *, on_plate: bool) -> list[str]:
    """Return names of positions whose folders do not meet.

    In a well where some do, or have other than letters and digits, all are "fov0", "fov1",
    and so on. Elsewhere the second has its number appended, and no slash; none has a
    backslash.
    """
    folders, names = _Folders(), []
    if not on_plate:
        for number, position in enumerate(positions):
            name = position.name.replace("\\", "_")  # no folder has it everywhere
            while not folders.take(group_path(position, name, on_plate=False)):
                name = re.sub(r"[/\\]", "_", f"{name}_{number}")
            names.append(name)
        return names
    wells = [(position.plate_row, position.plate_column) for position in positions]
    meeting = {
        well
        for well, position in zip(wells, positions, strict=True)
        if not _is_of_ngff(position.name)
        or not folders.take(group_path(position, position.name, on_plate=True))
    }
    numbers: Counter[tuple[str | None, str | None]] = Counter()
    for well, position in zip(wells, positions, strict=True):
        names.append(f"fov{numbers[well]}" if well in meeting else position.name)
        numbers[well] += 1
    return names


def group_path(position: Position, name: str, *, on_plate: bool) -> str:
    """Return the group of a position under a name, as ome-writers chooses it."""
    if on_plate:
        return f"{position.plate_row}/{position.plate_column}/{name}"
    if position.grid_row is None:
        return name
    return f"{name}_{position.grid_row}_{position.grid_column}"


class _Folders:
    """Folders of which none may be, or lie in, another."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._above: set[str] = set()  # their parents

    def take(self, path: str) -> bool:
        """Take a path, if that is possible."""
        # Some file systems do not distinguish small letters from capitals.
        parts = path.replace("\\", "/").casefold().split("/")
        above = ["/".join(parts[:n]) for n in range(1, len(parts))]
        whole = "/".join(parts)
        if whole in self._taken or whole in self._above or self._taken & set(above):
            return False
        self._taken.add(whole)
        self._above.update(above)
        return True
