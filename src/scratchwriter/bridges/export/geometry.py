"""Where an image lies: what ome-writers leaves out of an OME-Zarr and an OME-TIFF.

OME-Zarr (0.5) has the place of each image as a translation behind its scale
(https://ngff.openmicroscopy.org/0.5/#trafo-md). OME-XML (2016-06) has a StageLabel for an
image and a position for each plane, and no negative or uneven steps: such heights are
positions of the planes of the first time and channel.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from scratchwriter.bridges.export.job import Job
from scratchwriter.dimensions import Dimension, Position
from scratchwriter.settings import AcquisitionSettings

_AXES = ("x", "y", "z")


def place_images(store: Path, job: Job, settings: AcquisitionSettings) -> None:
    """Write names and places of positions into the groups of an OME-Zarr."""
    has_names = settings.position_dimension_index is not None
    for group, position in zip(job.groups, settings.positions, strict=True):
        path = store / group / "zarr.json"
        document = json.loads(path.read_text())
        (image,) = document["attributes"]["ome"]["multiscales"]
        if has_names:
            image["name"] = position.name
        origin = _origin(settings, position)
        translation = [origin.get(axis["name"], 0.0) for axis in image["axes"]]
        if any(translation):
            for level in image["datasets"]:
                scale = level["coordinateTransformations"][0]
                level["coordinateTransformations"] = [
                    scale,
                    {"type": "translation", "translation": translation},
                ]
        if has_names or any(translation):
            path.write_text(json.dumps(document))


def place_planes(model: Any, settings: AcquisitionSettings) -> None:
    """Write places of positions, heights and the interval into a model of OME-XML."""
    from ome_types.model import StageLabel, UnitsLength, UnitsTime

    dims = {dim.name.lower(): dim for dim in settings.array_dimensions}
    time, height = dims.get("t"), dims.get("z")
    has_places = settings.position_dimension_index is not None
    for image, position in zip(model.images, settings.positions, strict=True):
        if time is not None and _finite(time.scale) and time.unit:
            image.pixels.time_increment = time.scale
            image.pixels.time_increment_unit = _unit(UnitsTime, time)
        units = {
            f"{axis}_unit": _unit(UnitsLength, dims[axis]) for axis in _AXES if axis in dims
        }
        found = {axis: _finite(getattr(position, f"{axis}_coord")) for axis in _AXES}
        stage = {axis: value for axis, value in found.items() if value is not None}
        if has_places and stage:
            image.stage_label = StageLabel(
                name=position.name,
                **stage,
                **{k: v for k, v in units.items() if k[0] in stage and v is not None},
            )
        heights = [None] if height is None else _places(height, _finite(position.z_coord))
        for number, z in enumerate(heights):
            at = {**stage, **({} if z is None else {"z": z})}
            if at:
                _place_plane(image.pixels, number, at, units)


def _place_plane(pixels: Any, number: int, at: dict[str, float], units: Any) -> None:
    from ome_types.model import Plane

    planes = (p for p in pixels.planes if (p.the_t, p.the_c, p.the_z) == (0, 0, number))
    plane = next(planes, None)
    if plane is None:
        plane = Plane(the_t=0, the_c=0, the_z=number)
        pixels.planes.append(plane)
    for axis, value in at.items():
        if getattr(plane, f"position_{axis}") is None:  # else it was measured
            setattr(plane, f"position_{axis}", value)
            if (unit := units.get(f"{axis}_unit")) is not None:
                setattr(plane, f"position_{axis}_unit", unit)


def _origin(settings: AcquisitionSettings, position: Position) -> dict[str, float]:
    """Return where the first element of each axis is, of those that have a place."""
    origin = {}
    for dim in settings.array_dimensions:
        is_axis = dim.type == "space" and dim.name.lower() in _AXES
        stage = getattr(position, f"{dim.name.lower()}_coord") if is_axis else None
        first = _finite(dim.translation) or 0.0
        places = _numbers(dim) or [first]
        origin[dim.name] = (_finite(stage) or 0.0) + (places[0] if is_axis else first)
    return origin


def _places(dim: Dimension, origin: float | None) -> list[float | None]:
    """Return the place of each element; None if it is not known."""
    if (numbers := _numbers(dim)) is not None:
        return [number + (origin or 0.0) for number in numbers]
    if not _finite(dim.scale) or dim.count is None:
        return [origin]
    first = (origin or 0.0) + (_finite(dim.translation) or 0.0)
    return [first + i * (dim.scale or 0.0) for i in range(dim.count)]


def _numbers(dim: Dimension) -> list[float] | None:
    """Return the coords of a dimension, if they are numbers."""
    coords = dim.coords or ()
    numbers = [c for c in coords if isinstance(c, int | float) and math.isfinite(c)]
    return numbers if numbers and len(numbers) == len(coords) else None


def _finite(number: float | None) -> float | None:
    """Return a number that JSON and OME-XML have, or None."""
    return number if number is not None and math.isfinite(number) else None


def _unit(kind: Any, dim: Dimension) -> Any:
    """Return a unit of OME-XML for one of OME-NGFF, or None."""
    name = (dim.unit or "").upper()
    return getattr(kind, name, None)
