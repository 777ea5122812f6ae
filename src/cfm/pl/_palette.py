"""Colours that colour-blind readers tell apart, and the markers that go with them."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from cfm._fields import NOT_VIRAL, UNINFECTED, UNRESOLVED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Okabe and Ito (2008), without black (kept for text) and with yellow darkened to show on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C7A00")
MARKERS = ("o", "s", "^", "D", "v", "p", "<", "*", ">", "d", "h")
GREY = "#8A8A8A"
#: Direction of an effect, blue–red with grey at zero.
DOWN, ZERO, UP = "#2166AC", "#D9D9D9", "#B2182B"


class Style(NamedTuple):
    """How one category is drawn."""

    color: str
    marker: str


#: The same said by shape, in texts and as markers.
ARROWS = {"up": "▲", "down": "▼", "unchanged": "●", "mixed": "◆"}
DIRECTION_STYLES = {"up": Style(UP, "^"), "down": Style(DOWN, "v"), "unchanged": Style(GREY, "o")}
#: A false discovery rate up to this is marked.
SIGNIFICANT = 0.05

#: Answers that are not viruses look different from every virus.
_SPECIAL = {
    UNINFECTED: Style("#222222", "P"),
    NOT_VIRAL: Style("#555555", "H"),
    UNRESOLVED: Style(GREY, "X"),
}


def category_styles(names: Iterable[str]) -> dict[str, Style]:
    """Give each category its own pair of colour and marker.

    Neighbouring categories differ in both; a pair repeats only after 77 categories.
    """
    counter: Iterator[int] = count()
    styles = {}
    for name in names:
        if name in _SPECIAL:
            styles[name] = _SPECIAL[name]
            continue
        i = next(counter)
        styles[name] = Style(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)])
    return styles
