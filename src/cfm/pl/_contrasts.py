"""Effects of a contrast: its strongest genes, its matches in a library, and their evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._adata import params_of
from cfm._arguments import check_layer, checks_arguments
from cfm._fields import EVIDENCE, RESULTS, SIGNATURE_SEARCH_KEY
from cfm.pl import _figure as fig

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes


@checks_arguments()
@fig.documented
def top_genes(
    adata: AnnData,
    contrast: str | int = 0,
    *,
    n_genes: int = 10,
    layer: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the genes that rose and fell most in one contrast.

    Bars point right for genes that are higher in the cases and left for lower ones, the largest
    effects at the top and at the bottom, with the value at each bar.

    Parameters
    ----------
    adata
        Contrasts by genes, log2 fold changes in ``X``, from :func:`cfm.pp.contrasts`.
    contrast
        Name in ``obs_names`` or row number.
    n_genes
        At most this many genes in each direction.
    layer
        Layer to read instead of ``X``.
    %(ax)s

    Returns
    -------
    %(axes)s

    Raises
    ------
    KeyError
        If there is no such contrast or layer.
    ValueError
        If no gene of the contrast has a non-zero effect, or ``n_genes`` is below 1.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> ax = cfm.pl.top_genes(contrasts, n_genes=3, show=False)
    >>> len(ax.get_yticklabels())
    6
    """
    fig.require_anndata(adata)
    if isinstance(contrast, str):
        if contrast not in adata.obs_names:
            raise KeyError(
                f"contrast {contrast!r} is not in obs_names (the first of {adata.n_obs}: "
                f"{', '.join(adata.obs_names[:5])})."
            )
        contrast = int(np.flatnonzero(adata.obs_names == contrast)[0])
    elif not -adata.n_obs <= contrast < adata.n_obs:
        raise KeyError(f"contrast {contrast} is out of range; adata has {adata.n_obs} rows.")
    check_layer(adata, layer)
    name = str(adata.obs_names[contrast])
    values = np.nan_to_num(_effects(adata, layer, contrast % adata.n_obs))
    order = np.argsort(-values, kind="stable")
    up = [j for j in order[:n_genes] if values[j] > 0]
    down = [j for j in order[::-1][:n_genes] if values[j] < 0][::-1]
    if not up + down:
        raise ValueError(
            f"contrast {name!r} has no gene with a non-zero effect; expected log2 fold changes "
            "from cfm.pp.contrasts."
        )
    effects = values[up + down]
    rows = np.arange(len(effects), dtype=np.float64)
    rows[len(up) :] += 0.6  # a gap between the two directions
    panel = ax or fig.new_figure(3.9, 0.9 + 0.19 * len(effects)).add_subplot()
    panel.barh(rows, effects, color=np.where(effects > 0, fig.UP, fig.DOWN), height=0.75)
    panel.axvline(0, color=fig.AXIS, linewidth=0.8)
    panel.set_yticks(rows, [fig.shorten(adata.var_names[j], 18) for j in up + down])
    panel.set_ylim(rows[-1] + 0.7, -0.7)
    panel.set_xlabel("log2 fold change (right: higher in cases)")
    panel.set_title(fig.shorten(name, 44), fontsize=9)
    fig.tidy(panel, "left")
    panel.tick_params(axis="y", length=0)
    tips = [
        fig.write_tip(panel, fig.minus(f"{effect:+.1f}"), effect, row)
        for row, effect in zip(rows, effects, strict=True)
    ]
    fig.room_for_tips(panel, effects, tips)
    return fig.finish(panel, ax, show=show, save=save)


# --- Matches ---------------------------------------------------------------------------------

#: Columns of the library that describe a match, the first ones that are there.
_DESCRIBED = ("stimulus", "compound", "tissue", "time_h", "study")


@checks_arguments()
@fig.documented
def signature_search(
    adata: AnnData,
    query: str | None = None,
    *,
    key: str = SIGNATURE_SEARCH_KEY,
    n_matches: int = 10,
    n_genes: int = 30,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw a query and its matches as a heat map of their evidence genes.

    The first row is the query, the rows below are its matches by rank, with similarity and a star
    where the false discovery rate is at most 0.05. Columns are the evidence genes of most matches.
    Red and ``+`` is up, blue and ``-`` down, relative to the strongest effect of the row; a gene
    that is no evidence of a match is empty there.

    Parameters
    ----------
    adata
        Contrasts with the fields written by :func:`cfm.tl.search_signatures`.
    query
        Name of the contrast (``obs_names``); the first that has matches by default.
    %(key)s
    n_matches
        Matches at most, the best ones.
    n_genes
        Genes at most: those that are evidence of most matches, weighed by their place.
    %(ax)s

    Returns
    -------
    %(axes)s

    Raises
    ------
    KeyError
        If :func:`cfm.tl.search_signatures` was not run, or has no matches of the query.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.blanco_melo(), "virus", "none", by="series")
    >>> cfm.tl.search_signatures(contrasts)
    >>> ax = cfm.pl.signature_search(contrasts, n_matches=5, show=False)
    >>> len(ax.get_yticklabels())
    6
    """
    fig.require_anndata(adata)
    tool = "search_signatures"
    columns = ("query", "match", "rank", "similarity", "p_value", "fdr")
    results = fig.stored_table(adata, key, RESULTS, columns, tool=tool)
    proof_columns = ("query", "match", "gene", "query_effect", "match_effect")
    evidence = fig.stored_table(adata, key, EVIDENCE, proof_columns, tool=tool)
    names = results["query"].unique()
    name = names[0] if query is None else str(query)
    if name not in names:
        raise KeyError(
            f"query={name!r} has no matches in uns[{key!r}]['results']; it has {list(names[:5])}."
        )
    matches = results[results["query"] == name].sort_values("rank").head(n_matches)
    proof = evidence[(evidence["query"] == name) & evidence["match"].isin(matches["match"])]
    # The first gene of a match weighs 1, the tenth a tenth.
    weight = (1 / (proof.groupby("match").cumcount() + 1)).groupby(proof["gene"]).sum()
    genes = weight.sort_values(ascending=False, kind="stable").index[:n_genes]
    own = proof.drop_duplicates("gene").set_index("gene")["query_effect"]
    theirs = proof.pivot_table(index="match", columns="gene", values="match_effect")
    theirs = theirs.reindex(index=matches["match"])
    # Rows are in units of their own: fold changes, or relative effects.
    largest = np.r_[own.reindex(genes).abs().max(), theirs.abs().max(axis=1)]
    values = np.vstack([own.reindex(genes), theirs.reindex(columns=genes)])
    values = values / np.maximum(np.nan_to_num(largest), 1e-12)[:, None]
    labels = [
        f"{fig.shorten(name, 44)}  (query)",
        *(_described(row) for _, row in matches.iterrows()),
    ]

    width = 2.2 + 0.065 * max(map(len, labels)) + 0.2 * len(genes)
    panel = ax or fig.new_figure(width, 1.4 + 0.21 * len(labels)).add_subplot()
    image = panel.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for row, column in zip(*np.nonzero(np.nan_to_num(values)), strict=True):
        sign = "+" if values[row, column] > 0 else "−"
        color = "white" if abs(values[row, column]) > 0.6 else "#3C3C3C"
        panel.text(column, row, sign, ha="center", va="center", fontsize=6, color=color)
    panel.axhline(0.5, color="black", linewidth=1.2)
    panel.set_xticks(
        range(len(genes)), [fig.shorten(g, 14) for g in genes], rotation=90, fontsize=7
    )
    panel.set_yticks(range(len(labels)), labels, fontsize=7.5)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    bar = fig.figure_of(panel).colorbar(image, ax=panel, shrink=min(1.0, 8 / len(labels)), pad=0.01)
    bar.set_label("effect / largest of the row", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    kind = "opposed" if params_of(adata.uns, key).get("direction") == "opposite" else "similar"
    of = fig.plural(len(matches), f"most {kind} contrast")
    panel.set_title(f"{of} (* FDR ≤ {fig.SIGNIFICANT:g})", fontsize=9)
    return fig.finish(panel, ax, show=show, save=save)


def _described(row: pd.Series) -> str:
    """Return what a match is, its similarity, and a star where it is significant."""
    parts: list[str] = []
    for name in _DESCRIBED:
        value = row.get(name, "")
        if isinstance(value, float | np.floating):
            value = f"{value:g} h" if np.isfinite(value) else ""
        if value and str(value) not in parts:
            parts.append(fig.shorten(value, 30))
    text = ", ".join(parts) if parts else fig.shorten(row["match"], 44)
    star = " *" if row["fdr"] <= fig.SIGNIFICANT else ""
    return f"{fig.shorten(text, 60)}  {row['similarity']:.2f}{star}"


# --- Evidence --------------------------------------------------------------------------------

#: What the vertical axis shows, in the order of preference: layers with a row for each contrast
#: and columns of ``var``.
_P_LAYERS = ("pval", "p_value", "pvalue", "pvals", "padj", "fdr")
_MEANS = ("mean_expression", "base_mean", "baseMean", "mean")


@checks_arguments(n_genes=0)
@fig.documented
def volcano(
    adata: AnnData,
    query: str | None = None,
    *,
    key: str | None = SIGNATURE_SEARCH_KEY,
    match: str | None = None,
    layer: str | None = None,
    p_layer: str | None = None,
    mean_key: str | None = None,
    n_genes: int = 20,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the effects of a contrast against their p-values, with evidence genes marked.

    Without p-values the vertical axis is the mean expression, and without that the rank of the
    size of the effect, so that the strongest genes are on top. Evidence genes of the matches are
    filled, triangles up or down, and named; all others are grey points. With ``key=None`` no search
    is needed: the genes with the largest product of effect and height are marked instead.

    Parameters
    ----------
    adata
        Contrasts, with the fields written by :func:`cfm.tl.search_signatures` unless ``key=None``.
    query
        Name of the contrast (``obs_names``); the first that has evidence by default.
    key
        Where they are stored (``key_added`` of that call); ``None`` for any contrasts.
    match
        Mark the evidence genes of this match only; of all matches by default. Needs ``key``.
    layer
        Layer with the effects instead of ``X``.
    p_layer
        Layer with p-values; ``"pval"`` of :func:`cfm.pp.contrasts` and the like are found by
        themselves.
    mean_key
        Column of ``var`` or layer with the mean expression; ``"mean_expression"``,
        ``"base_mean"`` and the like are found by themselves.
    n_genes
        Genes named at most: those that are evidence of most matches.
    %(ax)s

    Returns
    -------
    %(axes)s

    Raises
    ------
    KeyError
        If :func:`cfm.tl.search_signatures` was not run, or a contrast, match, layer or column does
        not exist.
    ValueError
        If the contrast has no effect to draw.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.blanco_melo(), "virus", "none", by="series")
    >>> cfm.tl.search_signatures(contrasts)
    >>> ax = cfm.pl.volcano(contrasts, show=False)
    >>> ax.get_xlabel()
    'log2 fold change'
    """
    fig.require_anndata(adata)
    names = adata.obs_names.astype(str)
    columns = ("query", "match", "gene", "var_name")
    if key is not None:
        table = fig.stored_table(adata, key, EVIDENCE, columns, tool="search_signatures")
    else:
        table = pd.DataFrame({name: names[:1] for name in columns})
    name = table["query"].iloc[0] if query is None else str(query)
    if name not in names:
        raise KeyError(f"query={name!r} is not in obs_names (such as {list(names[:3])}).")
    marked = table[table["query"] == name]
    if match is not None:
        if match not in set(marked["match"]):
            raise KeyError(f"match={match!r} is no match of {name!r} that has evidence.")
        marked = marked[marked["match"] == match]
    for given in (layer, p_layer):
        check_layer(adata, given)
    row = int(np.flatnonzero(names == name)[0])
    x = _effects(adata, layer, row)
    y, height = _height(adata, row, x, p_layer, mean_key)
    shown = np.isfinite(x) & np.isfinite(y)
    if not shown.any():
        raise ValueError(f"The contrast {name!r} has no gene with an effect to draw.")
    genes = adata.var_names.astype(str)
    if key is None:
        size = np.where(shown, np.abs(x) * y, -np.inf)
        first = genes[np.argsort(-size, kind="stable")[:n_genes]]
        marked = pd.DataFrame({"gene": first, "var_name": first})
    evidence = shown & genes.isin(marked["var_name"])

    panel = ax or fig.new_figure(5.2, 4.6).add_subplot()
    rest = shown & ~evidence
    panel.scatter(x[rest], y[rest], s=4, color=fig.GREY, alpha=0.5, linewidths=0, rasterized=True)
    handles = []
    for sign, direction in ((1, "up"), (-1, "down")):
        color, marker = fig.DIRECTION_STYLES[direction]
        part = evidence & (x * sign > 0)
        what = "evidence" if key is not None else "strongest"
        label = f"{what}, {direction} ({part.sum()})"
        look = fig.Look(s=22, color=color, marker=marker, linewidths=0, label=label)
        handles.append(panel.scatter(x[part], y[part], **look))  # type: ignore[arg-type]
    panel.axvline(0, color=fig.AXIS, linewidth=0.8, zorder=0)
    panel.set(xlabel="log2 fold change", ylabel=height)
    panel.set_title(fig.shorten(name, 60), fontsize=9)
    fig.tidy(panel)
    panel.margins(0.1)
    fig.legend_below(panel, handles, columns=2)
    fig.settle(panel)
    often = marked["gene"].value_counts(sort=False).sort_values(ascending=False, kind="stable")
    named = marked.drop_duplicates("gene").set_index("gene")["var_name"].reindex(often.index)
    place = genes.get_indexer(named.iloc[:n_genes])
    drawn = (place >= 0) & evidence[place]
    points = np.column_stack([x, y])[place[drawn]]
    fig.label_points(panel, points, often.index[:n_genes][drawn], radius=3.5, halo="white")
    return fig.finish(panel, ax, show=show, save=save)


def _effects(adata: AnnData, layer: str | None, row: int) -> np.ndarray:
    """Return one row of ``X`` or a layer, ``(genes,)``."""
    return fig.dense_rows(adata.X if layer is None else adata.layers[layer], [row])[0]


def _height(
    adata: AnnData, row: int, x: np.ndarray, p_layer: str | None, mean_key: str | None
) -> tuple[np.ndarray, str]:
    """Return the vertical position of the genes, and what it is."""
    found = p_layer or (
        None if mean_key else next((name for name in _P_LAYERS if name in adata.layers), None)
    )
    if found is not None:
        p = np.maximum(_effects(adata, found, row), 1e-300)
        return -np.log10(p), f"−log10 {found}"
    for name in (mean_key,) if mean_key else _MEANS:
        if name in adata.layers:
            return _effects(adata, name, row), "mean expression"
        if name in adata.var:
            return adata.var[name].to_numpy(dtype=np.float64), "mean expression"
    if mean_key:
        raise KeyError(f"mean_key={mean_key!r} is no column of var and no layer.")
    rank = np.abs(x)
    known = np.isfinite(rank)
    rank[known] = 1 + np.argsort(np.argsort(-rank[known], kind="stable"), kind="stable")
    return -np.log10(
        np.where(known, rank, np.nan)
    ), "−log10 of the rank by size (no p-values stored)"
