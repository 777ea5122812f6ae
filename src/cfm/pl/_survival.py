"""Kaplan–Meier curves by predicted risk."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from scipy import stats

from cfm._arguments import PART, checks_arguments
from cfm._fields import HIGH_RISK, LOW_RISK, PROBE_KEY, RISK_GROUP
from cfm.pl._checks import require_anndata
from cfm.pl._figure import figure_of, finish, new_figure
from cfm.pl._labels import shorten
from cfm.pl._palette import COLORS
from cfm.pl._probe import stored_probe

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

_LINES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (5, 2, 1.5, 2)),
    (0, (9, 2)),
    (0, (5, 2, 1.5, 2, 1.5, 2)),
)
#: More curves than this cannot be told apart, and more bands hide each other.
_MOST, _MOST_BANDS = len(_LINES), 3


@checks_arguments(confidence=PART)
def survival(
    adata: AnnData,
    *,
    key: str = PROBE_KEY,
    groupby: str | None = None,
    confidence: float | None = 0.95,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw Kaplan–Meier curves of observations with low and high predicted risk.

    Each observation was assigned by a model that had not seen it nor its group, at the median
    risk of that model's training observations. Bands are pointwise (log–log), ticks mark censored
    observations, and the numbers at risk stand below.

    Parameters
    ----------
    adata
        With the result of :func:`cfm.tl.probe` of a survival target.
    key
        Where it is stored (``key_added`` of that call).
    groupby
        Column of ``obs`` with other groups to draw, at most six, such as a stage.
    confidence
        Level of the bands, ``None`` for no bands; with more than three groups there are none.
    ax
        Draw here instead of into a new figure; leave room below for the numbers at risk.
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
        If no survival probe is stored under ``key``, or a column is missing.
    ValueError
        If there are no observations to draw, or more than six groups.

    Notes
    -----
    The p-value of the log-rank test (two groups) takes the groups for given. Groups that come from
    cross-validation are not independent of each other, so it is somewhat too small (Simon et al.
    2011); the interval of the C-index in ``uns[key]['results']`` says more.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.toy_bulk_cohort()
    >>> cfm.pp.tpm(adata)
    >>> outcome = ("time_days", "event")
    >>> cfm.tl.probe(
    ...     adata,
    ...     outcome,
    ...     "survival",
    ...     groups="study",
    ...     n_folds=3,
    ...     heads="cox",
    ...     layer="log_tpm",
    ... )
    >>> cfm.pl.survival(adata, show=False).get_xlabel()
    'time days'
    """
    require_anndata(adata)
    _, params = stored_probe(adata, key)
    if params["task"] != "survival":
        raise KeyError(
            f"uns[{key!r}] is a probe of a {params['task']} target; expected "
            "cfm.tl.probe(adata, (time, event), 'survival')."
        )
    time_name, event_name = map(str, params["target"])
    column = key + RISK_GROUP if groupby is None else groupby
    for name in (time_name, event_name, column):
        if name not in adata.obs:
            raise KeyError(f"obs has no column {name!r}; it has {list(map(str, adata.obs))}.")
    frame = pd.DataFrame(
        {
            "time": pd.to_numeric(adata.obs[time_name]).astype(np.float64),
            "event": pd.to_numeric(adata.obs[event_name]).astype(np.float64),
            "group": adata.obs[column],
        }
    ).dropna()
    if frame.empty:
        raise ValueError(f"no observation has {time_name!r}, {event_name!r} and {column!r}.")
    groups = _ordered(frame["group"])
    if len(groups) > _MOST:
        raise ValueError(f"{column!r} has {len(groups)} groups; at most {_MOST} can be told apart.")
    parts = {name: frame[frame["group"].astype(str) == name] for name in groups}

    owned = ax is None
    if ax is None:
        ax = new_figure(5.6, 3.6 + 0.35 * len(groups)).subplots()
    for i, (name, part) in enumerate(parts.items()):
        level = confidence if len(parts) <= _MOST_BANDS else None
        _curve(ax, part, _label(name, part, groupby), i, level)
    end = float(frame["time"].max())
    ax.set_xlim(-0.01 * end, 1.03 * end)
    ax.set_ylim(0, 1.03)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.set(xlabel=time_name.replace("_", " "), ylabel="share without the event")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(
        frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0), handlelength=3.2
    )
    if len(parts) == 2:
        p = _logrank(*parts.values())
        text = "log-rank p " + ("< 0.001" if p < 0.001 else f"= {p:.3f}")
        ax.text(0.99, 0.99, text, transform=ax.transAxes, ha="right", va="top", fontsize=9)
    _numbers_at_risk(ax, parts)
    finish(figure_of(ax), owned=owned, show=show, save=save)
    return ax


def _ordered(column: pd.Series) -> list[str]:
    """Groups that occur, in the order of their categories."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return [str(c) for c in column.cat.categories if (column == c).any()]
    return sorted(column.astype(str).unique())


def _label(name: str, part: pd.DataFrame, groupby: str | None) -> str:
    what = f"{name} risk" if groupby is None and name in (LOW_RISK, HIGH_RISK) else name
    return f"{shorten(what, 30)} (n = {len(part)}, {int(part['event'].sum())} events)"


def _curve(ax: Axes, part: pd.DataFrame, label: str, i: int, confidence: float | None) -> None:
    curve = stats.ecdf(_censored(part)).sf
    color = COLORS[i % len(COLORS)]
    # from everybody at the start to the last observation
    x = np.concatenate([[0.0], curve.quantiles, [part["time"].max()]])
    y = np.concatenate([[1.0], curve.probabilities, curve.probabilities[-1:]])
    ax.step(x, y, where="post", color=color, linestyle=_LINES[i % len(_LINES)], lw=1.8, label=label)
    if confidence is not None and part["event"].any():
        with warnings.catch_warnings():
            # before the first event and after the last there is no band
            warnings.filterwarnings("ignore", "The confidence interval is undefined")
            band = curve.confidence_interval(confidence, method="log-log")
        low, high = (
            np.concatenate([[1.0], side.probabilities, side.probabilities[-1:]])
            for side in (band.low, band.high)
        )
        known = np.isfinite(low) & np.isfinite(high)
        ax.fill_between(
            x[known], low[known], high[known], step="post", color=color, alpha=0.15, lw=0
        )
    ended = part.loc[part["event"] == 0, "time"].to_numpy()
    ax.plot(ended, curve.evaluate(ended), "|", color=color, markersize=6, markeredgewidth=1)


def _censored(part: pd.DataFrame) -> stats.CensoredData:
    return stats.CensoredData.right_censored(part["time"], part["event"] == 0)


def _logrank(a: pd.DataFrame, b: pd.DataFrame) -> float:
    return float(stats.logrank(_censored(a), _censored(b)).pvalue)


def _numbers_at_risk(ax: Axes, parts: dict[str, pd.DataFrame]) -> None:
    """Write below the axis how many are still observed at each tick."""
    low, high = ax.get_xlim()
    ticks = [tick for tick in ax.get_xticks() if max(low, 0) <= tick <= high]
    for row, (name, part) in enumerate([("at risk", None), *parts.items()]):
        below = -38 - 11 * row  # points under the axis: beneath the ticks and the label
        style: dict[str, Any] = {"va": "top", "fontsize": 8, "annotation_clip": False}
        ax.annotate(
            shorten(name, 14), (0, 0), (-14, below), xycoords="axes fraction",
            textcoords="offset points", ha="right", **style,
        )  # fmt: skip
        if part is None:
            continue
        color = COLORS[(row - 1) % len(COLORS)]
        for tick in ticks:
            ax.annotate(
                str(int((part["time"] >= tick).sum())), (tick, 0), (0, below),
                xycoords=ax.get_xaxis_transform(), textcoords="offset points", ha="center",
                color=color, **style,
            )  # fmt: skip
