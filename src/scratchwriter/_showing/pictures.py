"""Pictures of frames: thumbnails and contact sheets. Needs Pillow (the extra `demo`)."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from scratchwriter.views import StreamView

Frame = npt.NDArray[Any]

THUMBNAIL = 128  # pixels, the longer side
_COLUMNS = 8  # frames of each channel and position
_MOST_ROWS = 64
_LABEL = 14  # pixels, the height of a line of text
_CHANNELS = ("c", "channel", "channels")
# How many of all pixels that are shown may be clipped at each end of the contrast.
_CLIPPED_PERCENT = 0.1


def thumbnail(frame: Frame, low: float, high: float) -> Image.Image:
    """Return a small grey picture of a frame; `low` is black, `high` is white."""
    step = max(max(frame.shape) // (2 * THUMBNAIL), 1)  # pixels in between are not read
    grey = (_values(frame[::step, ::step]) - low) * (255 / max(high - low, 1e-9))
    picture = Image.fromarray(np.nan_to_num(grey).clip(0, 255).round().astype(np.uint8))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture


def contrast(frames: Sequence[Frame]) -> tuple[float, float]:
    """Return the values that are black and white in pictures of these frames."""
    values = np.concatenate([_values(frame[::4, ::4]).ravel() for frame in frames])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [_CLIPPED_PERCENT, 100 - _CLIPPED_PERCENT])
    return float(low), float(high)


def _values(frame: Frame) -> npt.NDArray[np.float64]:
    return np.asarray(np.abs(frame) if frame.dtype.kind == "c" else frame, np.float64)


def contact_sheet(view: StreamView) -> Image.Image:
    """Return a picture with frames evenly spaced over an acquisition.

    It has a row for each position and channel (the first 64); all frames of a channel have
    the same contrast.

    Raises
    ------
    ValueError
        If no frame has come yet.
    """
    if view.newest is None:
        raise ValueError("No frame has come yet: nothing can be drawn.")
    rows = list(islice(_rows(view), _MOST_ROWS))
    by_channel: dict[int, list[Frame]] = {}
    for channel, _, frames in rows:
        by_channel.setdefault(channel, []).extend(frames)
    levels = {channel: contrast(frames) for channel, frames in by_channel.items()}
    pictures = [
        [thumbnail(frame, *levels[channel]) for frame in frames]
        for channel, _, frames in rows
    ]
    width = max(p.width for row in pictures for p in row)
    height = max(p.height for row in pictures for p in row) + _LABEL
    columns = max(map(len, pictures))
    sheet = Image.new("L", (columns * width, len(rows) * height))
    draw = ImageDraw.Draw(sheet)
    for y, (row, (_, label, _)) in enumerate(zip(pictures, rows, strict=True)):
        draw.text((2, y * height + 1), label, fill=255)
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * width, y * height + _LABEL))
    return sheet


def save_new(picture: Image.Image, path: Path) -> None:
    """Save a picture as a new file, in the format of its name's suffix.

    Raises
    ------
    ValueError
        If no such format exists.
    FileExistsError
        If the file exists.
    """
    formats = Image.registered_extensions()
    if path.suffix.lower() not in formats:
        raise ValueError(f"{path.name}: its name must end in .png, .jpg, ...")
    file = io.BytesIO()
    picture.save(file, formats[path.suffix.lower()])
    with path.open("xb") as new:
        new.write(file.getvalue())


def data_uri(picture: Image.Image) -> str:
    """Return a picture as a data URI for a page."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _rows(view: StreamView) -> Iterator[tuple[int, str, list[Frame]]]:
    """Yield per row its channel, its label, and frames spread over all other axes."""
    shape, dims = dict(zip(view.dims, view.shape, strict=True)), view.dims[:-2]
    coords = view.coords  # after the shape: the view may have grown, so these have more
    apart = [dim for dim in dims if dim.lower() in _CHANNELS or dim == view.position_dim]
    others = [dim for dim in dims if dim not in apart]
    num_others = int(np.prod([shape[dim] for dim in others], dtype=int))
    chosen = np.unique(np.linspace(0, num_others - 1, _COLUMNS).round().astype(int))
    for place in product(*(range(shape[dim]) for dim in apart)):
        named = dict(zip(apart, place, strict=True))
        label = "  ".join(f"{dim} {coords[dim][i]}" for dim, i in named.items())
        channel = next((i for d, i in named.items() if d.lower() in _CHANNELS), 0)
        frames = []
        for n in chosen:
            rest = np.unravel_index(n, [shape[dim] for dim in others]) if others else ()
            index = named | dict(zip(others, map(int, rest), strict=True))
            frames.append(np.asarray(view[tuple(index[dim] for dim in dims)]))
        yield channel, label, frames
