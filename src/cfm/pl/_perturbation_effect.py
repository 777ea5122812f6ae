"""Effect of a perturbation on each gene, predicted against observed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D

from cfm._fields import SIMULATED_FROM
from cfm.pl._figure import figure_of, legend_below
from cfm.pl._labels import label_points, shorten
from cfm.pl._palette import COLORS, GREY
from cfm.pl._perturbation_cells import mean_log_expression

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from cfm.pl._perturbation_cells import Cells, Screen

_RIGHT, _WRONG = COLORS[0], COLORS[1]
#: With more points than this a figure in a vector format holds them as a picture.
_RASTER = 2000
#: Genes whose share of the correlation is shown.
_FEW = 3
#: A prediction this much smaller than the largest observed effect is "no change".
_FLAT = 1e-9


def mean_effects(screen: Screen, perturbation: str, group: str) -> tuple[np.ndarray, np.ndarray]:
    """Return observed and predicted change of mean log expression, ``(genes,)`` each.

    The observed one against the controls; the predicted one against what the same method made of
    the control if it did, else against the observations that it started from, else the controls.

    Raises
    ------
    ValueError
        If one of the three kinds of cells is missing, or their units differ.
    """
    within = group or None
    rows = {
        "observed cells": (screen.real, screen.real.rows(perturbation, within)),
        "control cells": (screen.real, screen.real.rows(screen.control, within)),
        "simulated cells": (screen.simulated, screen.simulated.rows(perturbation, within)),
    }
    for name, (_, found) in rows.items():
        if not len(found):
            place = f" in group {group!r}" if group else ""
            raise ValueError(
                f"There are no {name} of {perturbation!r}{place}; leave it out with group= or "
                "perturbation=."
            )
    start = _start(screen, rows["control cells"][1], rows["simulated cells"][1], within)
    observed, control, simulated, before = mean_log_expression([*rows.values(), start])
    return observed - control, simulated - before


def _start(
    screen: Screen, control: np.ndarray, simulated: np.ndarray, group: str | None
) -> tuple[Cells, np.ndarray]:
    """Return the cells that a prediction is a change of."""
    own = screen.simulated.rows(screen.control, group)
    if len(own):
        return screen.simulated, own
    if SIMULATED_FROM in screen.simulated.adata.obs:
        names = screen.simulated.adata.obs[SIMULATED_FROM].astype(str).to_numpy()[simulated]
        place = screen.real.adata.obs_names.get_indexer(names)
        if np.isin(place, control).all():
            return screen.real, place
    return screen.real, control


def draw_effect(
    ax: Axes,
    observed: np.ndarray,
    predicted: np.ndarray,
    genes: np.ndarray,
    *,
    title: str,
    n_top: int,
    n_named: int,
    n_unpredicted: int,
) -> tuple[np.ndarray, list[str]]:
    """Draw one point for each gene, the line of a perfect prediction, and the strongest genes.

    Returns
    -------
    Places of the strongest genes, ``(n_top, 2)``, and the names to write there.
    """
    size = np.abs(observed)
    order = np.lexsort([np.arange(len(size)), -size])
    top = order[:n_top][size[order[:n_top]] > 0]
    rest = np.setdiff1d(np.arange(len(observed)), top)
    floor = _FLAT * max(size.max(), 1.0)
    right = (np.sign(observed) == np.sign(predicted)) & (np.abs(predicted) > floor)

    raster = len(observed) > _RASTER
    _limits(ax, observed, predicted)
    ax.axhline(0, color="#C8C8C8", linewidth=0.8, zorder=0)
    ax.axvline(0, color="#C8C8C8", linewidth=0.8, zorder=0)
    ax.axline((0, 0), slope=1, color="#222222", linestyle=(0, (4, 3)), linewidth=1.0, zorder=1)
    ax.scatter(
        observed[rest],
        predicted[rest],
        s=7,
        color=GREY,
        alpha=0.55,
        linewidths=0,
        rasterized=raster,
        zorder=2,
    )
    shown = [(top[right[top]], "o", _RIGHT), (top[~right[top]], "s", _WRONG)]
    for part, marker, color in shown:
        ax.scatter(
            observed[part],
            predicted[part],
            s=24,
            marker=marker,
            color=color,
            edgecolors="white",
            linewidths=0.5,
            zorder=3,
        )
    ax.set_xlabel("observed effect (change of mean log expression)", fontsize=8)
    ax.set_ylabel("predicted effect", fontsize=8)
    ax.set_title(f"{shorten(title, 44)}\n{_agreement(observed, predicted)}", fontsize=9, loc="left")
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    legend_below(ax, _key(shown, len(rest), n_unpredicted), columns=2)
    names = [shorten(str(genes[i]), 13) if k < n_named else "" for k, i in enumerate(top)]
    return np.column_stack([observed, predicted])[top], names


def name_genes(panels: Sequence[tuple[Axes, np.ndarray, list[str]]]) -> None:
    """Write the names that :func:`draw_effect` gave, once every panel has its final size."""
    if panels:
        figure_of(panels[0][0]).draw_without_rendering()
    for ax, points, names in panels:
        inside = ax.get_window_extent().padded(-3)
        label_points(ax, points, names, radius=3.0, frame=inside, halo="white")


def _limits(ax: Axes, observed: np.ndarray, predicted: np.ndarray) -> None:
    """Give both axes the same range: only then does the diagonal look like one."""
    low = min(observed.min(), predicted.min(), 0.0)
    high = max(observed.max(), predicted.max(), 0.0)
    room = 0.08 * (high - low) or 1.0
    ax.set_xlim(low - room, high + room)
    ax.set_ylim(low - room, high + room)
    ax.set_aspect("equal", adjustable="box")


def _agreement(observed: np.ndarray, predicted: np.ndarray) -> str:
    error = f"RMSE {np.sqrt(((observed - predicted) ** 2).mean()):.3f}"
    if min(np.ptp(observed), np.ptp(predicted)) <= _FLAT * max(1.0, np.abs(observed).max()):
        return f"Pearson not defined (no change), {error}"
    pearson = np.corrcoef(observed, predicted)[0, 1]
    products = (observed - observed.mean()) * (predicted - predicted.mean())
    first = products[np.argsort(-np.abs(products), kind="stable")[:_FEW]].sum() / products.sum()
    share = f" ({_FEW} genes make {100 * first:.0f}\N{NO-BREAK SPACE}%)"
    return f"Pearson {pearson:.2f}{share}, {error}".replace("-", "−")


def _key(shown: list[tuple[np.ndarray, str, str]], n_rest: int, n_unpredicted: int) -> list[Line2D]:
    (right, *_), (wrong, *_) = shown
    n_top = len(right) + len(wrong)
    texts = [
        f"right direction ({len(right)} of top {n_top})",
        f"wrong or none ({len(wrong)} of top {n_top})",
    ]
    handles = [
        Line2D([], [], ls="", marker=marker, color=color, ms=5, label=text)
        for (part, marker, color), text in zip(shown, texts, strict=True)
        if len(part)
    ]
    handles.append(
        Line2D([], [], ls="", marker=".", color=GREY, ms=5, label=f"other genes ({n_rest:,})")
    )
    handles.append(Line2D([], [], color="#222222", ls=(0, (4, 3)), lw=1.0, label="identity"))
    if n_unpredicted:
        handles.append(Line2D([], [], ls="", label=f"not predicted ({n_unpredicted:,})"))
    return handles
