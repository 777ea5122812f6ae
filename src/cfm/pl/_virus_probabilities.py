"""Heat map of what :func:`cfm.tl.predict_virus` wrote for every contrast."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.transforms import ScaledTranslation

from cfm._arguments import checks_arguments
from cfm._fields import NOT_VIRAL, UNINFECTED, UNRESOLVED, VIRUS_KEY
from cfm.pl._checks import require_anndata
from cfm.pl._figure import figure_of, finish, new_figure
from cfm.pl._labels import shorten
from cfm.pl._stored import stored_prediction

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

    from cfm.pl._stored import StoredPrediction

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
    key
        Where they are stored (``key_added`` of that call).
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
    show
        Show the figure. ``False`` closes it; the returned Axes can still be saved.
    save
        File to write the figure to.

    Returns
    -------
    The Axes drawn on.

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
    require_anndata(adata)
    stored = stored_prediction(adata, key)
    for name in (label, truth):
        if name is not None and name not in adata.obs:
            raise KeyError(
                f"obs has no column {name!r}; expected one of {', '.join(map(str, adata.obs))}."
            )
    if adata.n_obs == 0:
        raise ValueError("adata has no contrasts; expected at least one row to draw.")
    names = adata.obs_names if label is None else adata.obs[label].astype(str)
    rows = [shorten(str(name)) for name in names]
    true = None if truth is None else adata.obs[truth].astype(str).tolist()
    kinds = [str(name) for name in stored.response_proba.columns]
    viruses = [str(name) for name in stored.virus_proba.columns]
    order = [*kinds, *viruses]
    table = np.hstack([stored.response_proba.to_numpy(float), stored.virus_proba.to_numpy(float)])
    left = np.arange(len(order)) + np.where(np.arange(len(order)) < len(kinds), 0.0, _GAP)

    columns = _answers(stored, true)
    owned = ax is None
    if ax is None:
        ax = _own_axes(rows, order, columns)
    font = _font_size(ax, len(rows))
    called = np.hstack(
        [
            np.equal.outer(stored.response, np.array(kinds, dtype=object)).astype(bool),
            np.equal.outer(stored.call, np.array(viruses, dtype=object)).astype(bool),
        ]
    )
    grey = np.zeros(table.shape, dtype=bool)
    grey[:, len(kinds) :] = ~called[:, len(kinds) :].any(axis=1, keepdims=True)
    _draw_cells(ax, table, grey, left, cmap)
    if font >= _READABLE:
        _write_numbers(ax, table, grey, left, (table >= _PRINTED_FROM) | called, called, font)
    _name_axes(ax, rows, order, left, font)
    height = _label_height(ax)
    if font >= _READABLE:
        _name_blocks(ax, left[[0, len(kinds)]], height)
        _write_answers(ax, columns, font)
    _explain(ax, cmap, height, grey=bool(grey.any()))
    finish(figure_of(ax), owned=owned, show=show, save=save)
    return ax


def _answers(stored: StoredPrediction, true: list[str] | None) -> list[_Column]:
    """Collect the texts beside the cells."""
    calls = [f"{_MARKS.get(call, '●')} {call}" for call in stored.call]
    virus = [call not in _MARKS for call in stored.call]
    columns = [
        _Column("response", stored.response.tolist()),
        _Column("support", _shares(stored.response_support)),
        _Column("call", calls, virus),
        _Column("support", _shares(stored.call_support)),
    ]
    return columns if true is None else [_Column("known", true), *columns]


def _shares(values: np.ndarray) -> list[str]:
    return ["–" if np.isnan(value) else f"{value:.2f}" for value in values]


def _own_axes(rows: list[str], order: list[str], columns: list[_Column]) -> Axes:
    """Open a figure that is as large as its cells and texts need (inches)."""
    height = len(rows) * (0.27 if len(rows) <= _TALL else 0.2)
    side = sum(_CHAR * column.length + 0.14 for column in columns)
    width = 0.31 * (len(order) + _GAP) + _CHAR * max(map(len, rows)) + side
    header = _CHAR * max(map(len, order)) * (2 if len(rows) > _TALL else 1)
    return new_figure(width, height + header + 1.2).add_subplot()


def _font_size(ax: Axes, n_rows: int) -> float:
    figure = figure_of(ax)
    if ax.get_figure(root=True) is figure and figure.get_layout_engine() is not None:
        figure.draw_without_rendering()  # sizes are only final once the layout was made
    row_points = ax.get_window_extent().height / figure.dpi * 72 / n_rows
    return float(np.clip(row_points * 0.62, 1.0, 9.0))


def _draw_cells(ax: Axes, table: np.ndarray, grey: np.ndarray, left: np.ndarray, cmap: str) -> None:
    n_rows = table.shape[0]
    looks = ((cmap, Normalize(0, 1), ~grey), (_GREYS, Normalize(*_GREY_LIMITS), grey))
    for (j, x), (colors, norm, which) in product(enumerate(left), looks):
        rows = which[:, j]
        if rows.any():
            ax.pcolormesh(
                [x, x + 1],
                np.arange(n_rows + 1) - 0.5,
                np.ma.masked_array(table[:, [j]], mask=~rows[:, None]),
                cmap=colors,
                norm=norm,
                edgecolors="white",
                linewidth=0.6,
            )
    ax.set_xlim(left[0], left[-1] + 1)
    ax.set_ylim(n_rows - 0.5, -0.5)


def _write_numbers(
    ax: Axes,
    table: np.ndarray,
    grey: np.ndarray,
    left: np.ndarray,
    written: np.ndarray,
    bold: np.ndarray,
    font: float,
) -> None:
    for i, j in zip(*np.nonzero(written), strict=True):
        ax.text(
            left[j] + 0.5,
            i,
            f"{100 * table[i, j]:.0f}",
            ha="center",
            va="center",
            fontsize=min(font, 8),
            fontweight="bold" if bold[i, j] else "normal",
            color="white" if table[i, j] > 0.55 and not grey[i, j] else "black",
        )


def _name_axes(ax: Axes, rows: list[str], order: list[str], left: np.ndarray, font: float) -> None:
    ax.set_xticks(left + 0.5, [shorten(name, 30) for name in order], rotation=90, fontsize=8)
    ax.tick_params(
        length=0, labeltop=True, labelbottom=len(rows) > _TALL, labelleft=font >= _READABLE, pad=3
    )
    ax.set_yticks(range(len(rows)), rows, fontsize=max(font, _READABLE))
    ax.spines[:].set_visible(False)


def _label_height(ax: Axes) -> float:
    """Return the height of the longest column name, in inches."""
    figure = figure_of(ax)
    figure.draw_without_rendering()
    labels = [tick.label2 for tick in ax.xaxis.get_major_ticks()]
    return max(label.get_window_extent().height for label in labels) / figure.dpi


def _name_blocks(ax: Axes, starts: np.ndarray, height: float) -> None:
    """Write above the columns what they are."""
    for x, text in zip(
        starts, ("kind of\nresponse", "virus, given a\nviral response"), strict=True
    ):
        ax.annotate(
            text,
            (x, 1),
            xytext=(0, 72 * height + 9),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            color="#555555",
            annotation_clip=False,
        )


def _write_answers(ax: Axes, columns: list[_Column], font: float) -> None:
    offset = 8.0
    for column in columns:
        ax.annotate(
            column.title,
            (1, 1),
            xytext=(offset, 4),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=min(font, 8),
            color="#555555",
        )
        for i, text in enumerate(column.texts):
            bold = bool(column.bold) and column.bold[i]
            ax.annotate(
                text,
                (1, i),
                xytext=(offset, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                fontsize=font,
                fontweight="bold" if bold else "normal",
                annotation_clip=False,
            )
        offset += column.length * font * 0.62 + 10


def _explain(ax: Axes, cmap: str, height: float, *, grey: bool) -> None:
    """Legend and colour scale below the cells, sized in inches whatever the figure's size."""
    figure = figure_of(ax)
    # inches, counted from the lower left corner of the cells
    corner = figure.dpi_scale_trans + ScaledTranslation(0, 0, ax.transAxes)  # type: ignore[arg-type]
    drop = height + 0.1 if ax.xaxis.get_tick_params()["labelbottom"] else 0.0
    scale = ax.inset_axes((0, -0.3 - drop, 1.5, 0.11), transform=corner)
    scale.imshow(np.linspace(0, 1, 64)[None], cmap=cmap, aspect="auto", extent=(0, 100, 0, 1))
    scale.set_xticks([0, 50, 100])
    scale.set_yticks([])
    scale.tick_params(labelsize=7, length=2)
    scale.set_xlabel("probability (%)", fontsize=7.5, labelpad=1)
    texts = ["●  virus    ?  unresolved    ◇  not viral    ○  uninfected"]
    if grey:
        texts.append("grey: viruses where the call names none")
    ax.annotate(
        "\n".join(texts),
        (1.68, -0.17 - drop),
        xycoords=corner,
        fontsize=7.5,
        va="top",
        linespacing=1.6,
        annotation_clip=False,
    )
