"""Effects of the genes of each program in each profile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle
from matplotlib.transforms import ScaledTranslation
from scipy import sparse

from cfm._arguments import check_layer
from cfm._sparse_indices import check_sparse
from cfm.pl._figure import figure_of, new_figure
from cfm.pl._labels import shorten
from cfm.pl._palette import ARROWS, DOWN, SIGNIFICANT, UP, ZERO

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

EFFECTS = LinearSegmentedColormap.from_list("effects", [DOWN, ZERO, UP])
#: Inches: a row, a named column, a column among many, a character of small text.
_ROW, _NAMED, _NARROW, _CHAR = 0.16, 0.22, 0.09, 0.065
_NAMED_UP_TO = 40
#: Rows between two programs, and effects below this share of the scale that carry no sign.
_GAP, _FAINT = 0.6, 0.1
#: Narrower cells (points) carry a sign only where the effect is negative.
_TINY = 7.0
#: Neighbouring programs differ; neither looks like a direction.
_STRIP = ("#3C3C3C", "#A0A0A0")
_NOT_GIVEN = "not given"


def draw_heatmap(
    adata: AnnData,
    programs: pd.DataFrame,
    genes: pd.DataFrame,
    *,
    sets: Mapping[str, str],
    title: str,
    layer: str | None,
    groupby: str | None,
    label: str | None,
    ax: Axes | None,
) -> Axes:
    """Draw the heat map of :func:`cfm.pl.gene_programs`.

    ``genes`` are in their final order; ``sets`` names a gene set for some of the programs.
    """
    for name in (groupby, label):
        if name is not None and name not in adata.obs:
            raise KeyError(
                f"obs has no column {name!r}; expected one of {', '.join(map(str, adata.obs))}."
            )
    if adata.n_obs == 0:
        raise ValueError("adata has no profiles; expected at least one column to draw.")
    order, groups = _column_order(adata, groupby)
    table = _effects(adata, list(genes["gene"]), layer)[order].T  # (genes, profiles)
    names = adata.obs_names if label is None else adata.obs[label].astype(str)
    columns = [shorten(str(names[i]), 40) for i in order]
    named = len(columns) <= _NAMED_UP_TO
    rows = _row_places(genes["program"].tolist())
    notes = [_note(str(name), row, sets) for name, row in programs.iterrows()]
    if ax is None:
        ax = _own_axes(genes, columns, named, rows, notes, bool(groups))
    _draw_cells(ax, table, rows)
    _name_rows(ax, genes, rows)
    _strip(ax, genes["program"].tolist(), rows, notes)
    foot = 0.1
    if named:
        ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90, fontsize=7.5)
        foot += _CHAR * max(map(len, columns))
    else:
        ax.set_xticks([])
        ax.set_xlabel(f"{len(columns)} profiles", fontsize=8)
        foot += 0.2
    ax.tick_params(length=0, pad=3)
    ax.spines[:].set_visible(False)
    _divide(ax, groups, rows[-1] + 1)
    ax.set_title(title, fontsize=9, pad=18 if groups else 6)
    _scale(ax, table, foot)
    return ax


def _column_order(adata: AnnData, groupby: str | None) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """Return the order of the profiles, and the name and size of each group along it."""
    if groupby is None:
        return np.arange(adata.n_obs), []
    values = adata.obs[groupby].astype("string").fillna(_NOT_GIVEN).to_numpy(dtype=object)
    order = np.argsort(values.astype(str), kind="stable")
    found, counts = np.unique(values.astype(str), return_counts=True)
    return order, list(zip(map(str, found), map(int, counts), strict=True))


def _effects(adata: AnnData, genes: list[str], layer: str | None) -> np.ndarray:
    check_layer(adata, layer)
    missing = [gene for gene in genes if gene not in adata.var_names]
    if missing:
        raise KeyError(
            f"{len(missing)} of {len(genes)} genes of the programs are not in var_names "
            f"({', '.join(missing[:3])}, …); draw with the AnnData that cfm.tl.gene_programs "
            "was run on."
        )
    check_sparse(
        adata.X if layer is None else adata.layers[layer], "the matrix"
    )  # before it is cut
    part = adata[:, genes]
    values = part.X if layer is None else part.layers[layer]
    values = values.toarray() if sparse.issparse(values) else values
    return np.asarray(values, dtype=np.float64)


def _row_places(programs: list[str]) -> np.ndarray:
    """Top edge of each row, with a gap wherever a new program begins."""
    starts = np.array([i > 0 and programs[i] != programs[i - 1] for i in range(len(programs))])
    return np.arange(len(programs)) + _GAP * np.cumsum(starts)


def _note(name: str, row: pd.Series, sets: Mapping[str, str]) -> list[str]:
    fdr = float(row["fdr"])
    star = " *" if fdr <= SIGNIFICANT else ""
    chance = "no FDR" if np.isnan(fdr) else "FDR < 0.001" if fdr < 0.001 else f"FDR {fdr:.2g}"
    lines = [
        f"{ARROWS.get(str(row['direction']), '')} {shorten(name, 28)}",
        f"{int(row['size'])} genes, coherence {float(row['coherence']):.2f}, {chance}{star}",
    ]
    return [*lines, shorten(sets[name], 44)] if name in sets else lines


def _own_axes(
    genes: pd.DataFrame,
    columns: list[str],
    named: bool,
    rows: np.ndarray,
    notes: list[list[str]],
    grouped: bool,
) -> Axes:
    width = max(1.8, len(columns) * (_NAMED if named else _NARROW))
    width += _CHAR * (min(24, max(map(len, genes["gene"]))) + 2)
    width += 0.3 + _CHAR * 0.95 * max(len(text) for note in notes for text in note)
    height = max(0.6, _ROW * (rows[-1] + 1)) + 1.0 + (0.2 if grouped else 0)
    if named:
        height += _CHAR * max(map(len, columns))
    return new_figure(min(width, 16), height).add_subplot()


def _draw_cells(ax: Axes, table: np.ndarray, rows: np.ndarray) -> None:
    top = _top(table)
    norm = Normalize(-top, top)
    n = table.shape[1]
    edges = np.arange(n + 1)
    for y, values in zip(rows, np.ma.masked_invalid(table), strict=True):
        # ruled cells only where the rules do not hide the colours
        ax.pcolormesh(
            edges,
            [y, y + 1],
            values[None],
            cmap=EFFECTS,
            norm=norm,
            edgecolors="white" if n <= _NAMED_UP_TO else "none",
            linewidth=0.5,
            rasterized=n > _NAMED_UP_TO,
        )
    ax.set_xlim(0, n)
    ax.set_ylim(rows[-1] + 1, 0)
    figure = figure_of(ax)
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()  # sizes are only final once the layout was made
    box = ax.get_window_extent()
    cell = min(box.width / n, box.height / (rows[-1] + 1)) / figure.dpi * 72  # points
    signs = np.where(np.abs(table) >= _FAINT * top, np.sign(table), 0)
    for sign, marker in ((1, "+"), (-1, "_")) if cell >= _TINY else ((-1, "_"),):
        y, x = np.nonzero(signs == sign)
        strong = np.abs(table[y, x]) > 0.45 * top
        for part, color in ((strong, "white"), (~strong, "#333333")):
            ax.scatter(
                x[part] + 0.5,
                rows[y[part]] + 0.5,
                s=min(8.0, 0.5 * cell) ** 2,
                marker=marker,
                color=color,
                linewidth=min(1.0, 0.12 * cell),
                rasterized=n > _NAMED_UP_TO,
            )
    for y, x in np.argwhere(np.isnan(table)):
        ax.add_patch(
            Rectangle((x, rows[y]), 1, 1, facecolor="white", edgecolor="#BBBBBB", hatch="xxx", lw=0)
        )


def _top(table: np.ndarray) -> float:
    """End of a symmetric scale that a few extreme cells do not stretch."""
    known = np.abs(table[np.isfinite(table)])
    top = float(np.quantile(known, 0.98)) if known.size else 0.0
    return top or float(known.max(initial=0.0)) or 1.0


def _name_rows(ax: Axes, genes: pd.DataFrame, rows: np.ndarray) -> None:
    names = [
        f"{shorten(gene, 24)} {ARROWS['up' if sign > 0 else 'down']}"
        for gene, sign in zip(genes["gene"], genes["sign"], strict=True)
    ]
    ax.set_yticks(rows + 0.5, names, fontsize=7.5)
    for text, sign in zip(ax.get_yticklabels(), genes["sign"], strict=True):
        text.set_color(UP if sign > 0 else DOWN)


def _strip(ax: Axes, programs: list[str], rows: np.ndarray, notes: list[list[str]]) -> None:
    """Mark where each program stands, and say what it is worth, to the right of the cells."""
    beside = ax.get_yaxis_transform()
    right = beside + ScaledTranslation(0.06, 0, figure_of(ax).dpi_scale_trans)
    for i, (name, note) in enumerate(zip(dict.fromkeys(programs), notes, strict=True)):
        own = rows[[program == name for program in programs]]
        ax.plot(
            [1, 1],
            [own[0] + 0.05, own[-1] + 0.95],
            color=_STRIP[i % 2],
            linewidth=5,
            solid_capstyle="butt",
            transform=right,
            clip_on=False,
        )
        lines = note if len(own) > 2 else note[:2] if len(own) == 2 else ["  ".join(note[:2])]
        for j, text in enumerate(lines):
            ax.annotate(
                text,
                (1, (own[0] + own[-1] + 1) / 2),
                xycoords=beside,
                xytext=(11, 11 * ((len(lines) - 1) / 2 - j)),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                fontweight="bold" if j == 0 and len(lines) > 1 else "normal",
                annotation_clip=False,
            )


def _divide(ax: Axes, groups: list[tuple[str, int]], bottom: float) -> None:
    """Name the groups of profiles above the cells, and draw a line between them."""
    start = 0
    n = sum(count for _, count in groups)
    box = ax.get_window_extent()
    for name, count in groups:
        if start:
            ax.plot([start, start], [0, bottom], color="black", linewidth=1)
        inches = box.width / figure_of(ax).dpi * count / n
        text = shorten(name, int(inches / _CHAR)) if inches > 3 * _CHAR else "…"
        ax.annotate(
            text,
            (start + count / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
        )
        start += count


def _scale(ax: Axes, table: np.ndarray, drop: float) -> None:
    """Colour scale below the cells, sized in inches whatever the figure's size."""
    figure = figure_of(ax)
    corner = figure.dpi_scale_trans + ScaledTranslation(0, 0, ax.transAxes)  # type: ignore[arg-type]
    scale = ax.inset_axes((0, -0.2 - drop, 1.5, 0.11), transform=corner)
    top = _top(table)
    scale.imshow(
        np.linspace(-1, 1, 65)[None], cmap=EFFECTS, aspect="auto", extent=(-top, top, 0, 1)
    )
    scale.set_xticks([-top, 0, top], [f"−{top:.2g}", "0", f"+{top:.2g}"])
    scale.set_yticks([])
    scale.tick_params(labelsize=7, length=2)
    scale.set_xlabel("effect (log2 fold change)", fontsize=7.5, labelpad=1)
    words = f"▲ up  ▼ down  ◆ mixed   * FDR ≤ {SIGNIFICANT:g}"
    if np.isnan(table).any():
        words += "\nhatched: not measured"
    ax.annotate(
        words,
        (1.75, -0.15 - drop),
        xycoords=corner,
        fontsize=7.5,
        va="center",
        annotation_clip=False,
    )
