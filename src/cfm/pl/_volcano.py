"""Effects of one contrast against their evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cfm._arguments import checks_arguments
from cfm._fields import EVIDENCE, SIGNATURE_SEARCH_KEY
from cfm.pl._checks import require_anndata
from cfm.pl._figure import figure_of, finish, legend_below, new_figure
from cfm.pl._labels import label_points, shorten
from cfm.pl._palette import DIRECTION_STYLES, GREY
from cfm.pl._stored import stored_table

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

#: What the vertical axis shows, in the order of preference: layers with a row for each contrast
#: and columns of ``var``.
_P_LAYERS = ("pval", "p_value", "pvalue", "pvals", "padj", "fdr")
_MEANS = ("mean_expression", "base_mean", "baseMean", "mean")


@checks_arguments(n_genes=0)
def volcano(
    adata: AnnData,
    query: str | None = None,
    *,
    key: str = SIGNATURE_SEARCH_KEY,
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
    filled, triangles up or down, and named; all others are grey points.

    Parameters
    ----------
    adata
        Contrasts with the fields written by :func:`cfm.tl.search_signatures`.
    query
        Name of the contrast (``obs_names``); the first that has evidence by default.
    key
        Where the search is stored (``key_added`` of that call).
    match
        Mark the evidence genes of this match only; of all matches by default.
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
    ax
        Draw here instead of into a new figure.
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
    require_anndata(adata)
    columns = ("query", "match", "gene", "var_name")
    table = stored_table(adata, key, EVIDENCE, tool="search_signatures", columns=columns)
    name = table["query"].iloc[0] if query is None else str(query)
    names = adata.obs_names.astype(str)
    if name not in names:
        raise KeyError(f"query={name!r} is not in obs_names (such as {list(names[:3])}).")
    marked = table[table["query"] == name]
    if match is not None:
        if match not in set(marked["match"]):
            raise KeyError(f"match={match!r} is no match of {name!r} that has evidence.")
        marked = marked[marked["match"] == match]
    for given, what in ((layer, "layer"), (p_layer, "p_layer")):
        if given is not None and given not in adata.layers:
            raise KeyError(f"{what}={given!r} is no layer.")
    row = int(np.flatnonzero(names == name)[0])
    x = _row(adata.X if layer is None else adata.layers[layer], row)
    y, said = _height(adata, row, x, p_layer, mean_key)
    shown = np.isfinite(x) & np.isfinite(y)
    if not shown.any():
        raise ValueError(f"The contrast {name!r} has no gene with an effect to draw.")
    found = adata.var_names.astype(str).get_indexer(marked["var_name"].unique())
    evidence = np.zeros(len(x), dtype=bool)
    evidence[found[found >= 0]] = True
    evidence &= shown
    panel = new_figure(5.2, 4.6).subplots() if ax is None else ax
    rest = shown & ~evidence
    panel.scatter(x[rest], y[rest], s=4, color=GREY, alpha=0.5, linewidths=0, rasterized=True)
    handles = []
    for sign, direction in ((1, "up"), (-1, "down")):
        style = DIRECTION_STYLES[direction]
        part = evidence & (x * sign > 0)
        handles.append(
            panel.scatter(x[part], y[part], s=22, color=style.color, marker=style.marker,
                          linewidths=0, label=f"evidence, {direction} ({part.sum()})")
        )  # fmt: skip
    panel.axvline(0, color="#777777", linewidth=0.8, zorder=0)
    panel.set_xlabel("log2 fold change", fontsize=8)
    panel.set_ylabel(said, fontsize=8)
    panel.set_title(shorten(name, 60), fontsize=9)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(0.1)
    legend_below(panel, handles, columns=2)
    figure_of(panel).draw_without_rendering()
    often = marked["gene"].value_counts(sort=False).sort_values(ascending=False, kind="stable")
    wanted = list(often.index[:n_genes])
    own_name = marked.drop_duplicates("gene").set_index("gene")["var_name"]
    place = adata.var_names.astype(str).get_indexer(own_name.reindex(wanted))
    use = [(i, gene) for i, gene in zip(place, wanted, strict=True) if i >= 0 and evidence[i]]
    if use:
        points = np.array([(x[i], y[i]) for i, _ in use])
        label_points(panel, points, [gene for _, gene in use], radius=3.5, halo="white")
    finish(figure_of(panel), owned=ax is None, show=show, save=save)
    return panel


def _row(matrix: object, row: int) -> np.ndarray:
    values = matrix[row]  # type: ignore[index]
    values = values.toarray() if hasattr(values, "toarray") else values
    values = values.compute() if hasattr(values, "compute") else values
    return np.asarray(values, dtype=np.float64).ravel()


def _height(
    adata: AnnData, row: int, x: np.ndarray, p_layer: str | None, mean_key: str | None
) -> tuple[np.ndarray, str]:
    """Return the vertical position of the genes, and what it is."""
    found = p_layer or (
        None if mean_key else next((name for name in _P_LAYERS if name in adata.layers), None)
    )
    if found is not None:
        p = _row(adata.layers[found], row)
        with np.errstate(divide="ignore"):
            return -np.log10(np.maximum(p, 1e-300)), f"−log10 {found}"
    for name in (mean_key,) if mean_key else _MEANS:
        if name in adata.layers:
            return _row(adata.layers[name], row), "mean expression"
        if name in adata.var:
            return adata.var[name].to_numpy(dtype=np.float64), "mean expression"
    if mean_key:
        raise KeyError(f"mean_key={mean_key!r} is no column of var and no layer.")
    size = np.abs(x)
    rank = np.full(len(x), np.nan)
    known = np.flatnonzero(np.isfinite(size))
    rank[known[np.argsort(-size[known], kind="stable")]] = np.arange(1, len(known) + 1)
    return -np.log10(rank), "−log10 of the rank by size (no p-values stored)"
