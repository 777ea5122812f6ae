"""What can be read off a drawn figure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from matplotlib.axes import Axes
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
    return [
        (a, b)
        for (a, first), (b, second) in itertools.combinations(boxes(texts), 2)
        if first.padded(-1).overlaps(second.padded(-1))
    ]


def outside(texts: Iterable[Text], frame: Bbox) -> list[str]:
    """Texts that leave a box."""
    return [
        name
        for name, box in boxes(texts)
        if box.x0 < frame.x0 - 1
        or box.y0 < frame.y0 - 1
        or box.x1 > frame.x1 + 1
        or box.y1 > frame.y1 + 1
    ]


def row_names(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def legend_texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]
