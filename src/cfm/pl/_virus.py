"""What :func:`cfm.tl.predict_virus` stored, drawn as a heat map."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.colors import Normalize

from cfm import get
from cfm._arguments import checks_arguments
from cfm._fields import NOT_VIRAL, UNINFECTED, UNRESOLVED, VIRUS_KEY
from cfm.pl import _figure as fig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes


# --- Figure ----------------------------------------------------------------------------------

_MARKS = {UNINFECTED: "○", UNRESOLVED: "?", NOT_VIRAL: "◇"}
#: Free space between the kinds of response and the viruses, in cells.
_GAP = 0.35
#: Probabilities below this carry no number.
_PRINTED_FROM = 0.05
#: Width of a character of the row names and texts, in inches.
_CHAR = 0.075
#: Smaller text than this (points) is left out.
_READABLE = 4.0
#: With more rows than this the class names stand below as well.
_TALL = 25
#: Colours of viruses that are not named, and the probabilities at their ends: all stay pale.
_GREYS, _GREY_LIMITS = "Greys", (-0.2, 2.0)


class _Column(NamedTuple):
    """Texts beside the cells."""

    title: str
    texts: list[str]
    bold: Sequence[bool] = ()

    @property
    def length(self) -> float:
        """Length of the longest text, in letters; bold ones are wider."""
        wide = 1.13 if any(self.bold) else 1.0
        return max(len(self.title), wide * max(map(len, self.texts)))


@checks_arguments()
@fig.documented
def virus_probabilities(
    adata: AnnData,
    *,
    key: str = VIRUS_KEY,
    label: str | None = None,
    truth: str | None = None,
    cmap: str = "Blues",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the kinds of response and the viruses of every contrast, and the answer beside them.

    Rows are contrasts. The columns on the left are the kinds of response, those on the right the
    viruses, given a viral response. A cell holds the probability in per cent (from 5 % on), also
    shown by its shade; the number of an answer that is given is bold. Viruses are grey where the
    call names none. To the right stand the kind of response and the call (● virus, ? unresolved,
    ◇ not viral, ○ uninfected), each with its support: the share of such answers that were right in
    studies left out of training, – where there was none.

    Parameters
    ----------
    adata
        Contrasts with the fields written by :func:`cfm.tl.predict_virus`.
    %(key)s
    label
        Column of ``obs`` that names the rows; ``None`` uses ``obs_names``. Long names lose their
        middle.
    truth
        Column of ``obs`` with the known virus, written beside the call.
    cmap
        Sequential colour map whose darkness grows with the probability.
    ax
        Draw here instead of into a new figure. Text shrinks with the height of a row, and row
        names that could not be read are left out.
    %(show)s

    Returns
    -------
    %(axes)s

    Raises
    ------
    KeyError
        If :func:`cfm.tl.predict_virus` was not run, or ``label`` or ``truth`` is no column.
    ValueError
        If there is no contrast.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.predict_virus(contrasts)
    >>> ax = cfm.pl.virus_probabilities(contrasts, show=False)
    >>> len(ax.get_yticklabels()) == contrasts.n_obs
    True
    """
    fig.require_anndata(adata)
    calls = get.virus_calls(adata, key=key)
    kinds_proba = get.virus_probabilities(adata, key=key, level="response")
    virus_proba = get.virus_probabilities(adata, key=key)
    fig.require_columns(adata, label, truth)
    if adata.n_obs == 0:
        raise ValueError("adata has no contrasts; expected at least one row to draw.")
    rows = [fig.shorten(name) for name in (adata.obs_names if label is None else adata.obs[label])]
    kinds, viruses = (list(map(str, t)) for t in (kinds_proba, virus_proba))
    order = np.array([*kinds, *viruses], dtype=object)
    virus = np.arange(len(order)) >= len(kinds)
    left = np.arange(len(order)) + _GAP * virus
    table = np.hstack([kinds_proba.to_numpy(float), virus_proba.to_numpy(float)])
    answer = np.where(virus, calls[["call"]], calls[["response"]])
    called = (answer == order).astype(bool)
    grey = virus & ~called[:, virus].any(axis=1, keepdims=True)
    columns = _answers(calls)
    if truth is not None:
        columns.insert(0, _Column("known", adata.obs[truth].astype(str).tolist()))

    panel = ax or _new_axes(rows, list(order), columns)
    font = float(np.clip(0.62 * 72 * fig.width_and_height(panel)[1] / len(rows), 1.0, 9.0))
    _draw_cells(panel, table, grey, left, cmap)
    _name_axes(panel, rows, list(order), left, font)
    fig.settle(panel)
    tops = [tick.label2.get_window_extent().height for tick in panel.xaxis.get_major_ticks()]
    height = max(tops) / fig.figure_of(panel).dpi
    if font >= _READABLE:
        _write_numbers(panel, table, grey, left, called, font)
        titles = ("kind of\nresponse", "virus, given a\nviral response")
        for x, text in zip(left[[0, len(kinds)]], titles, strict=True):
            _beside(panel, text, (x, 1), (0, 72 * height + 9), 8, color="#555555")
        _write_answers(panel, columns, font)
    tall = len(rows) > _TALL
    _explain(panel, cmap, 0.3 + (height + 0.1 if tall else 0.0), grey=bool(grey.any()))
    return fig.finish(panel, ax, show=show, save=save)


def _answers(table: pd.DataFrame) -> list[_Column]:
    """Return the texts beside the cells."""
    calls = [f"{_MARKS.get(call, '●')} {call}" for call in table["call"]]
    support = table["support"].where(table["response"] != UNRESOLVED)
    return [
        _Column("response", table["response"].tolist()),
        _Column("support", _shares(support)),
        _Column("call", calls, [call not in _MARKS for call in table["call"]]),
        _Column("support", _shares(table["call_support"])),
    ]


def _shares(values: pd.Series) -> list[str]:
    return ["–" if np.isnan(value) else f"{value:.2f}" for value in values]


def _new_axes(rows: list[str], order: list[str], columns: list[_Column]) -> Axes:
    """Open a figure that is as large as its cells and texts need (inches)."""
    height = len(rows) * (0.27 if len(rows) <= _TALL else 0.2)
    side = sum(_CHAR * column.length + 0.14 for column in columns)
    width = 0.31 * (len(order) + _GAP) + _CHAR * max(map(len, rows)) + side
    header = _CHAR * max(map(len, order)) * (2 if len(rows) > _TALL else 1)
    return fig.new_figure(width, height + header + 1.2).add_subplot()


def _draw_cells(ax: Axes, table: np.ndarray, grey: np.ndarray, left: np.ndarray, cmap: str) -> None:
    edges = np.arange(len(table) + 1) - 0.5
    looks = ((cmap, Normalize(0, 1), ~grey), (_GREYS, Normalize(*_GREY_LIMITS), grey))
    for (j, x), (colors, norm, shown) in product(enumerate(left), looks):
        if shown[:, j].any():
            cells = np.ma.masked_array(table[:, [j]], mask=~shown[:, [j]])
            look = fig.Look(cmap=colors, norm=norm, edgecolors="white", linewidth=0.6)
            ax.pcolormesh([x, x + 1], edges, cells, **look)
    ax.set_xlim(left[0], left[-1] + 1)
    ax.set_ylim(len(table) - 0.5, -0.5)


def _write_numbers(
    ax: Axes,
    table: np.ndarray,
    grey: np.ndarray,
    left: np.ndarray,
    called: np.ndarray,
    font: float,
) -> None:
    for i, j in np.argwhere((table >= _PRINTED_FROM) | called):
        weight = "bold" if called[i, j] else "normal"
        color = "white" if table[i, j] > 0.55 and not grey[i, j] else "black"
        look = fig.Look(fontsize=min(font, 8), fontweight=weight, color=color)
        ax.text(left[j] + 0.5, i, f"{100 * table[i, j]:.0f}", ha="center", va="center", **look)


def _name_axes(ax: Axes, rows: list[str], order: list[str], left: np.ndarray, font: float) -> None:
    ax.set_xticks(left + 0.5, [fig.shorten(name, 30) for name in order], rotation=90, fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=max(font, _READABLE))
    shown = fig.Look(labelbottom=len(rows) > _TALL, labelleft=font >= _READABLE)
    ax.tick_params(length=0, labeltop=True, pad=3, **shown)
    ax.spines[:].set_visible(False)


def _beside(
    ax: Axes,
    text: str,
    place: tuple[float, float],
    offset: tuple[float, float],
    font: float,
    coords: tuple[str, str] = ("data", "axes fraction"),
    **look: Any,
) -> None:
    """Write a text outside of the cells."""
    place_ = fig.Look(xycoords=coords, textcoords="offset points", annotation_clip=False)
    ax.annotate(text, place, xytext=offset, fontsize=font, **place_, **look)


def _write_answers(ax: Axes, columns: list[_Column], font: float) -> None:
    offset = 8.0
    for title, texts, bold in columns:
        top = ("axes fraction", "axes fraction")
        _beside(ax, title, (1, 1), (offset, 4), min(font, 8), top, color="#555555")
        for i, text in enumerate(texts):
            look = fig.Look(va="center", fontweight="bold" if bold and bold[i] else "normal")
            _beside(ax, text, (1, i), (offset, 0), font, ("axes fraction", "data"), **look)
        offset += _Column(title, texts, bold).length * font * 0.62 + 10


def _explain(ax: Axes, cmap: str, drop: float, *, grey: bool) -> None:
    """Draw the legend and the colour scale below the cells."""
    note = "●  virus    ?  unresolved    ◇  not viral    ○  uninfected"
    if grey:
        note += "\ngrey: viruses where the call names none"
    ticks = {0.0: "0", 50.0: "50", 100.0: "100"}
    fig.color_scale(ax, cmap, (0, 100), ticks=ticks, title="probability (%)", note=note, drop=drop)
