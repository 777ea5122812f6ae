"""Codes of cells: what they are made of, their genes, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.patches import Patch, Rectangle
from scipy import sparse

from cfm._adata import params_of
from cfm._arguments import checks_arguments
from cfm._fields import (
    CELL_CODE_KEY,
    CODE_AFTER,
    CODE_BEFORE,
    MARGIN,
    MARKERS,
    NEIGHBOURS,
    SIMILARITY,
    VECTORS,
)
from cfm.pl import _figure as fig
from cfm.pl._cell_code_map import draw_map
from cfm.pl._predictions import draw_shares

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

Kind = Literal["composition", "markers", "map"]
#: Codes that are drawn by default.
_MOST = {"composition": 30, "markers": 15, "map": 400}


@checks_arguments()
@fig.documented
def cell_codes(
    adata: AnnData,
    *,
    key: str = CELL_CODE_KEY,
    kind: Kind = "composition",
    groupby: str | None = None,
    codes: Sequence[str] | None = None,
    n_codes: int | None = None,
    n_genes: int = 3,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw what codes are made of, their marker genes, or a map of them.

    ``"composition"`` has a bar for each code, cut by the levels of an annotation, and beside it
    the number of its cells; codes of one majority stand together. ``"markers"`` has a dot for each
    code and gene: larger where more of the code's cells express the gene, darker where they
    express more of it; frames are around the genes that are markers of the code. ``"map"`` has a
    disc for each code, whose area grows with its cells, near those with like vectors
    (multidimensional scaling of the angles between them), moved apart where they would cover each
    other; a line goes to the nearest code, which two dimensions cannot always show.

    Levels have a letter and a colour, the letter telling them apart also where colours recur.
    Codes that are not drawn are those with fewest cells; the title gives their number.

    Parameters
    ----------
    adata
        Cells with the fields written by :func:`cfm.tl.cell_codes`.
    %(key)s
    kind
        Which of the three.
    groupby
        Column of ``obs`` with the annotation; by default the first that the tool was given. All
        but the 20 most frequent levels are taken together.
    codes
        Codes to draw, such as ``["7", "12"]``; ``None`` takes those with most cells.
    n_codes
        At most so many, where ``codes`` is ``None``; by default 30 (composition), 15 (markers) or
        400 (map).
    n_genes
        For ``"markers"``: so many of each code.
    %(ax)s

    Returns
    -------
    %(axes)s

    Raises
    ------
    KeyError
        If :func:`cfm.tl.cell_codes` was not run, or a column, code or gene is not there.
    ValueError
        If ``kind`` is unknown, a number is below 1, ``codes`` is empty, the annotation holds
        fractional numbers, no cell has a code, or none of the codes has markers.

    Examples
    --------
    >>> import cfm, scanpy as sc
    >>> cells = sc.datasets.pbmc68k_reduced().raw.to_adata()[::4].copy()
    >>> reading = {"units": "log1p_cp10k", "total_counts": "n_counts"}
    >>> cfm.tl.cell_codes(cells, groupby="bulk_labels", **reading)
    >>> ax = cfm.pl.cell_codes(cells, show=False)
    >>> ax.get_xlabel()
    "share of the code's cells, by bulk_labels"
    """
    fig.require_anndata(adata)
    levels = _read_levels(adata, key, groupby)
    tool = "cell_codes"
    candidates, where = list(levels.table.index), f"obs[{key!r}]"
    if kind == "markers":
        columns = ("code", "rank", "gene")
        markers = fig.stored_table(adata, key, MARKERS, columns, tool=tool, empty=True)
        candidates = [code for code in candidates if code in set(markers["code"])]
        where = f"uns[{key!r}][{MARKERS!r}]"
        if not candidates:
            raise ValueError(
                f"No code in {where} has markers: all have fewer cells than its min_cells; run "
                "cfm.tl.cell_codes again with a smaller one."
            )
    chosen = fig.pick("code", codes, candidates, where)
    if codes is None:
        size = levels.size[chosen].sort_values(ascending=False, kind="stable")
        chosen = levels.in_order(list(size.index[: n_codes or _MOST[kind]]))
    if kind == "composition":
        panel = _draw_composition(levels, chosen, ax)
    elif kind == "markers":
        own = markers[markers["code"].isin(chosen) & (markers["rank"] <= n_genes)]
        place = own["code"].map({code: i for i, code in enumerate(chosen)})
        own = own.assign(place=place).sort_values(["place", "rank"], kind="stable")
        panel = _draw_markers(adata, key, own, levels, chosen, ax)
    else:
        vectors = fig.stored_table(adata, key, VECTORS, tool=tool)
        columns = ("code", "neighbour", "cosine_rank")
        neighbours = fig.stored_table(adata, key, NEIGHBOURS, columns, tool=tool, empty=True)
        vectors = vectors.set_axis(vectors.index.astype(str)).loc[chosen]
        panel = draw_map(levels, chosen, vectors, neighbours, ax)
    panel.set_title(levels.head(chosen), fontsize=9)
    return fig.finish(panel, ax, show=show, save=save)


@checks_arguments()
@fig.documented
def code_transitions(
    adata: AnnData,
    *,
    key: str = CELL_CODE_KEY,
    groupby: str | None = None,
    n_codes: int = 15,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw a heat map of codes before and after a perturbation, as shares of each row.

    Without ``groupby`` each simulated cell has a code before (rows) and after (columns). Measured
    cells have no counterpart: with ``groupby`` rows are conditions, such as control and perturbed,
    and columns the codes of their cells. Numbers are shares and cells.

    Parameters
    ----------
    adata
        Cells simulated by :func:`cfm.tl.simulate_perturbation` with a :class:`cfm.models.CellVQ`;
        with ``groupby``, cells with the fields written by :func:`cfm.tl.cell_codes`.
    key
        Column of ``obs`` with the codes; not used without ``groupby``.
    groupby
        Column of ``obs`` with the conditions.
    n_codes
        The most frequent codes are drawn, the others as one.
    %(ax)s

    Returns
    -------
    %(axes)s

    Raises
    ------
    KeyError
        If a column is not there.
    ValueError
        If no cell has a code, or a number is below 1.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_perturbation(n_cells=600)
    >>> cfm.tl.cell_codes(cells)
    >>> ax = cfm.pl.code_transitions(cells, groupby="perturbation", show=False)
    >>> ax.get_xlabel()
    'code'
    """
    fig.require_anndata(adata)
    before, after = (CODE_BEFORE, CODE_AFTER) if groupby is None else (groupby, key)
    fig.require_columns(adata, before, after)
    found = adata.obs[[before, after]].astype("string").replace("", pd.NA).dropna()
    if found.empty:
        raise ValueError(f"No cell has both obs[{before!r}] and obs[{after!r}]; nothing to draw.")
    coded = found if groupby is None else found[[after]]
    kept = coded.melt()["value"].value_counts().sort_index().nlargest(n_codes).index
    found[coded.columns] = coded.where(coded.isin(kept), "other")
    table = pd.crosstab(found[before].astype(str), found[after].astype(str))
    order = [
        sorted(names, key=lambda name: (int(name) if name.isdigit() else 2**62, name))
        for names in (table.index, table.columns)
    ]
    panel = ax
    if panel is None:
        width, height = 2.0 + 0.4 * table.shape[1], 1.2 + 0.36 * table.shape[0]
        panel = fig.new_figure(width, height).add_subplot()
    draw_shares(panel, table.loc[order[0], order[1]])
    panel.set_xlabel("code" if groupby else "code after")
    panel.set_ylabel(f"{groupby} (cells)" if groupby else "code before (cells)")
    panel.set_title("share of the row, cells", fontsize=9)
    return fig.finish(panel, ax, show=show, save=save)


# --- Levels of an annotation -----------------------------------------------------------------

#: Levels that get a letter; the rest are one. Both ends of a long legend are still on one page.
_NAMED = 20
_OTHER, _NOT_GIVEN = "other levels", "not given"
_PLAIN = "#5B7A99"


@dataclass(frozen=True)
class Levels:
    """Cells by code and level.

    Attributes
    ----------
    table
        DataFrame int64, codes by levels, codes as the tool orders them and levels by their number
        of cells; a single column without a name if there is no annotation.
    letters, colors
        How a level is drawn, by its name.
    name
        The annotation; empty if there is none.
    """

    table: pd.DataFrame
    letters: dict[str, str]
    colors: dict[str, str]
    name: str

    @property
    def size(self) -> pd.Series:
        """Cells of each code."""
        return self.table.sum(axis=1)

    def majority(self) -> pd.Series:
        """Level of most cells of each code; one that is named, if any of its cells has one."""
        named = self.table.drop(columns=[_NOT_GIVEN], errors="ignore")
        if named.shape[1] == 0:
            return pd.Series(_NOT_GIVEN, index=self.table.index)
        return named.idxmax(axis=1).where(named.sum(axis=1) > 0, _NOT_GIVEN)

    def in_order(self, codes: list[str]) -> list[str]:
        """Put codes of one majority beside each other, the most frequent level and code first."""
        levels = {level: i for i, level in enumerate(self.table.columns)}
        places = {code: i for i, code in enumerate(self.table.index)}
        rank, size = self.majority().map(levels).fillna(len(levels)), self.size
        return sorted(codes, key=lambda code: (rank[code], -size[code], places[code]))

    def head(self, codes: list[str]) -> str:
        """Write how many codes and cells are shown, of how many."""
        total, of = int(self.size.sum()), fig.plural(len(self.size), "code")
        if len(codes) == len(self.size):
            return f"{of}, {fig.plural(total, 'cell')}"
        share = float(self.size[codes].sum()) / total
        return f"{len(codes)} of {of}, with {share:.0%} of {fig.plural(total, 'cell')}"

    def text_color(self, level: str) -> str:
        """Return what can be read on the colour of a level: black or white."""
        luma = np.dot([0.299, 0.587, 0.114], to_rgb(self.colors[level]))
        return "black" if luma > 0.55 else "white"

    def legend(self, ax: Axes, *, width: float, drop: float) -> None:
        """Write under the Axes what the letters are, ``width`` inches wide."""
        if not self.name:
            return
        counts = {str(level): n for level, n in self.table.sum().items()}
        texts = [f"{self.letters[k]}  {fig.shorten(k, 34)} ({n:,})" for k, n in counts.items()]
        handles = [
            Patch(facecolor=self.colors[level], edgecolor="white", label=text)
            for level, text in zip(counts, texts, strict=True)
        ]
        inches = 0.064 * max(map(len, texts)) + 0.5  # of an entry with its patch
        fig.legend_below(
            ax, handles, columns=int(np.clip(width // inches, 1, len(texts))), drop=drop
        )


def _read_levels(adata: AnnData, key: str, groupby: str | None) -> Levels:
    """Count the cells with a code in ``obs[key]`` by code and level of ``obs[groupby]``."""
    if key not in adata.obs or key + SIMILARITY not in adata.obs or key + MARGIN not in adata.obs:
        raise KeyError(
            f"obs[{key!r}] with its similarity and margin not found; run "
            f"cfm.tl.cell_codes(adata, key_added={key!r}) first, or pass the key it was stored "
            "under."
        )
    code = adata.obs[key].astype("string")
    known = code.notna().to_numpy()
    if not known.any():
        raise ValueError(f"obs[{key!r}] is missing in all {adata.n_obs} cells; nothing to draw.")
    fig.require_columns(adata, groupby)
    if groupby is None:
        stored = params_of(adata.uns, key).get("groupby", [])
        groupby = next((str(name) for name in stored if str(name) in adata.obs), None)
    codes = code[known].astype(str)
    order = sorted(set(codes), key=lambda code: (int(code) if code.isdigit() else 2**62, code))
    if groupby is None:
        table = codes.value_counts().reindex(order).astype(np.int64).to_frame("")
        return Levels(table, {"": ""}, {"": _PLAIN}, "")
    column = adata.obs[groupby]
    if column.dtype.kind == "f":
        raise ValueError(
            f"obs[{groupby!r}] holds fractional numbers; expected categories: cut it into "
            "intervals (pandas.cut)."
        )
    levels = column.astype("string").replace("", pd.NA)[known]
    counts = levels.value_counts(sort=False).sort_index()
    counts = counts[counts > 0].sort_values(ascending=False, kind="stable")
    kept = list(map(str, counts.index[: _NAMED if len(counts) <= _NAMED else _NAMED - 1]))
    shown = levels.where(levels.isin(kept) | levels.isna(), _OTHER).fillna(_NOT_GIVEN).astype(str)
    table = pd.crosstab(codes.to_numpy(), shown.to_numpy()).reindex(index=order)
    extra = [level for level in (_OTHER, _NOT_GIVEN) if level in table and level not in kept]
    table = table[[*kept, *extra]].astype(np.int64)
    table.columns = table.columns.astype(str)
    letters = dict(zip(kept, ascii_uppercase, strict=False)) | dict.fromkeys(extra, "–")
    if _OTHER in extra:
        letters[_OTHER] = "+"
    colors = {level: fig.COLORS[i % len(fig.COLORS)] for i, level in enumerate(kept)}
    return Levels(table, letters, colors | dict.fromkeys(extra, fig.GREY), groupby)


# --- Composition -----------------------------------------------------------------------------

#: Inches: a row, a character of small text, the bars of shares with those of numbers, these alone.
_ROW, _CHAR, _WIDTH, _ALONE = 0.21, 0.075, 6.2, 3.2


def _draw_composition(levels: Levels, chosen: list[str], ax: Axes | None) -> Axes:
    table = levels.table.loc[chosen]
    left_out = levels.table.drop(index=chosen)
    names = [fig.shorten(code, 30) for code in chosen]
    if len(left_out):
        rest = left_out.sum().to_frame().T.set_axis(["rest"], axis=0)
        table = pd.concat([table, rest])
        names.append(fig.plural(len(left_out), "other"))
    if ax is None:
        legend = 0.25 + 0.16 * len(levels.letters) if levels.name else 0.0
        width = (_WIDTH if levels.name else _ALONE) + _CHAR * max(map(len, names))
        ax = fig.new_figure(width, 1.0 + _ROW * len(table) + legend).add_subplot()
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_yticks(range(len(table)), names)
    fig.tidy(ax, "left")
    ax.set_ylabel("code", fontsize=10)
    ax.tick_params(axis="y", length=0)
    sizes = ax
    if levels.name:
        _stack(ax, levels, table)
        sizes = ax.inset_axes((1.03, 0, 0.22, 1), sharey=ax)
        sizes.tick_params(axis="y", length=0, labelleft=False)
        fig.tidy(sizes)
        levels.legend(ax, width=_WIDTH, drop=0.5)
    n_cells = table.sum(axis=1).to_numpy(dtype=np.int64)
    sizes.barh(range(len(n_cells)), n_cells, height=0.78, color=_PLAIN)
    sizes.set_xlim(0, 1.6 * max(1, int(n_cells.max())))
    sizes.set_xticks([])
    sizes.spines["bottom"].set_visible(False)
    sizes.set_xlabel("cells", fontsize=9)
    for y, n in enumerate(n_cells):
        fig.write_tip(sizes, f"{n:,}", n, y, fontsize=7.5)
    return ax


def _stack(ax: Axes, levels: Levels, table: pd.DataFrame) -> None:
    """Draw the shares of the levels in each code, with their letters where there is room."""
    share = table.div(table.sum(axis=1).clip(lower=1), axis=0)
    start = np.zeros(len(table))
    ax.set_xlim(0, 1)
    inches = fig.width_and_height(ax)[0]
    for level in table.columns:
        width = share[level].to_numpy(dtype=np.float64)
        look = fig.Look(color=levels.colors[level], edgecolor="white", linewidth=0.5)
        ax.barh(range(len(table)), width, left=start, height=0.78, **look)
        look = fig.Look(ha="center", va="center_baseline", color=levels.text_color(level))
        for y in np.flatnonzero(width * inches > 0.13):
            ax.text(start[y] + width[y] / 2, float(y), levels.letters[level], fontsize=7, **look)
        start = start + width
    ax.set_xlabel(f"share of the code's cells, by {levels.name}", fontsize=9)


# --- Markers ---------------------------------------------------------------------------------

_CMAP = LinearSegmentedColormap.from_list("expression", ["#EDF2F7", "#6FA3CF", "#08306B"])
#: Inches of a cell of the grid, and of the legend.
_CELL, _LEGEND = 0.23, 4.4
#: Area of a dot of all cells, in square points.
_AREA = 110.0
_TARGET_SUM = 1e4


def _draw_markers(
    adata: AnnData,
    key: str,
    markers: pd.DataFrame,
    levels: Levels,
    codes: list[str],
    ax: Axes | None,
) -> Axes:
    """Draw the markers, rows of the stored table in their final order."""
    genes = list(dict.fromkeys(markers["gene"]))
    mean, share = _expression(adata, key, codes, genes)
    majority = levels.majority() + "  " if levels.name else pd.Series("", index=codes)
    texts = [fig.shorten(f"{majority[code]}{code} ({levels.size[code]:,})", 44) for code in codes]
    labels = [fig.shorten(gene, 20) for gene in genes]
    if ax is None:
        width = max(_CELL * len(genes), _LEGEND) + _CHAR * max(map(len, texts)) + 0.6
        height = _CELL * len(codes) + _CHAR * max(map(len, labels)) + 1.5
        ax = fig.new_figure(width, height).add_subplot()
        ax.set_aspect("equal", anchor="NW")
    fig.bare(ax)
    ax.set_xlim(-0.6, len(genes) - 0.4)
    ax.set_ylim(len(codes) - 0.4, -0.6)
    ax.set_xticks(range(len(genes)), labels, rotation=90, fontsize=7.5)
    ax.set_yticks(range(len(codes)), texts, fontsize=8)
    ax.set_ylabel("code")
    ax.tick_params(length=0)
    ax.set_title(" ", fontsize=9)
    cell = min(np.array(fig.width_and_height(ax)) / [len(genes), len(codes)])
    area = _AREA * min(1.0, cell / _CELL) ** 2
    for code, gene in zip(markers["code"], markers["gene"], strict=True):
        corner = (genes.index(gene) - 0.47, codes.index(code) - 0.47)
        frame = fig.Look(facecolor="none", edgecolor="#444444", linewidth=0.8)
        ax.add_patch(Rectangle(corner, 0.94, 0.94, **frame))
    top = mean.max(axis=0)
    relative = mean / np.where(top > 0, top, 1.0)
    y, x = np.indices(mean.shape)
    look = fig.Look(cmap=_CMAP, vmin=0, vmax=1, edgecolors="#555555", linewidths=0.3)
    ax.scatter(x.ravel(), y.ravel(), s=area * share.ravel(), c=relative.ravel(), **look)
    _explain(ax, area, _CHAR * max(map(len, labels)) + 0.35)
    return ax


def _explain(ax: Axes, area: float, drop: float) -> None:
    """Draw under the gene names what size, colour and frames are."""
    handles = [
        fig.mark(text, fig.GREY, "o", markersize=np.sqrt(area * share))
        for share, text in ((0.25, "25%"), (0.5, "50%"), (1.0, "100% of the cells express it"))
    ]
    handles.append(fig.mark("marker of this code", "#444444", "s", mfc="none", markersize=9))
    fig.legend_below(ax, handles, columns=4, drop=drop)
    fig.color_scale(
        ax,
        _CMAP,
        (0, 1),
        ticks={0.0: "0", 1.0: "highest code"},
        title="",
        note="mean log expression, of each gene by itself",
        drop=drop + 0.5,
        width=1.3,
    )


def _expression(
    adata: AnnData, key: str, codes: list[str], genes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean ``log1p`` of counts per 10,000 and share of cells that express, codes by genes.

    Raises
    ------
    KeyError
        If genes or the layer that the tool read are no longer there.
    """
    params = params_of(adata.uns, key)
    layer = params.get("layer")
    missing = [gene for gene in genes if gene not in adata.var_names]
    if missing or (layer is not None and layer not in adata.layers):
        what = f"genes {', '.join(missing[:3])}" if missing else f"the layer {layer!r}"
        raise KeyError(
            f"{what} of uns[{key!r}] not found; draw with the AnnData that cfm.tl.cell_codes was "
            "run on."
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise KeyError("adata.X is None; draw with the AnnData that cfm.tl.cell_codes was run on.")
    code = adata.obs[key].astype("string").to_numpy(dtype=object)
    rows = np.flatnonzero(pd.Series(code).isin(codes))
    values = sparse.csr_matrix(fig.stored_rows(matrix, rows)).astype(np.float64)
    own = values[:, [int(adata.var_names.get_indexer_for([gene])[0]) for gene in genes]].toarray()
    if params.get("units", "counts") == "counts":
        total = np.maximum(np.asarray(values.sum(axis=1)), 1.0)
        own = np.log1p(own / total * _TARGET_SUM)
    mean, share = np.zeros((2, len(codes), len(genes)))
    for i, name in enumerate(codes):
        part = own[code[rows] == name]
        mean[i], share[i] = part.mean(axis=0), (part > 0).mean(axis=0)
    return mean, share
