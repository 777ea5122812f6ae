"""Gene programs as an ordered heat map or as a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle
from matplotlib.transforms import ScaledTranslation

from cfm._arguments import check_layer, checks_arguments
from cfm._fields import ENRICHMENT, GENE_PROGRAMS_KEY, PROGRAM_EDGES, PROGRAM_GENES, PROGRAMS
from cfm.pl import _figure as fig
from cfm.pl._gene_program_network import draw_network

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

_PROGRAM_COLUMNS = ("group", "size", "direction", "coherence", "fdr")
_GENE_COLUMNS = ("program", "gene", "weight", "sign", "rank")
_EDGE_COLUMNS = ("gene_a", "gene_b", "weight", "program_a", "program_b")
#: Rows of a heat map that fit a screen, and genes of a program that identify it.
_ROWS, _FEWEST = 60, 3
#: Nodes of a network that can still be distinguished.
_NODES = 300


@checks_arguments()
@fig.documented
def gene_programs(
    adata: AnnData,
    *,
    key: str = GENE_PROGRAMS_KEY,
    kind: Literal["heatmap", "network"] = "heatmap",
    programs: Sequence[str] | None = None,
    n_programs: int = 15,
    n_genes: int | None = None,
    layer: str | None = None,
    groupby: str | None = None,
    label: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the genes of the programs in all profiles, or how they hang together.

    ``"heatmap"`` has genes in rows, ordered by program and then by their rank in it, and profiles
    in columns. Colour is the effect (blue down, grey zero, red up); ``+`` and ``−`` in the cells
    say the same. The arrow before a gene's name is its direction in the program. Each program is
    named at the right with its size, coherence (share of concordant gene pairs) and false
    discovery rate, with a star up to 0.05, and the gene set that it is most enriched in, if one
    has a false discovery rate of at most 0.05.

    ``"network"`` has one disc for each program, genes as nodes (▲ red: up, ▼ blue: down) whose
    size grows with their weight in it, and the stored edges as lines: within programs the
    heaviest three of each gene, between them the heaviest sixty. The first genes of each program
    are named where there is room.

    Parameters
    ----------
    adata
        Profiles with the fields written by :func:`cfm.tl.gene_programs`.
    %(key)s
    kind
        Which of the two.
    programs
        Names of the programs to draw, in this order; ``None`` takes the first ``n_programs`` as
        stored.
    n_programs
        At most so many, where ``programs`` is ``None``. The title gives how many there are.
    n_genes
        At most so many genes of each program, the first by rank. ``None`` takes what fits: 60
        rows, but at least 3 genes a program; or 300 nodes.
    layer
        For the heat map: layer to read instead of ``X``.
    groupby
        For the heat map: column of ``obs`` by which the profiles are ordered and divided.
    label
        For the heat map: column of ``obs`` that names the profiles; ``None`` uses ``obs_names``.
        More than 40 profiles are not named.
    %(ax)s

    Returns
    -------
    %(axes)s

    Raises
    ------
    KeyError
        If :func:`cfm.tl.gene_programs` was not run, or a program, layer or column is not there,
        or the genes of the programs are no longer in ``var_names``.
    ValueError
        If ``kind`` is unknown, ``n_programs`` or ``n_genes`` is below 1, ``programs`` is empty,
        or no program was found.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.gene_programs(contrasts, n_genes=400, n_permutations=2)
    >>> ax = cfm.pl.gene_programs(contrasts, groupby="virus", show=False)
    >>> [label.get_text() for label in ax.get_xticklabels()][:2]
    ['study1|virus_A_vs_none', 'study4|virus_A_vs_none']
    """
    fig.require_anndata(adata)
    tool = "gene_programs"
    table = fig.stored_table(adata, key, PROGRAMS, _PROGRAM_COLUMNS, tool=tool)
    table.index = table.index.astype(str)
    chosen = fig.pick("program", programs, table.index, f"uns[{key!r}]")
    table = table.loc[chosen if programs is not None else chosen[:n_programs]]
    fit = max(_FEWEST, _ROWS // len(table)) if kind == "heatmap" else _NODES // len(table)
    n_shown = n_genes or fit
    genes = fig.stored_table(adata, key, PROGRAM_GENES, _GENE_COLUMNS, tool=tool)
    place = genes["program"].map({name: i for i, name in enumerate(table.index)})
    genes = genes.assign(place=place).dropna(subset="place").sort_values(["place", "rank"])
    genes = genes.groupby("place", sort=True).head(n_shown).reset_index(drop=True)
    n_stored = len(adata.uns[key][PROGRAMS])
    of = f" of {n_stored}" if len(table) < n_stored else ""
    title = f"{len(table)}{of} gene program{'' if n_stored == 1 else 's'}"
    if (table["size"] > n_shown).any():
        title += f", first {fig.plural(n_shown, 'gene')} of each"

    if kind == "heatmap":
        fig.require_columns(adata, groupby, label)
        notes = [_note(name, row, _best_sets(adata, key)) for name, row in table.iterrows()]
        panel = _draw_heatmap(adata, genes, notes, layer, groupby, label, ax)
        panel.set_title(title, fontsize=9, pad=6 if groupby is None else 18)
    else:
        edges = fig.stored_table(adata, key, PROGRAM_EDGES, _EDGE_COLUMNS, tool=tool, empty=True)
        panel = draw_network(table, genes, edges, title, ax)
    return fig.finish(panel, ax, show=show, save=save)


def _best_sets(adata: AnnData, key: str) -> dict[object, str]:
    """Return the gene set that each program is most enriched in, where one is significant."""
    if ENRICHMENT not in adata.uns[key]:
        return {}
    columns = ("program", "term", "p_value", "fdr")
    table = fig.stored_table(adata, key, ENRICHMENT, columns, tool="gene_programs", empty=True)
    table = table[table["fdr"] <= fig.SIGNIFICANT].sort_values("p_value", kind="stable")
    first = table.drop_duplicates("program")
    return dict(zip(first["program"], first["term"], strict=True))


def _note(name: object, row: pd.Series, sets: dict[object, str]) -> list[str]:
    """Return the lines beside a program."""
    fdr = float(row["fdr"])
    star = " *" if fdr <= fig.SIGNIFICANT else ""
    chance = "no FDR" if np.isnan(fdr) else "FDR < 0.001" if fdr < 0.001 else f"FDR {fdr:.2g}"
    lines = [
        f"{fig.ARROWS.get(str(row['direction']), '')} {fig.shorten(name, 28)}",
        f"{int(row['size'])} genes, coherence {float(row['coherence']):.2f}, {chance}{star}",
    ]
    return [*lines, fig.shorten(sets[name], 44)] if name in sets else lines


# --- Heat map --------------------------------------------------------------------------------

_CMAP = LinearSegmentedColormap.from_list("effects", [fig.DOWN, fig.ZERO, fig.UP])
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


def _draw_heatmap(
    adata: AnnData,
    genes: pd.DataFrame,
    notes: list[list[str]],
    layer: str | None,
    groupby: str | None,
    label: str | None,
    ax: Axes | None,
) -> Axes:
    """Draw the effects of genes, in their final order, in all profiles."""
    if adata.n_obs == 0:
        raise ValueError("adata has no profiles; expected at least one column to draw.")
    table = _effects(adata, list(genes["gene"]), layer)
    order, groups = np.arange(adata.n_obs), dict[str, int]()
    if groupby is not None:
        values = adata.obs[groupby].astype("string").fillna(_NOT_GIVEN).astype(str)
        order = np.argsort(values.to_numpy(), kind="stable")
        groups = values.value_counts().sort_index().to_dict()
    names = adata.obs_names if label is None else adata.obs[label].astype(str)
    columns = [fig.shorten(name, 40) for name in np.asarray(names)[order]]
    programs = genes["program"]
    rows = np.arange(len(genes)) + _GAP * ((programs != programs.shift()).cumsum() - 1).to_numpy()
    named = len(columns) <= _NAMED_UP_TO
    longest = max(map(len, columns)) if named else 0
    if ax is None:
        width = max(1.8, len(columns) * (_NAMED if named else _NARROW)) + 0.3
        width += _CHAR * (min(24, max(map(len, genes["gene"]))) + 2)
        width += _CHAR * 0.95 * max(len(text) for note in notes for text in note)
        height = max(0.6, _ROW * (rows[-1] + 1)) + 1.0 + (0.2 if groups else 0)
        ax = fig.new_figure(min(width, 16), height + _CHAR * longest).add_subplot()
    fig.bare(ax)
    ax.set(xlim=(0, len(columns)), ylim=(rows[-1] + 1, 0))
    signs = genes["sign"].to_numpy()
    labels = [
        f"{fig.shorten(gene, 24)} {fig.ARROWS['up' if sign > 0 else 'down']}"
        for gene, sign in zip(genes["gene"], signs, strict=True)
    ]
    ax.set_yticks(rows + 0.5, labels, fontsize=7.5)
    for text, sign in zip(ax.get_yticklabels(), signs, strict=True):
        text.set_color(fig.UP if sign > 0 else fig.DOWN)
    _draw_strip(ax, programs.to_numpy(), rows, notes)
    if named:
        ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90, fontsize=7.5)
    else:
        ax.set_xlabel(f"{len(columns)} profiles", fontsize=8)
    ax.tick_params(length=0, pad=3)
    _draw_cells(ax, table[order].T, rows)
    _divide(ax, groups, rows[-1] + 1)
    top = _top(table)
    unknown = "\nhatched: not measured" if np.isnan(table).any() else ""
    fig.color_scale(
        ax,
        _CMAP,
        (-top, top),
        ticks={-top: f"−{top:.2g}", 0.0: "0", top: f"+{top:.2g}"},
        title="effect (log2 fold change)",
        note=f"▲ up  ▼ down  ◆ mixed   * {fig.UP_TO}{unknown}",
        drop=0.3 + (_CHAR * longest if named else 0.2),
    )
    return ax


def _effects(adata: AnnData, genes: list[str], layer: str | None) -> np.ndarray:
    """Return the effects of these genes, ``(profiles, genes)``."""
    check_layer(adata, layer)
    missing = [gene for gene in genes if gene not in adata.var_names]
    if missing:
        raise KeyError(
            f"{len(missing)} of {len(genes)} genes of the programs are not in var_names "
            f"({', '.join(missing[:3])}, …); draw with the AnnData that cfm.tl.gene_programs "
            "was run on."
        )
    columns = adata.var_names.get_indexer(genes)
    matrix = adata.X if layer is None else adata.layers[layer]
    return fig.dense_rows(matrix, slice(None), columns)


def _draw_cells(ax: Axes, table: np.ndarray, rows: np.ndarray) -> None:
    top, n = _top(table), table.shape[1]
    many = n > _NAMED_UP_TO
    # ruled cells only where the rules do not hide the colours
    look = fig.Look(edgecolors="none" if many else "white", linewidth=0.5, rasterized=many)
    for y, values in zip(rows, np.ma.masked_invalid(table), strict=True):
        edges = (np.arange(n + 1), [y, y + 1])
        ax.pcolormesh(*edges, values[None], cmap=_CMAP, norm=Normalize(-top, top), **look)
    cell = 72 * min(np.array(fig.width_and_height(ax)) / [n, rows[-1] + 1])  # points
    signs = np.where(np.abs(table) >= _FAINT * top, np.sign(table), 0)
    for sign, marker in ((1, "+"), (-1, "_")) if cell >= _TINY else ((-1, "_"),):
        y, x = np.nonzero(signs == sign)
        strong = np.abs(table[y, x]) > 0.45 * top
        look = fig.Look(s=min(8.0, 0.5 * cell) ** 2, marker=marker, rasterized=many)
        for part, color in ((strong, "white"), (~strong, "#333333")):
            place = (x[part] + 0.5, rows[y[part]] + 0.5)
            ax.scatter(*place, color=color, linewidth=min(1.0, 0.12 * cell), **look)
    look = fig.Look(facecolor="white", edgecolor="#BBBBBB", hatch="xxx", lw=0)
    for y, x in np.argwhere(np.isnan(table)):
        ax.add_patch(Rectangle((x, rows[y]), 1, 1, **look))


def _top(table: np.ndarray) -> float:
    """Return the end of a symmetric scale that a few extreme cells do not stretch."""
    known = np.abs(table[np.isfinite(table)])
    top = float(np.quantile(known, 0.98)) if known.size else 0.0
    return top or float(known.max(initial=0.0)) or 1.0


def _draw_strip(ax: Axes, programs: np.ndarray, rows: np.ndarray, notes: list[list[str]]) -> None:
    """Mark where each program stands, and what it is worth, to the right of the cells."""
    beside = ax.get_yaxis_transform()
    right = beside + ScaledTranslation(0.06, 0, fig.figure_of(ax).dpi_scale_trans)
    for i, (name, note) in enumerate(zip(dict.fromkeys(programs), notes, strict=True)):
        own = rows[programs == name]
        look = fig.Look(color=_STRIP[i % 2], linewidth=5, solid_capstyle="butt")
        ax.plot([1, 1], [own[0] + 0.05, own[-1] + 0.95], transform=right, clip_on=False, **look)
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


def _divide(ax: Axes, groups: dict[str, int], bottom: float) -> None:
    """Name the groups of profiles above the cells, and draw a line between them."""
    start, n = 0, sum(groups.values())
    width = fig.width_and_height(ax)[0] if groups else 0.0
    for name, count in groups.items():
        if start:
            ax.plot([start, start], [0, bottom], color="black", linewidth=1)
        inches = width * count / n
        ax.annotate(
            fig.shorten(name, int(inches / _CHAR)) if inches > 3 * _CHAR else "…",
            (start + count / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
        )
        start += count
