"""What can be read off a drawn figure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def boxes(texts: Iterable[Text]) -> list[tuple[str, Bbox]]:
    """Boxes in pixels of the texts that are shown, as they are drawn."""
    shown = [text for text in texts if text.get_visible() and text.get_text().strip()]
    if shown:
        shown[0].get_figure(root=True).draw_without_rendering()
    return [(text.get_text(), Text.get_window_extent(text)) for text in shown]


def overlapping(texts: Iterable[Text]) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other by more than a pixel."""
    return _overlapping(boxes(texts))


def _overlapping(found: list[tuple[str, Bbox]]) -> list[tuple[str, str]]:
    corners = np.array([box.padded(-1).extents for _, box in found]).reshape(-1, 4)
    low, high = corners[:, None, :2], corners[:, None, 2:]
    meet = ((low <= corners[:, 2:]) & (high >= corners[:, :2])).all(axis=2)
    return [(found[i][0], found[j][0]) for i, j in np.argwhere(np.triu(meet, 1))]


def outside(texts: Iterable[Text], frame: Bbox) -> list[str]:
    """Texts that leave a box."""
    return _outside(boxes(texts), frame)


def _outside(found: list[tuple[str, Bbox]], frame: Bbox) -> list[str]:
    return [
        name
        for name, box in found
        if box.x0 < frame.x0 - 1
        or box.y0 < frame.y0 - 1
        or box.x1 > frame.x1 + 1
        or box.y1 > frame.y1 + 1
    ]


def unreadable(figure: Figure) -> list[Any]:
    """Texts of a figure that leave it, and pairs that cover each other."""
    figure.draw_without_rendering()  # which sets the ticks
    legends = [text for legend in figure.legends for text in legend.get_texts()]
    found = boxes([*legends, *(text for ax in figure.axes for text in _texts(ax))])
    return [*_outside(found, figure.bbox), *_overlapping(found)]


def _texts(ax: Axes) -> Iterator[Text]:
    """All that is written, but for ticks that lie outside the limits."""
    yield from (*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label)
    for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        for tick in axis.get_major_ticks():
            if min(limits) <= tick.get_loc() <= max(limits):
                yield tick.label1
    if ax.get_legend():
        yield from ax.get_legend().get_texts()


def row_names(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def legend_texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]
