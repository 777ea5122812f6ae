"""Text on plots: shortening long names, placing names beside points without overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

#: Offsets in points that are tried in turn, with the alignment that keeps the text off the point.
_PLACES = (
    (6, 0, "left", "center"),
    (-6, 0, "right", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
    (6, 8, "left", "bottom"),
    (-6, 8, "right", "bottom"),
    (6, -8, "left", "top"),
    (-6, -8, "right", "top"),
)


def shorten(name: str, limit: int = 60) -> str:
    """Cut a name to ``limit`` characters by leaving out its middle: both ends tell it apart."""
    if len(name) <= limit:
        return name
    head = (limit - 1) // 2
    return f"{name[:head]}…{name[len(name) - (limit - 1 - head) :]}"


def label_points(
    ax: Axes, points: np.ndarray, names: Sequence[str], *, fontsize: float = 7.5
) -> None:
    """Write each name beside its point, at the first place that touches nothing drawn so far.

    Parameters
    ----------
    ax
        Where to write; its limits must be final.
    points
        ``(n, 2)`` positions in data units.
    names
        ``n`` texts. A name that fits nowhere is left out rather than written over another one.
    fontsize
        In points.
    """
    pixels = ax.transData.transform(points)
    radius = ax.figure.dpi / 72 * 4.5
    frame = ax.get_window_extent()
    taken: list[Bbox] = []
    for i, ((x, y), name) in enumerate(zip(points, names, strict=True)):
        others = np.delete(pixels, i, axis=0)
        text = ax.annotate(
            name,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=fontsize,
            in_layout=False,
        )
        for dx, dy, ha, va in _PLACES:
            text.set(position=(dx, dy), ha=ha, va=va)
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
            free = inside and not any(box.overlaps(other) for other in taken)
            if free and not _covers_a_point(box, others, radius):
                taken.append(box)
                break
        else:
            text.remove()


def _covers_a_point(box: Bbox, pixels: np.ndarray, radius: float) -> bool:
    near_x = (pixels[:, 0] > box.x0 - radius) & (pixels[:, 0] < box.x1 + radius)
    near_y = (pixels[:, 1] > box.y0 - radius) & (pixels[:, 1] < box.y1 + radius)
    return bool((near_x & near_y).any())
