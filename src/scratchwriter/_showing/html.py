"""How streams and datasets show themselves in a notebook."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from importlib.util import find_spec

from scratchwriter.views import StreamView

_CELL = "padding: 1px 8px; text-align: left"


def card(title: str, facts: Mapping[str, object], view: StreamView) -> str:
    """Return a table of facts, beside a thumbnail of the newest frame.

    Without Pillow, or before the first frame, it has no thumbnail.
    """
    rows = "".join(
        f'<tr><th style="{_CELL}">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(str(fact))}</td></tr>'
        for name, fact in facts.items()
    )
    return (
        '<div style="display: flex; gap: 12px; align-items: flex-start">'
        f"{_picture(view)}<div><b>{escape(title)}</b><table>{rows}</table></div></div>"
    )


def shape_text(view: StreamView) -> str:
    """Return the sizes of a view by name, and its dtype."""
    sizes = ", ".join(f"{d}={n}" for d, n in zip(view.dims, view.shape, strict=True))
    return f"{sizes}; {view.dtype}"


def rate_text(frames_per_s: float) -> str:
    """Return a rate, if it is known."""
    return "" if math.isnan(frames_per_s) else f", {frames_per_s:,.0f} per second"


def _picture(view: StreamView) -> str:
    newest = view.newest
    if newest is None or find_spec("PIL") is None:
        return ""
    from scratchwriter._showing.pictures import contrast, data_uri, thumbnail

    frame = view[newest]
    picture = thumbnail(frame, *contrast([frame]))
    return f'<img alt="newest frame" src="{data_uri(picture)}">'
