"""Donors in the plane, with how far their place depends on which cells were drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import EllipseCollection

from cfm._arguments import checks_arguments
from cfm._fields import SPREAD
from cfm.pl._checks import require_anndata
from cfm.pl._embedding import (
    _color_values,
    _draw_panel,
    _legend_width,
    _point_names,
    _shared_styles,
    _stored_embedding,
    _two_dimensions,
)
from cfm.pl._figure import figure_of, finish, new_figure
from cfm.pl._labels import label_points
from cfm.pl._palette import GREY

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes


@checks_arguments()
def donors(
    adata: AnnData,
    *,
    basis: str = "X_pulsar",
    color: str | None = None,
    spread: bool = True,
    label: bool | str | None = None,
    size: float | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw embedded donors in two dimensions, with rings for the spread over draws.

    An embedding with more than two dimensions is shown through its first two principal
    components; the axis labels say so. Both axes have one scale, so that a ring is a distance: its
    radius is the root mean squared distance of single draws of cells from their mean, in all
    dimensions, and thus more than is seen of it in two. Donors whose rings overlap may lie in
    another order with other cells.

    Parameters
    ----------
    adata
        Donors made by :func:`cfm.tl.embed_donors`.
    basis
        Name of the embedding in ``obsm``, with or without the leading ``X_``.
    color
        Column of ``obs`` to colour by; categories differ in colour and in marker.
    spread
        Draw the rings, where ``obs[basis + "_spread"]`` has more than 0.
    label
        Write names beside the points: a column of ``obs``, or ``True`` for ``obs_names``. ``None``
        does so for up to 15 donors.
    size
        Area of a point in square points.
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
        If the embedding, the colour or the label column is not there.
    ValueError
        If the embedding holds NaN or infinite values or no rows.

    Examples
    --------
    >>> import cfm, scanpy as sc
    >>> cells = cfm.datasets.toy_donors(n_donors=6, n_cells=30)
    >>> sc.pp.pca(cells, n_comps=10)
    >>> cfm.models.Pulsar.setup_anndata(cells, donor_key="donor_id", use_rep="X_pca")
    >>> model = cfm.models.Pulsar(cells)
    >>> donors = cfm.tl.embed_donors(cells, "donor_id", model, use_rep="X_pca")
    >>> ax = cfm.pl.donors(donors, color="disease", show=False)
    >>> ax.get_title()
    'disease'
    """
    require_anndata(adata)
    name, vectors = _stored_embedding(adata, basis)
    values = None if color is None else _color_values(adata, color)
    styles = {} if values is None or color is None else _shared_styles({color: values})
    names = _point_names(adata, label)
    points, titles = _two_dimensions(vectors, name)
    owned = ax is None
    if ax is None:
        width = 0.0 if values is None else _legend_width(values)
        ax = new_figure(4.4 + width, 4.4).subplots()
    column = name + SPREAD
    if spread and column in adata.obs:
        radius = np.nan_to_num(adata.obs[column].to_numpy(dtype=np.float64))
        rings = EllipseCollection(
            2 * radius,
            2 * radius,
            np.zeros(len(radius)),
            units="xy",
            offsets=points,
            offset_transform=ax.transData,
            facecolors="none",
            edgecolors=GREY,
            linewidths=0.8,
        )
        ax.add_collection(rings)
        ax.update_datalim(np.vstack([points - radius[:, None], points + radius[:, None]]))
    if size is None:
        size = float(np.clip(12_000 / len(points), 12, 60))
    _draw_panel(ax, points, values, styles, size, {})
    ax.set(xlabel=titles[0], ylabel=titles[1], title=color or "")
    ax.margins(0.12)
    ax.set_aspect("equal", adjustable="datalim")
    if names is not None:
        figure_of(ax).draw_without_rendering()  # places need the final layout
        label_points(ax, points, names)
    finish(figure_of(ax), owned=owned, show=show, save=save)
    return ax
