"""Text on plots: shortening long names, placing names beside points without overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from cfm.pl._figure import figure_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

#: Horizontal and vertical offset in points, and the alignment.
Place = tuple[float, float, Literal["left", "center", "right"], Literal["top", "center", "bottom"]]
#: Offsets in points that are tried in turn, with the alignment that keeps the text off the point.
_PLACES: tuple[Place, ...] = (
    (6, 0, "left", "center"),
    (-6, 0, "right", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
    (6, 8, "left", "bottom"),
    (-6, 8, "right", "bottom"),
    (6, -8, "left", "top"),
    (-6, -8, "right", "top"),
)


#: Share by which a text is wider in a saved picture than on screen, as letters are whole pixels.
_ROUNDING = 0.09


def shorten(name: str, limit: int = 60) -> str:
    """Cut a name to ``limit`` characters by leaving out its middle: both ends tell it apart."""
    if len(name) <= limit:
        return name
    head = (limit - 1) // 2
    return f"{name[:head]}…{name[len(name) - (limit - 1 - head) :]}"


def label_points(
    ax: Axes,
    points: np.ndarray,
    names: Sequence[str],
    *,
    fontsize: float = 7.5,
    radius: float = 4.5,
    avoid: Sequence[Bbox] = (),
    frame: Bbox | None = None,
    halo: str | None = None,
    places: Sequence[Place] = _PLACES,
) -> None:
    """Write each name beside its point, at the first place that touches nothing drawn so far.

    Parameters
    ----------
    ax
        Where to write; its limits must be final.
    points
        ``(n, 2)`` positions in data units.
    names
        ``n`` texts. A name that fits nowhere is left out rather than written over another one;
        an empty one is a point to keep clear of, without a name.
    fontsize, radius
        Of the text and of the largest marker, in points.
    avoid
        Boxes in pixels to keep clear of.
    frame
        Box in pixels to stay inside of; ``None`` takes the Axes.
    halo
        Colour around the letters where they cross lines.
    places
        Where to try, in turn, for points of radius 4.5.
    """
    pixels = ax.transData.transform(points)
    off = radius / 4.5
    radius *= figure_of(ax).dpi / 72
    frame = frame or ax.get_window_extent()
    effects = [withStroke(linewidth=2.5, foreground=halo)] if halo else None
    taken: list[Bbox] = list(avoid)
    for i, ((x, y), name) in enumerate(zip(points, names, strict=True)):
        if not name:
            continue
        others = np.delete(pixels, i, axis=0)
        text = ax.annotate(
            name,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=fontsize,
            in_layout=False,
            path_effects=effects,
        )
        for dx, dy, ha, va in places:
            text.set(position=(off * dx, off * dy), ha=ha, va=va)
            box = _widest(text.get_window_extent(), ha)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
            free = inside and not any(box.overlaps(other) for other in taken)
            if free and not _covers_a_point(box, others, radius):
                taken.append(box.padded(2) if halo else box)
                break
        else:
            text.remove()


def _widest(box: Bbox, ha: str) -> Bbox:
    """Return the box of a text at the resolution at which its letters are rounded up most."""
    more = _ROUNDING * box.width
    left = {"left": 0.0, "center": 0.5, "right": 1.0}[ha]
    return Bbox.from_extents(box.x0 - left * more, box.y0, box.x1 + (1 - left) * more, box.y1)


def room_for_tips(ax: Axes, values: np.ndarray, tips: Sequence[Annotation]) -> None:
    """Widen the horizontal limits so that the texts at the ends of the bars stay inside.

    Parameters
    ----------
    ax
        With all row names written: they decide how wide the Axes is.
    values
        Lengths of the bars, with sign.
    tips
        Texts that begin a few points beyond the ends, aligned away from the bar.
    """
    figure = figure_of(ax)
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()  # sizes are only final once the layout was made
    width = ax.get_window_extent().width
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    span = high - low or 1.0
    pad = 8 * figure.dpi / 72
    share = {"left": 0.0, "right": 0.0}  # of the width, by the side that the text stands on
    for tip in tips:
        side = "left" if tip.get_horizontalalignment() == "right" else "right"
        text = Text.get_window_extent(tip).width + pad
        share[side] = max(share[side], min(text / width, 0.4))
    whole = span / (1 - share["left"] - share["right"])
    ax.set_xlim(low - share["left"] * whole, high + share["right"] * whole)


def _covers_a_point(box: Bbox, pixels: np.ndarray, radius: float) -> bool:
    near_x = (pixels[:, 0] > box.x0 - radius) & (pixels[:, 0] < box.x1 + radius)
    near_y = (pixels[:, 1] > box.y0 - radius) & (pixels[:, 1] < box.y1 + radius)
    return bool((near_x & near_y).any())
