"""Embeddings in two dimensions: of observations, on top of scanpy, and of donors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.collections import EllipseCollection
from sklearn.decomposition import PCA

from cfm._arguments import checks_arguments
from cfm._fields import EMBEDDING_PREFIX, SPREAD
from cfm.pl import _figure as fig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from matplotlib.axes import Axes

#: With at most this many observations each point gets its name.
_NAMED_UP_TO = 15
_NOT_GIVEN = "not given"
_LEGEND_CHARS = 28


@checks_arguments()
@fig.documented
def embedding(
    adata: AnnData,
    *,
    basis: str = "X_cellpulse",
    color: str | Sequence[str] | None = None,
    label: bool | str | None = None,
    size: float | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    **kwargs: Any,
) -> Axes | dict[str, Axes]:
    """Draw an embedding in two dimensions with :func:`scanpy.pl.embedding`.

    An embedding with more than two dimensions is shown through its first two principal
    components; the axis labels name them and the variance that each carries. Categories differ in
    colour and in marker.

    Parameters
    ----------
    adata
        Observations with an embedding in ``obsm``, for instance from :func:`cfm.tl.embed`.
    basis
        Its name in ``obsm``, with or without the leading ``X_``.
    color
        Column of ``obs`` or gene to colour by; several make one panel each.
    label
        Write names beside the points: a column of ``obs``, or ``True`` for ``obs_names``. ``None``
        does so for up to 15 observations. A name without room is left out.
    size
        Area of a point in square points.
    %(panel)s
    **kwargs
        Passed on to :func:`scanpy.pl.embedding`.

    Returns
    -------
    The Axes drawn on; with several colours a dict from colour to Axes.

    Raises
    ------
    KeyError
        If the embedding, a colour or the label column is not there.
    ValueError
        If the embedding holds NaN or infinite values or no rows, or ``ax`` is given with several
        colours.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.embed(contrasts, "cellpulse-mini")
    >>> ax = cfm.pl.embedding(contrasts, color="virus", show=False)
    >>> ax.get_title()
    'virus'
    """
    fig.require_anndata(adata)
    points, titles = _two_dimensions(adata, basis)
    colors = [color or ""] if color is None or isinstance(color, str) else list(color)
    if not colors:
        raise ValueError("color is an empty list; pass None or at least one column.")
    if len(set(colors)) < len(colors):
        raise ValueError(f"color={color!r} names a column twice; expected each once.")
    columns = {c: _color_values(adata, c) for c in colors if c}
    styles = _shared_styles(columns)
    names = _point_names(adata, label)
    width = 4.0 + sum(map(_legend_width, columns.values())) / len(colors)
    panels = fig.open_panels(colors, ax, width, 4.2, argument="color")
    for column, panel in panels.items():
        _draw_panel(panel, points, columns.get(column), styles, size or _size(points, 6), **kwargs)
        panel.set(xlabel=titles[0], ylabel=titles[1], title=column)
        panel.margins(0.12)
    if names is not None:
        fig.settle(next(iter(panels.values())))  # places need the final layout
        for panel in panels.values():
            fig.label_points(panel, points, names)
    return fig.one_or_all(fig.finish(panels, ax, show=show, save=save), color)


@checks_arguments()
@fig.documented
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
    components; the axis labels name them. Both axes have one scale, so that a ring is a distance:
    its radius is the root mean squared distance of single draws of cells from their mean, in all
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
    %(ax)s

    Returns
    -------
    %(axes)s

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
    fig.require_anndata(adata)
    points, titles = _two_dimensions(adata, basis)
    values = None if color is None else _color_values(adata, color)
    styles = {} if values is None else _shared_styles({"": values})
    names = _point_names(adata, label)
    width = 0.0 if values is None else _legend_width(values)
    panel = ax or fig.new_figure(4.4 + width, 4.4).add_subplot()
    column = _stored_name(adata, basis) + SPREAD
    if spread and column in adata.obs:
        radius = np.nan_to_num(adata.obs[column].to_numpy(dtype=np.float64))
        place = fig.Look(units="xy", offsets=points, offset_transform=panel.transData)
        look = fig.Look(facecolors="none", edgecolors=fig.GREY, linewidths=0.8)
        size_ = fig.Look(widths=2 * radius, heights=2 * radius, angles=np.zeros(len(radius)))
        panel.add_collection(EllipseCollection(**size_, **place, **look))
        panel.update_datalim(np.vstack([points - radius[:, None], points + radius[:, None]]))
    _draw_panel(panel, points, values, styles, size or _size(points, 12))
    panel.set(xlabel=titles[0], ylabel=titles[1], title=color or "")
    panel.margins(0.12)
    panel.set_aspect("equal", adjustable="datalim")
    if names is not None:
        fig.settle(panel)  # places need the final layout
        fig.label_points(panel, points, names)
    return fig.finish(panel, ax, show=show, save=save)


def _stored_name(adata: AnnData, basis: str) -> str:
    name = basis if basis in adata.obsm else EMBEDDING_PREFIX + basis
    if name not in adata.obsm:
        found = ", ".join(map(repr, adata.obsm)) or "nothing"
        raise KeyError(
            f"obsm[{basis!r}] not found (obsm has {found}); run cfm.tl.embed(adata, "
            f"key_added={basis!r}) first, or pass basis=."
        )
    return name


def _two_dimensions(adata: AnnData, basis: str) -> tuple[np.ndarray, list[str]]:
    """Return ``(n, 2)`` coordinates and the titles of the axes."""
    name = _stored_name(adata, basis)
    values = np.asarray(adata.obsm[name], dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"obsm[{name!r}] has shape {values.shape}; expected at least one row and one column."
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"obsm[{name!r}] holds NaN or infinite values; run the tool that made it again."
        )
    n, d = values.shape
    points, share = np.zeros((n, 2)), np.zeros(2)
    if d <= 2:
        points[:, :d] = values
        short = name.removeprefix(EMBEDDING_PREFIX)
        return points, [f"{short} 1", f"{short} 2" if d == 2 else ""]
    found = min(2, n - 1)  # one observation has no spread, two lie on a line
    if found:
        pca = PCA(n_components=found, random_state=0)
        points[:, :found] = pca.fit_transform(values)
        share[:found] = np.nan_to_num(pca.explained_variance_ratio_)
    return points, [
        f"PC{i + 1} of {name} ({100 * part:.0f} % of variance)" for i, part in enumerate(share)
    ]


def _color_values(adata: AnnData, name: str) -> pd.Series:
    if name in adata.obs:
        return adata.obs[name]
    if name in adata.var_names:
        return sc.get.obs_df(adata, [name])[name]
    raise KeyError(
        f"color {name!r} is neither a column of obs ({', '.join(map(str, adata.obs))}) nor a gene "
        "in var_names."
    )


def _point_names(adata: AnnData, label: bool | str | None) -> list[str] | None:
    if label is False or (label is None and adata.n_obs > _NAMED_UP_TO):
        return None
    if isinstance(label, str):
        fig.require_columns(adata, label)
        return [fig.shorten(text, 26) for text in adata.obs[label]]
    return [fig.shorten(text, 26) for text in adata.obs_names]


def _size(points: np.ndarray, least: float) -> float:
    return float(np.clip(12_000 / len(points), least, 60))


def _categories(values: pd.Series) -> np.ndarray:
    return values.astype("string").fillna(_NOT_GIVEN).to_numpy(dtype=object)


def _shared_styles(columns: dict[str, pd.Series]) -> dict[str, fig.Style]:
    """Give a category one look in every panel: a virus called and the same virus known."""
    names: dict[str, None] = {}
    for values in columns.values():
        if _is_number(values):
            continue
        present = set(_categories(values))
        ordered = (
            map(str, values.cat.categories)
            if isinstance(values.dtype, pd.CategoricalDtype)
            else sorted(present - {_NOT_GIVEN})
        )
        names |= dict.fromkeys(name for name in [*ordered, _NOT_GIVEN] if name in present)
    return fig.category_styles(names) | (
        {_NOT_GIVEN: fig.Style(fig.GREY, ".")} if _NOT_GIVEN in names else {}
    )


def _draw_panel(
    ax: Axes,
    points: np.ndarray,
    values: pd.Series | None,
    styles: dict[str, fig.Style],
    size: float,
    **kwargs: Any,
) -> None:
    # scanpy gets a small AnnData of its own: it writes colours into the one it is given
    shown = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(len(points))]))
    shown.obsm["X_shown"] = points
    look = fig.Look(basis="shown", ax=ax, show=False, size=size, marker="o")
    if values is None:
        sc.pl.embedding(shown, **look | {"na_color": fig.GREY} | kwargs)
        return
    if _is_number(values):
        shown.obs["value"] = values.to_numpy()
        sc.pl.embedding(shown, **look | {"color": "value", "cmap": "viridis"} | kwargs)
        return
    group = _categories(values)
    present = [name for name in styles if name in set(group)]
    for name in present:
        part, (color, marker) = shown[group == name].copy(), styles[name]
        sc.pl.embedding(part, **look | {"na_color": color, "marker": marker} | kwargs)
        label = f"{fig.shorten(name, _LEGEND_CHARS)} ({int((group == name).sum())})"
        ax.scatter([], [], c=color, marker=marker, s=40, label=label)
    ax.legend(
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=8,
        ncols=_legend_columns(len(present)),
    )


def _legend_width(values: pd.Series) -> float:
    """Width in inches that the legend or colour bar of a panel takes."""
    if _is_number(values):
        return 0.8
    names = [fig.shorten(name, _LEGEND_CHARS) for name in values.unique()]
    return (0.085 * max(map(len, names)) + 0.8) * _legend_columns(len(names))


def _legend_columns(n_names: int) -> int:
    return 1 + (n_names - 1) // 18


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
