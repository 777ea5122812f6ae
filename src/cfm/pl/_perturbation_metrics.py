"""Scores of predicted perturbations: models beside baselines and the ceiling of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from cfm._arguments import checks_arguments
from cfm._fields import BASELINES, CEILING, SCORE_COLUMNS
from cfm.pl import _figure as fig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

#: With fewer cases the methods cannot be ranked.
_LEAST_CASES = 3
_LABELS = {
    "delta_pearson": "Pearson of effects",
    "e_distance": "E-distance",
    "mmd": "MMD",
    "direction_accuracy": "direction of top genes",
    "delta_pearson_top": "Pearson of top effects",
    "delta_cosine": "cosine of effects",
    "delta_r2": "R² of effects",
    "discrimination_score_cosine": "discrimination score (cosine)",
}
_EXTERNAL = "cell_eval:"
_CASE = ["group", "perturbation"]
#: Height of a row, width of bars and of a character, in inches.
_ROW, _BARS, _CHAR = 0.27, 2.5, 0.072


@checks_arguments()
@fig.documented
def perturbation_metrics(
    scores: pd.DataFrame,
    *,
    metric: str | Sequence[str] | None = None,
    perturbation: str | Sequence[str] | None = None,
    group: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | dict[str, Axes]:
    """Draw scores of simulated perturbations as bars: models, baselines, ceiling of the data.

    A panel for each metric. A bar is the mean over groups and perturbations, which are the dots;
    the dashed line is the ceiling. Bold is the method, or baseline, that is ahead of each other by
    two standard errors over the cases that both were scored in; none with fewer than three cases.

    Parameters
    ----------
    scores
        Table of :func:`cfm.tl.evaluate_perturbation`.
    metric
        Which to draw; ``None`` draws all that are defined anywhere, but not those of cell-eval.
    perturbation, group
        Which to draw; ``None`` draws the means over all.
    %(panel)s

    Returns
    -------
    The Axes drawn on; with several metrics a dict from metric to Axes.

    Raises
    ------
    TypeError
        If ``scores`` is no table.
    KeyError
        If a column, metric, perturbation or group is not there.
    ValueError
        If the table is empty, or ``ax`` is given with several metrics.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_perturbation(n_cells=600)
    >>> columns = {"key": "perturbation", "control": "control"}
    >>> simulated = cfm.tl.simulate_perturbation(cells, "IFNB1", model="mean_shift", **columns)
    >>> scores = cfm.tl.evaluate_perturbation(cells, {"mine": simulated}, **columns)
    >>> ax = cfm.pl.perturbation_metrics(scores, metric="delta_pearson", show=False)
    >>> [label.get_text() for label in ax.get_yticklabels()][:2]
    ['mine', 'control']
    """
    if not isinstance(scores, pd.DataFrame):
        raise TypeError(
            f"scores is a {type(scores).__name__}; expected the table of "
            "cfm.tl.evaluate_perturbation(real, simulated, …)."
        )
    if missing := [name for name in SCORE_COLUMNS if name not in scores]:
        raise KeyError(
            f"the table has no column {', '.join(missing)}; expected that of "
            "cfm.tl.evaluate_perturbation."
        )
    texts = ["group", "perturbation", "metric", "method"]
    table = scores.astype(dict.fromkeys(texts, str))
    for column, wanted in (("perturbation", perturbation), ("group", group)):
        table = table[
            table[column].isin(fig.pick(column, wanted, table[column].unique(), "scores"))
        ]
    if table.empty:
        raise ValueError("The table of scores has no rows for these arguments.")
    found = list(table["metric"].unique())
    metrics = fig.pick("metric", metric, found, "scores")
    if metric is None:
        # one that is defined nowhere, such as discrimination of a single perturbation, is left out
        defined = set(table.loc[np.isfinite(table["value"]), "metric"])
        own = [name for name in found if not name.startswith(_EXTERNAL) and name in defined]
        metrics = own or found
    methods = _methods(table)
    side = _CHAR * max(len(fig.shorten(name, 30)) for name in methods)
    size = (_BARS + 0.2, 0.95 + _ROW * len(methods))
    panels = fig.open_panels(metrics, ax, *size, argument="metric", extra=(side, 0.35))
    drawn = list(panels.values())
    left = min(panel.get_position().x0 for panel in drawn)
    for panel in drawn:  # the names of methods stand on the left ones only
        first = panel.get_position().x0 < left + 1e-3
        fig.name_rows(panel, [fig.shorten(m, 30) if first else "" for m in methods])
    for name, panel in panels.items():
        _draw(panel, table[table["metric"] == name], name, methods)
    if ax is not None:
        fig.legend_below(ax, _key(table), columns=1)
    else:
        fig.figure_of(drawn[0]).legend(
            handles=_key(table),
            loc="outside lower left",
            ncols=1 if len(drawn) == 1 else 2,
            frameon=False,
            fontsize=7.5,
            columnspacing=1.2,
        )
    return fig.one_or_all(fig.finish(panels, ax, show=show, save=save), metric)


def _draw(ax: Axes, own: pd.DataFrame, metric: str, methods: list[str]) -> None:
    """Draw a bar for the mean of each method, a dot for each case, a line at the ceiling."""
    higher = bool(own["higher_is_better"].iloc[0])
    several = own.groupby(_CASE, sort=False).ngroups > 1
    mean = own.groupby("method")["value"].mean().reindex(methods)
    best = _clearly_best(own[own["method"] != CEILING], higher)
    bars = mean.fillna(0.0).to_numpy(dtype=np.float64)
    tips, dots = [], []
    for row, method in enumerate(methods):
        ax.barh(row, bars[row], height=0.62, **_look(method), linewidth=0.8, zorder=2)
        values = own.loc[own["method"] == method, "value"].to_numpy(dtype=np.float64)
        known = values[np.isfinite(values)]
        cases = known if several else known[:0]
        if len(cases):  # equal values do not cover each other
            spread = 0.18 * np.sin(2.4 * np.arange(len(cases))) * (len(cases) > 1)
            look = fig.Look(color=fig.INK, alpha=0.55, markersize=3, zorder=3)
            ax.plot(cases, row + spread, ".", **look)
        dots.extend(cases)
        text = "not defined" if not len(known) else fig.minus(f"{mean.iloc[row]:#.3g}".rstrip("."))
        if 0 < len(known) < len(values):
            text += f" ({len(known)} of {len(values)})"
        look = fig.Look(fontsize=7.5, fontweight="bold" if method == best else "normal", zorder=4)
        look |= {"annotation_clip": False, "in_layout": False}
        look["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]
        tips.append(fig.write_tip(ax, text, max([0.0, bars[row], *cases]), row, **look))
    ceiling = mean.get(CEILING, np.nan)
    if np.isfinite(ceiling):
        ax.axvline(ceiling, color=fig.INK, linestyle=fig.DASHED, linewidth=1.0, zorder=1)
    ax.axvline(0, color=fig.AXIS, linewidth=0.8, zorder=2.5)
    label = _LABELS.get(metric, metric.removeprefix(_EXTERNAL).replace("_", " "))
    better = "higher is better →" if higher else "← lower is better"
    ax.set_title(f"{fig.shorten(label, 34)}\n{better}", fontsize=8.5, loc="left")
    fig.tidy(ax, "left")
    ax.tick_params(axis="x", labelsize=7.5)
    ax.locator_params(axis="x", nbins=4)
    ax.grid(axis="x", color="#E8E8E8", linewidth=0.8, zorder=0)
    ax.set_axisbelow(True)
    fig.room_for_tips(ax, np.array([*bars, *dots]), tips)


def _clearly_best(own: pd.DataFrame, higher: bool) -> str | None:
    """Return the method that is ahead of each other by two standard errors over the same cases."""
    wide = own.pivot_table(index=_CASE, columns="method", values="value", observed=True)
    wide = wide.loc[:, wide.notna().sum() == wide.notna().sum().max()].dropna()
    if len(wide) < _LEAST_CASES:
        return None
    wide = wide if higher else -wide
    best = str(wide.mean().idxmax())
    ahead = wide.drop(columns=best).rsub(wide[best], axis=0)
    error = ahead.std() / np.sqrt(len(ahead))
    return best if bool((ahead.mean() > 2 * error).all()) else None


def _methods(table: pd.DataFrame) -> list[str]:
    """Order the methods: models, baselines, the ceiling."""
    found = list(table["method"].unique())
    models = [name for name in found if name not in (*BASELINES, CEILING)]
    return [*models, *(name for name in (*BASELINES, CEILING) if name in found)]


def _look(method: str) -> dict[str, Any]:
    if method == CEILING:
        return {"facecolor": "white", "edgecolor": fig.INK, "hatch": "////"}
    color = "#B9BDC4" if method in BASELINES else fig.COLORS[0]
    return {"facecolor": color, "edgecolor": color}


def _key(table: pd.DataFrame) -> list[Patch]:
    methods = set(_methods(table))
    parts = (
        ("model", "model", bool(methods - {*BASELINES, CEILING})),
        ("baseline", BASELINES[0], bool(methods & set(BASELINES))),
        ("ceiling: half of the real cells against the other half", CEILING, CEILING in methods),
    )
    handles = [Patch(label=text, **_look(example)) for text, example, there in parts if there]
    cases = table.groupby(_CASE).ngroups
    dots = f"; dots: {cases} cases" if cases > 1 else ""
    return [*handles, Patch(alpha=0, label=f"bold: best by two standard errors{dots}")]
