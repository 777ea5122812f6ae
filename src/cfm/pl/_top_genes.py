"""Genes with the largest effects of one contrast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from cfm._arguments import check_layer, checks_arguments
from cfm._sparse_indices import check_sparse
from cfm.pl._checks import require_anndata
from cfm.pl._figure import figure_of, finish, new_figure
from cfm.pl._labels import shorten
from cfm.pl._palette import DOWN, UP

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes


@checks_arguments()
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
    require_anndata(adata)
    row = _row(adata, contrast)
    check_layer(adata, layer)
    matrix = adata.X if layer is None else adata.layers[layer]
    values = check_sparse(matrix, "the matrix of contrasts")[row]
    values = values.toarray() if sparse.issparse(values) else values
    effects = np.nan_to_num(np.asarray(values, dtype=np.float64).ravel())
    order = np.argsort(-effects, kind="stable")
    up = [j for j in order[:n_genes] if effects[j] > 0]
    down = [j for j in order[::-1][:n_genes] if effects[j] < 0][::-1]
    shown = up + down
    if not shown:
        raise ValueError(
            f"contrast {adata.obs_names[row]!r} has no gene with a non-zero effect; expected log2 "
            "fold changes from cfm.pp.contrasts."
        )
    owned = ax is None
    if ax is None:
        ax = new_figure(3.9, 0.9 + 0.19 * len(shown)).add_subplot()
    _draw(ax, effects[shown], [str(adata.var_names[j]) for j in shown], len(up))
    ax.set_title(shorten(str(adata.obs_names[row]), 44), fontsize=9)
    finish(figure_of(ax), owned=owned, show=show, save=save)
    return ax


def _row(adata: AnnData, contrast: str | int) -> int:
    if isinstance(contrast, str):
        if contrast not in adata.obs_names:
            raise KeyError(
                f"contrast {contrast!r} is not in obs_names (the first of {adata.n_obs}: "
                f"{', '.join(adata.obs_names[:5])})."
            )
        return int(np.flatnonzero(adata.obs_names == contrast)[0])
    if not -adata.n_obs <= contrast < adata.n_obs:
        raise KeyError(f"contrast {contrast} is out of range; adata has {adata.n_obs} rows.")
    return int(contrast) % adata.n_obs


def _draw(ax: Axes, effects: np.ndarray, genes: list[str], n_up: int) -> None:
    rows = np.arange(len(effects), dtype=np.float64)
    rows[n_up:] += 0.6  # a gap between the two directions
    ax.barh(rows, effects, color=np.where(effects > 0, UP, DOWN), height=0.75)
    ax.axvline(0, color="#777777", linewidth=0.8)
    for y, effect in zip(rows, effects, strict=True):
        ax.annotate(
            f"{effect:+.1f}".replace("-", "−"),
            (effect, y),
            xytext=(3 if effect > 0 else -3, 0),
            textcoords="offset points",
            va="center",
            ha="left" if effect > 0 else "right",
            fontsize=7,
        )
    ax.set_yticks(rows, [shorten(gene, 18) for gene in genes], fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)
    ax.set_ylim(rows[-1] + 0.7, -0.7)
    low, high = min(effects.min(), 0), max(effects.max(), 0)
    span = high - low
    # room for the numbers at the ends of the bars
    ax.set_xlim(low - (0.17 * span if low < 0 else 0), high + (0.17 * span if high > 0 else 0))
    ax.set_xlabel("log2 fold change (right: higher in cases)", fontsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)
