"""Scatter plot of an embedding, on top of scanpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from sklearn.decomposition import PCA

from cfm._arguments import checks_arguments
from cfm._fields import EMBEDDING_PREFIX
from cfm.pl._checks import require_anndata
from cfm.pl._figure import figure_of, finish, new_figure
from cfm.pl._labels import label_points, shorten
from cfm.pl._palette import GREY, Style, category_styles

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
    components; the axis labels say so and how much variance each carries. Categories differ in
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
    ax
        Draw here instead of into a new figure (one ``color`` at most).
    show
        Show the figure. ``False`` closes it; the returned Axes can still be saved.
    save
        File to write the figure to.
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
    require_anndata(adata)
    name, vectors = _stored_embedding(adata, basis)
    colors: list[str | None] = [color] if color is None or isinstance(color, str) else list(color)
    if not colors:
        raise ValueError("color is an empty list; pass None or at least one column.")
    if len(set(colors)) < len(colors):
        raise ValueError(f"color={color!r} names a column twice; expected each once.")
    if ax is not None and len(colors) > 1:
        raise ValueError(f"ax= takes one panel, but {len(colors)} colours were asked for.")
    columns = {c: _color_values(adata, c) for c in colors if c is not None}
    styles = _shared_styles(columns)
    names = _point_names(adata, label)
    points, axis_titles = _two_dimensions(vectors, name)

    owned = ax is None
    if ax is None:
        figure = new_figure(4.0 * len(colors) + sum(map(_legend_width, columns.values())), 4.2)
        panels = list(figure.subplots(1, len(colors), squeeze=False)[0])
    else:
        panels = [ax]
    if size is None:
        size = float(np.clip(12_000 / len(points), 6, 60))
    for panel, column in zip(panels, colors, strict=True):
        values = None if column is None else columns[column]
        _draw_panel(panel, points, values, styles, size, kwargs)
        panel.set(xlabel=axis_titles[0], ylabel=axis_titles[1], title=column or "")
        panel.margins(0.12)
    if names is not None:
        figure_of(panels[0]).draw_without_rendering()  # places need the final layout
        for panel in panels:
            label_points(panel, points, names)
    finish(figure_of(panels[0]), owned=owned, show=show, save=save)
    if color is None or isinstance(color, str):
        return panels[0]
    return {str(c): panel for c, panel in zip(colors, panels, strict=True)}


def _stored_embedding(adata: AnnData, basis: str) -> tuple[str, np.ndarray]:
    name = basis if basis in adata.obsm else EMBEDDING_PREFIX + basis
    if name not in adata.obsm:
        found = ", ".join(map(repr, adata.obsm)) or "nothing"
        raise KeyError(
            f"obsm[{basis!r}] not found (obsm has {found}); run cfm.tl.embed(adata, "
            f"key_added={basis!r}) first, or pass basis=."
        )
    values = np.asarray(adata.obsm[name], dtype=np.float64)
    if values.ndim != 2 or values.shape[0] == 0 or values.shape[1] < 1:
        raise ValueError(
            f"obsm[{name!r}] has shape {values.shape}; expected at least one row and one column."
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"obsm[{name!r}] holds NaN or infinite values; run the tool that made it again."
        )
    return name, values


def _color_values(adata: AnnData, name: str) -> pd.Series:
    if name in adata.obs:
        return adata.obs[name]
    if name in adata.var_names:
        found: pd.Series = sc.get.obs_df(adata, [name])[name]
        return found
    raise KeyError(
        f"color {name!r} is neither a column of obs ({', '.join(map(str, adata.obs))}) nor a gene "
        "in var_names."
    )


def _point_names(adata: AnnData, label: bool | str | None) -> list[str] | None:
    if label is False or (label is None and adata.n_obs > _NAMED_UP_TO):
        return None
    if isinstance(label, str):
        if label not in adata.obs:
            raise KeyError(
                f"obs has no column {label!r} to label points with; expected one of "
                f"{', '.join(map(str, adata.obs))}."
            )
        return [shorten(str(text), 26) for text in adata.obs[label]]
    return [shorten(text, 26) for text in adata.obs_names]


def _categories(values: pd.Series) -> np.ndarray:
    return values.astype("string").fillna(_NOT_GIVEN).to_numpy(dtype=object)


def _shared_styles(columns: dict[str, pd.Series]) -> dict[str, Style]:
    """Give a category one look in every panel: a virus called and the same virus known."""
    names: list[str] = []
    for values in columns.values():
        if _is_number(values):
            continue
        ordered = (
            map(str, values.cat.categories)
            if isinstance(values.dtype, pd.CategoricalDtype)
            else sorted(set(_categories(values)))
        )
        present = set(_categories(values))
        names += [name for name in ordered if name in present and name not in names]
        if _NOT_GIVEN in present and _NOT_GIVEN not in names:
            names.append(_NOT_GIVEN)
    return category_styles(names) | ({_NOT_GIVEN: Style(GREY, ".")} if _NOT_GIVEN in names else {})


def _two_dimensions(values: np.ndarray, name: str) -> tuple[np.ndarray, tuple[str, str]]:
    """Return ``(n, 2)`` coordinates and the titles of the axes."""
    short = name.removeprefix(EMBEDDING_PREFIX)
    n, d = values.shape
    if d <= 2:
        points = np.zeros((n, 2))
        points[:, :d] = values
        return points, (f"{short} 1", f"{short} 2" if d == 2 else "")
    points = np.zeros((n, 2))
    share = np.zeros(2)
    found = min(2, n - 1)  # one observation has no spread, two lie on a line
    if found:
        pca = PCA(n_components=found, random_state=0)
        points[:, :found] = pca.fit_transform(values)
        share[:found] = np.nan_to_num(pca.explained_variance_ratio_)
    first, second = (
        f"PC{i + 1} of {name} ({100 * part:.0f} % of variance)" for i, part in enumerate(share)
    )
    return points, (first, second)


def _draw_panel(
    ax: Axes,
    points: np.ndarray,
    values: pd.Series | None,
    styles: dict[str, Style],
    size: float,
    kwargs: dict[str, Any],
) -> None:
    # scanpy gets a small AnnData of its own: it writes colours into the one it is given
    shown = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(len(points))]))
    shown.obsm["X_shown"] = points
    if values is None:
        _scanpy(shown, ax, size=size, na_color=GREY, **kwargs)
        return
    if _is_number(values):
        shown.obs["value"] = values.to_numpy()
        _scanpy(shown, ax, size=size, color="value", **({"cmap": "viridis"} | kwargs))
        return
    group = _categories(values)
    present = [name for name in styles if name in set(group)]
    for name in present:
        part, style = shown[group == name].copy(), styles[name]
        _scanpy(part, ax, na_color=style.color, marker=style.marker, size=size, **kwargs)
        ax.scatter([], [], c=style.color, marker=style.marker, s=40, label=_with_count(name, group))
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
    names = [shorten(str(name), _LEGEND_CHARS) for name in values.unique()]
    return (0.085 * max(map(len, names)) + 0.8) * _legend_columns(len(names))


def _legend_columns(n_names: int) -> int:
    return 1 + (n_names - 1) // 18


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _with_count(name: str, group: np.ndarray) -> str:
    return f"{shorten(name, _LEGEND_CHARS)} ({int((group == name).sum())})"


def _scanpy(adata: AnnData, ax: Axes, **kwargs: Any) -> None:
    sc.pl.embedding(adata, "shown", ax=ax, show=False, **kwargs)
