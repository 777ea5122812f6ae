"""Marker genes of codes, as dots."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.transforms import ScaledTranslation
from scipy import sparse

from cfm._fields import params_of
from cfm._sparse_indices import check_sparse
from cfm.pl._figure import figure_of, legend_below, new_figure
from cfm.pl._labels import shorten

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

LEVELS = LinearSegmentedColormap.from_list("expression", ["#EDF2F7", "#6FA3CF", "#08306B"])
#: Inches of a cell of the grid, and of a character of small text.
_CELL, _CHAR = 0.23, 0.075
#: Inches of the legend.
_LEGEND = 4.4
#: Area of a dot of all cells, in square points.
_AREA = 110.0
_TARGET_SUM = 1e4


class _Expression(NamedTuple):
    """Codes by genes: mean ``log1p`` of counts per 10,000, and share of cells that express."""

    mean: np.ndarray
    share: np.ndarray


def draw_markers(
    adata: AnnData, key: str, markers: pd.DataFrame, names: dict[str, str], *,
    title: str, ax: Axes | None,
) -> Axes:  # fmt: skip
    """Draw the marker plot of :func:`cfm.pl.cell_codes`.

    Parameters
    ----------
    adata
        Cells with codes.
    key
        Where they are.
    markers
        Rows of the stored table to draw, in their final order.
    names
        What to write beside each code, by the code, in their final order.
    title
        Title.
    ax
        Where to draw.
    """
    genes = list(dict.fromkeys(markers["gene"]))
    found = _expression(adata, key, list(names), genes)
    n_rows, n_columns = len(names), len(genes)
    texts = [shorten(text, 44) for text in names.values()]
    labels = [shorten(gene, 20) for gene in genes]
    if ax is None:
        width = max(_CELL * n_columns, _LEGEND) + _CHAR * max(map(len, texts)) + 0.6
        height = _CELL * n_rows + _CHAR * max(map(len, labels)) + 1.5
        ax = new_figure(width, height).add_subplot()
        ax.set_aspect("equal", anchor="NW")
    ax.set_xlim(-0.6, n_columns - 0.4)
    ax.set_ylim(n_rows - 0.4, -0.6)
    ax.set_xticks(range(n_columns), labels, rotation=90, fontsize=7.5)
    ax.set_yticks(range(n_rows), texts, fontsize=8)
    ax.set_ylabel("code")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=9)
    figure = figure_of(ax)
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()  # sizes are only final once the layout was made
    box = ax.get_window_extent()
    cell = min(box.width / n_columns, box.height / n_rows) / figure.dpi
    area = _AREA * min(1.0, cell / _CELL) ** 2
    place = {gene: i for i, gene in enumerate(genes)}
    row = {code: i for i, code in enumerate(names)}
    for code, gene in zip(markers["code"], markers["gene"], strict=True):
        corner = (place[gene] - 0.47, row[code] - 0.47)
        ax.add_patch(
            Rectangle(corner, 0.94, 0.94, facecolor="none", edgecolor="#444444", linewidth=0.8)
        )
    top = found.mean.max(axis=0)
    relative = found.mean / np.where(top > 0, top, 1.0)
    x, y = np.meshgrid(np.arange(n_columns), np.arange(n_rows))
    ax.scatter(
        x.ravel(),
        y.ravel(),
        s=area * found.share.ravel(),
        c=relative.ravel(),
        cmap=LEVELS,
        vmin=0,
        vmax=1,
        edgecolors="#555555",
        linewidths=0.3,
    )
    _key(ax, area, _CHAR * max(map(len, labels)) + 0.35)
    return ax


def _key(ax: Axes, area: float, drop: float) -> None:
    """Say under the gene names what size, colour and frames are."""
    dots = [
        Line2D(
            [], [], linestyle="", marker="o", color="#8A8A8A", markersize=np.sqrt(area * share),
            label=f"{share:.0%}",
        )
        for share in (0.25, 0.5, 1.0)
    ]  # fmt: skip
    dots[-1].set_label("100% of the cells express it")
    frame = Line2D(
        [], [], linestyle="", marker="s", markerfacecolor="none", color="#444444", markersize=9,
        label="marker of this code",
    )  # fmt: skip
    legend_below(ax, [*dots, frame], columns=4, drop=drop)
    figure = figure_of(ax)
    corner = figure.dpi_scale_trans + ScaledTranslation(0, 0, ax.transAxes)  # type: ignore[arg-type]
    scale = ax.inset_axes((0.0, -drop - 0.5, 1.3, 0.1), transform=corner)
    scale.imshow(np.linspace(0, 1, 64)[None], cmap=LEVELS, aspect="auto", extent=(0, 1, 0, 1))
    scale.set_xticks([0, 1], ["0", "highest code"], fontsize=7)
    scale.set_yticks([])
    scale.tick_params(length=2)
    ax.annotate(
        "mean log expression, of each gene by itself",
        (1.75, -drop - 0.45),
        xycoords=corner,
        fontsize=7.5,
        va="center",
        annotation_clip=False,
    )


def _expression(adata: AnnData, key: str, codes: list[str], genes: list[str]) -> _Expression:
    """Average what the tool read, by code.

    Raises
    ------
    KeyError
        If genes or the layer are no longer there.
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
    code = adata.obs[key].astype("string")
    rows = np.flatnonzero(code.isin(codes).to_numpy())
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise KeyError("adata.X is None; draw with the AnnData that cfm.tl.cell_codes was run on.")
    block = check_sparse(matrix, "the matrix")[rows]
    block = block.compute() if hasattr(block, "compute") else block
    values = sparse.csr_matrix(check_sparse(block, "the matrix")).astype(np.float64)
    columns = [int(adata.var_names.get_indexer_for([gene])[0]) for gene in genes]
    own = values[:, columns].toarray()
    if params.get("units", "counts") == "counts":
        total = np.maximum(np.asarray(values.sum(axis=1)).ravel(), 1.0)
        own = np.log1p(own / total[:, None] * _TARGET_SUM)
    mean, share = np.zeros((2, len(codes), len(genes)))
    labels = code.to_numpy(dtype=object)[rows]
    for i, name in enumerate(codes):
        part = own[labels == name]
        mean[i], share[i] = part.mean(axis=0), (part > 0).mean(axis=0)
    return _Expression(mean, share)
