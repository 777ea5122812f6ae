"""Scores of predicted perturbations: models beside baselines and the ceiling of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from cfm._fields import BASELINES, CEILING, SCORE_COLUMNS
from cfm.pl._figure import figure_of, legend_below, new_figure
from cfm.pl._labels import room_for_tips, shorten
from cfm.pl._palette import COLORS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

#: Fewer cases say nothing of which method is best.
_LEAST_CASES = 3
_LABELS = {
    "delta_pearson": "Pearson of effects",
    "e_distance": "E-distance",
    "mmd": "MMD",
    "direction_accuracy": "direction of top genes",
    "discrimination_score": "discrimination score",
    "delta_pearson_top": "Pearson of top effects",
    "delta_cosine": "cosine of effects",
    "delta_r2": "R² of effects",
    "discrimination_score_cosine": "discrimination score (cosine)",
}
_EXTERNAL = "cell_eval:"
#: Panels beside each other, height of a row and width of bars, in inches.
_ACROSS, _ROW, _BARS, _CHAR = 3, 0.27, 2.5, 0.072


def read_scores(
    table: pd.DataFrame,
    *,
    metric: str | Sequence[str] | None,
    perturbation: str | Sequence[str] | None,
    group: str | Sequence[str] | None,
) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows to draw and the metrics, in the order of the table.

    Raises
    ------
    KeyError
        If a column, metric, perturbation or group is not there.
    ValueError
        If nothing is left to draw.
    """
    missing = [name for name in SCORE_COLUMNS if name not in table]
    if missing:
        raise KeyError(
            f"the table has no column {', '.join(missing)}; expected that of "
            "cfm.tl.evaluate_perturbation."
        )
    table = table.copy()
    for column in ("group", "perturbation", "metric", "method"):
        table[column] = table[column].astype(str)
    for column, wanted in (("perturbation", perturbation), ("group", group)):
        if wanted is not None:
            table = table[table[column].isin(_known(table, column, wanted))]
    if table.empty:
        raise ValueError("The table of scores has no rows for what was asked.")
    metrics = list(table["metric"].unique())
    if metric is None:
        # one that is defined nowhere, such as discrimination of a single perturbation, says nothing
        defined = set(table.loc[np.isfinite(table["value"]), "metric"])
        own = [name for name in metrics if not name.startswith(_EXTERNAL) and name in defined]
        return table, own or metrics
    return table, _known(table, "metric", metric)


def score_axes(metrics: list[str], table: pd.DataFrame, ax: Axes | None) -> dict[str, Axes]:
    """Give each metric a panel; the names of methods stand on the left ones only.

    Raises
    ------
    ValueError
        If ``ax`` is given with several metrics.
    """
    if ax is not None:
        if len(metrics) > 1:
            raise ValueError(
                f"ax= takes one panel, but there are {len(metrics)} metrics "
                f"({', '.join(metrics)}); pass metric=."
            )
        return {metrics[0]: ax}
    across = 2 if len(metrics) == 4 else min(_ACROSS, len(metrics))
    down = -(-len(metrics) // across)
    methods = _methods(table)
    side = _CHAR * max(len(shorten(name, 30)) for name in methods)
    figure = new_figure(side + (_BARS + 0.2) * across, (0.95 + _ROW * len(methods)) * down + 0.35)
    panels = np.ravel(figure.subplots(down, across, squeeze=False))
    for unused in panels[len(metrics) :]:
        unused.remove()
    return dict(zip(metrics, panels, strict=False))


def draw_scores(panels: dict[str, Axes], table: pd.DataFrame, *, owned: bool) -> None:
    """Draw a bar for the mean of each method, a dot for each case, a line at the ceiling."""
    methods = _methods(table)
    axes = list(panels.values())
    left = {round(ax.get_position().x0, 3) for ax in axes}
    for ax in axes:
        first = round(ax.get_position().x0, 3) == min(left)
        ax.set_yticks(
            range(len(methods)), [shorten(m, 30) if first else "" for m in methods], fontsize=8
        )
    for name, ax in panels.items():
        _draw(ax, table[table["metric"] == name], name, methods)
    if figure_of(axes[0]).get_layout_engine() is None or not owned:
        legend_below(axes[0], _key(table), columns=1)
        return
    figure_of(axes[0]).legend(
        handles=_key(table),
        loc="outside lower left",
        ncols=1 if len(axes) == 1 else 2,
        frameon=False,
        fontsize=7.5,
        columnspacing=1.2,
    )


def _draw(ax: Axes, own: pd.DataFrame, metric: str, methods: list[str]) -> None:
    higher = bool(own["higher_is_better"].iloc[0])
    cases = own.groupby(["group", "perturbation"], sort=False).ngroups
    mean = own.groupby("method")["value"].mean().reindex(methods)
    best = _clearly_best(own[own["method"] != CEILING], higher)
    bars = mean.fillna(0.0).to_numpy(dtype=np.float64)
    tips = []
    dots = own["value"].to_numpy(dtype=np.float64)
    for row, method in enumerate(methods):
        ax.barh(row, bars[row], height=0.62, **_look(method), linewidth=0.8, zorder=2)
        values = own.loc[own["method"] == method, "value"].to_numpy(dtype=np.float64)
        known = values[np.isfinite(values)]
        if cases > 1:
            ax.plot(
                known,
                row + _spread(len(known)),
                ".",
                color="#222222",
                alpha=0.55,
                markersize=3,
                zorder=3,
            )
        text = "not defined" if not len(known) else _number(mean.iloc[row])
        if 0 < len(known) < len(values):
            text += f" ({len(known)} of {len(values)})"
        end = max([0.0, bars[row], *(known if cases > 1 else ())])
        tips.append(
            ax.annotate(
                text,
                (end, row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                fontweight="bold" if method == best else "normal",
                annotation_clip=False,
                in_layout=False,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                zorder=4,
            )
        )
    ceiling = mean.get(CEILING, np.nan)
    if np.isfinite(ceiling):
        ax.axvline(ceiling, color="#222222", linestyle=(0, (4, 3)), linewidth=1.0, zorder=1)
    ax.axvline(0, color="#777777", linewidth=0.8, zorder=2.5)
    ax.set_ylim(len(methods) - 0.4, -0.6)
    label = _LABELS.get(metric, metric.removeprefix(_EXTERNAL).replace("_", " "))
    better = "higher is better →" if higher else "← lower is better"
    ax.set_title(f"{shorten(label, 34)}\n{better}", fontsize=8.5, loc="left")
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=7.5)
    ax.locator_params(axis="x", nbins=4)
    ax.grid(axis="x", color="#E8E8E8", linewidth=0.8, zorder=0)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    shown = dots[np.isfinite(dots)] if cases > 1 else np.array([])
    room_for_tips(ax, np.concatenate([bars, shown]), tips)


def _clearly_best(own: pd.DataFrame, higher: bool) -> str | None:
    """Return the method that is ahead of each other by two standard errors over the same cases."""
    wide = own.pivot_table(
        index=["group", "perturbation"], columns="method", values="value", observed=True
    )
    wide = wide.loc[:, wide.notna().sum() == wide.notna().sum().max()].dropna()
    if len(wide) < _LEAST_CASES:
        return None
    mean = wide.mean() if higher else -wide.mean()
    best = str(mean.idxmax())
    ahead = wide.drop(columns=best).rsub(wide[best], axis=0) * (1 if higher else -1)
    error = ahead.std() / np.sqrt(len(ahead))
    return best if bool((ahead.mean() > 2 * error).all()) else None


def _methods(table: pd.DataFrame) -> list[str]:
    """Order the methods: models, baselines, the ceiling."""
    found = list(table["method"].unique())
    models = [name for name in found if name not in BASELINES and name != CEILING]
    baselines = [name for name in BASELINES if name in found]
    return [*models, *baselines, *([CEILING] if CEILING in found else [])]


def _look(method: str) -> dict[str, Any]:
    if method == CEILING:
        return {"facecolor": "white", "edgecolor": "#222222", "hatch": "////"}
    color = "#B9BDC4" if method in BASELINES else COLORS[0]
    return {"facecolor": color, "edgecolor": color}


def _key(table: pd.DataFrame) -> list[Patch]:
    methods = _methods(table)
    cases = table.groupby(["group", "perturbation"]).ngroups
    parts = (
        ("model", "model", any(m not in BASELINES and m != CEILING for m in methods)),
        ("baseline", "control", any(m in BASELINES for m in methods)),
        ("ceiling: half of the real cells against the other half", CEILING, CEILING in methods),
    )
    handles = [Patch(label=text, **_look(example)) for text, example, there in parts if there]
    dots = f"; dots: {cases} cases" if cases > 1 else ""
    return [*handles, Patch(alpha=0, label=f"bold: best by two standard errors{dots}")]


def _number(value: float) -> str:
    return f"{value:#.3g}".rstrip(".").replace("-", "−")


def _spread(n: int) -> np.ndarray:
    """Offsets from the middle of a bar, so that equal values do not cover each other."""
    return 0.18 * np.sin(2.4 * np.arange(n)) if n > 1 else np.zeros(n)


def _known(table: pd.DataFrame, column: str, wanted: str | Sequence[str]) -> list[str]:
    names = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
    if not names:
        raise ValueError(f"{column} is an empty list; pass None for all or name at least one.")
    found = list(table[column].unique())
    if missing := [name for name in names if name not in found]:
        raise KeyError(f"no {column} {missing} in the table; there are {found[:12]}.")
    return names
