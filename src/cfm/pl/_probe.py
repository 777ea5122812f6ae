"""Results of probes: scores beside what plain expression reaches, and survival by risk."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from scipy import stats

from cfm import get
from cfm._adata import params_of
from cfm._arguments import PART, checks_arguments
from cfm._fields import (
    HIGH_RISK,
    LOW_RISK,
    MEAN_TARGET,
    NO_FEATURES,
    PLAIN_EXPRESSION,
    PROBE_KEY,
    RISK_GROUP,
)
from cfm.pl import _figure as fig
from cfm.pl._predictions import Classes, draw_classes, draw_predicted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

_DEFAULT = {
    "classification": "balanced_accuracy",
    "regression": "pearson",
    "survival": "c_index",
}
_LABELS = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "r2": "R²",
    "mae": "mean absolute error (smaller = better)",
    "c_index": "C-index",
    "auroc_t": "time-dependent AUROC",
    "brier_t": "Brier score (smaller = better)",
}
#: Vertical distance of two heads of one representation, in rows.
_STEP = 0.24


@checks_arguments()
@fig.documented
def probe(
    adata: AnnData,
    *,
    kind: Literal[
        "scores", "roc", "precision_recall", "confusion", "calibration", "predicted"
    ] = "scores",
    key: str = PROBE_KEY,
    metric: str | Sequence[str] | None = None,
    target: str | None = None,
    label: str | None = None,
    use_rep: str | Sequence[str] | None = None,
    head: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | dict[str, Axes]:
    """Draw how well each representation predicts the target, and what a baseline reaches.

    ``"scores"``: a row is a representation, the last one the principal components of plain
    expression; a marker is a head, its line the bootstrap interval, its number on the right. The
    dashed line is the trivial predictor, which sees no features. With several targets a marker is
    their mean, and the small dots are the targets.

    The other kinds draw the out-of-fold predictions. ``"roc"`` and ``"precision_recall"``: a curve
    for each representation, the mean over the folds as in the scores, with its area in the legend
    and the line of chance. ``"confusion"``: counts of each true and predicted class; shades are
    shares of the row. ``"calibration"``: share that is right by predicted probability, with the
    observations of each bin. ``"predicted"``: predicted against true values, with the correlation
    within folds and its bootstrap interval.

    Parameters
    ----------
    adata
        With the result of :func:`cfm.tl.probe`.
    kind
        What to draw.
    %(key)s
    metric
        For ``"scores"``: by default ``"balanced_accuracy"``, ``"pearson"`` or ``"c_index"``.
        Several make a panel each.
    target
        One of several targets; ``"scores"`` draws their mean by default.
    label
        Class of a curve or a calibration. By default the second of two; of more classes their mean,
        and in calibration the most probable class of each observation.
    use_rep
        Representations to draw. By default all of the scores and curves, and the first of the other
        kinds; several make a panel each there.
    head
        Head to draw: by default all of the scores, and the first of the other kinds.
    %(panel)s

    Returns
    -------
    The Axes drawn on; with several metrics or panels a dict from metric or representation to Axes.

    Raises
    ------
    KeyError
        If :func:`cfm.tl.probe` was not run, or has no such metric, target, class, representation or
        head.
    ValueError
        If ``kind`` does not fit the task, an argument does not go with ``kind``, ``ax`` is given
        with several panels, no metric is named, or the truth has one class.

    Notes
    -----
    Curves of several seeds are those of the mean predictions, so their areas differ a little from
    the scores, which are means over the seeds.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.toy_bulk_cohort()
    >>> cfm.pp.tpm(adata)
    >>> cfm.tl.probe(adata, "disease", groups="study", n_folds=3, layer="log_tpm")
    >>> ax = cfm.pl.probe(adata, show=False)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['expression', 'expression PCA']
    >>> cfm.pl.probe(adata, kind="roc", show=False).get_ylabel()
    'true positive rate'
    """
    fig.require_anndata(adata)
    misplaced = {
        "metric": metric is not None and kind != "scores",
        "target": target is not None and kind not in ("scores", "predicted"),
        "label": label is not None and kind in ("scores", "confusion", "predicted"),
    }
    if wrong := [name for name, is_wrong in misplaced.items() if is_wrong]:
        raise ValueError(f"{wrong[0]}= does not go with kind={kind!r}; leave it out.")
    results, params = get.probe_scores(adata, key=key), params_of(adata.uns, key)
    where = f"uns[{key!r}]"
    seen = results[results["representation"] != NO_FEATURES]
    names = fig.pick("use_rep", use_rep, seen["representation"].unique(), where)
    heads = fig.pick("head", head, seen["head"].unique(), where)
    if kind != "scores":
        curves = kind in ("roc", "precision_recall")
        shown = names if use_rep is not None or curves else names[:1]
        panels = _draw_predictions(adata, key, kind, target, label, shown, heads[0], ax)
        wanted = None if curves else use_rep
        return fig.one_or_all(fig.finish(panels, ax, show=show, save=save), wanted)
    wanted = _DEFAULT[str(params["task"])] if metric is None else metric
    metrics = fig.pick("metric", wanted, results["metric"].unique(), where)
    target = fig.pick("target", target, results["target"].unique(), where)[0]
    side = 0.075 * max(len(fig.shorten(name, 30)) for name in names)
    height = 1.1 + len(names) * max(0.45, 0.26 * len(heads))
    panels = fig.open_panels(metrics, ax, side + 4.7, height, argument="metric")
    for name, panel in panels.items():
        _draw_scores(panel, results[results["metric"] == name], target, names, heads)
        subject = fig.shorten(target.replace("/", " and "), 40)
        label = _LABELS.get(name, name)
        panel.set_xlabel(f"{label}\n{subject}; {panel.get_xlabel()}", fontsize=9)
    return fig.one_or_all(fig.finish(panels, ax, show=show, save=save), metric)


def _draw_predictions(
    adata: AnnData,
    key: str,
    kind: str,
    target: str | None,
    label: str | None,
    names: list[str],
    head: str,
    ax: Axes | None,
) -> dict[str, Axes]:
    task = str(params_of(adata.uns, key)["task"])
    needed = "regression" if kind == "predicted" else "classification"
    if task != needed:
        other = "cfm.pl.survival" if task == "survival" else "kind='scores'"
        raise ValueError(
            f"kind={kind!r} draws a {needed}, but uns[{key!r}] is a {task}; see {other}."
        )
    table = get.probe_predictions(adata, key=key)
    table = table[(table["head"] == head) & table["true"].notna()]
    where = f"the predictions of uns[{key!r}]"
    fig.pick("use_rep", names, table["representation"].unique(), where)
    targets = list(table["target"].unique())
    if target is None and len(targets) > 1:
        raise ValueError(f"target= has to name one of {len(targets)}: {', '.join(targets[:10])}.")
    target = fig.pick("target", target, targets, where)[0]
    parts = {n: table[(table["representation"] == n) & (table["target"] == target)] for n in names}
    if kind != "predicted":
        found = {name: _classes(part) for name, part in parts.items()}
        return draw_classes(kind, found, label, f"obs[{target!r}]", ax)
    panels = fig.open_panels(names, ax, 4.2, 4.0, argument="use_rep")
    scores = get.probe_scores(adata, key=key)
    scores = scores[(scores["head"] == head) & (scores["target"] == target)]
    scores = scores[scores["metric"] == "pearson"].set_index("representation")
    for name, part in parts.items():
        note = f"{fig.shorten(name, 30)}\nr = {_in_words(scores.loc[[name]].iloc[0])} within folds"
        true, predicted = part[["true", "predicted"]].to_numpy(np.float64).T
        draw_predicted(panels[name], true, predicted, note)
        panels[name].set_xlabel(f"true {fig.shorten(target, 30)}")
    return panels


def _classes(part: pd.DataFrame) -> Classes:
    proba = part.filter(regex="^probability_")
    groups = part["group" if "group" in part else "observation"]
    return Classes(
        part["true"].to_numpy(dtype=object),
        part["predicted"].to_numpy(dtype=object),
        proba.set_axis([str(name).removeprefix("probability_") for name in proba], axis=1),
        part["fold"].to_numpy(),
        1 / groups.groupby(groups).transform("size").to_numpy(np.float64),
    )


def _draw_scores(
    ax: Axes, table: pd.DataFrame, target: str, names: list[str], heads: list[str]
) -> None:
    single = table[table["target"] != MEAN_TARGET]
    own = table[table["target"] == target]
    values: list[Any] = []
    for i, name in enumerate(names):
        color = fig.GREY if name == PLAIN_EXPRESSION else fig.COLORS[i % len(fig.COLORS)]
        for j, head in enumerate(heads):
            y = i + _STEP * (j - (len(heads) - 1) / 2)
            chosen = own[(own["representation"] == name) & (own["head"] == head)]
            if chosen.empty:
                continue
            row = chosen.iloc[0]
            if target == MEAN_TARGET:
                each = single[(single["representation"] == name) & (single["head"] == head)]
                ax.plot(each["score"], np.full(len(each), y), ".", color=color, alpha=0.35, ms=4)
                values.extend(each["score"])
            ax.hlines(y, row["low"], row["high"], color=color, linewidth=1.6)
            ax.plot(row["score"], y, fig.MARKERS[j % len(fig.MARKERS)], color=color, markersize=6.5)
            place = fig.Look(xycoords=ax.get_yaxis_transform(), annotation_clip=False)
            ax.annotate(_in_words(row), (1.02, y), va="center", fontsize=8, **place)
            values.extend(row[["score", "low", "high"]])
    trivial = own[(own["representation"] == NO_FEATURES) & np.isfinite(own["score"])]
    for level in trivial["score"][:1]:
        ax.axvline(level, color=fig.INK, linestyle=fig.DASHED, linewidth=1.2, zorder=0)
        values.append(level)

    ax.set_yticks(range(len(names)), [fig.shorten(name, 30) for name in names])
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)
    known = np.array(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if known.size:
        space = max(0.04 * np.ptp(known), 1e-3 * np.abs(known).max(), 1e-9)
        ax.set_xlim(known.min() - 2 * space, known.max() + 2 * space)
    n_groups, n_obs = int(own["n_groups"].max()), int(own["n_obs"].max())
    ax.set_xlabel(f"{n_obs} observations" + (f", {n_groups} groups" if n_groups < n_obs else ""))
    ax.grid(axis="x", color="#E4E4E4", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    marks = [
        fig.mark(head.replace("_", " "), fig.INK, fig.MARKERS[j % len(fig.MARKERS)])
        for j, head in enumerate(map(str, heads))
    ]
    marks += [fig.mark(str(head), fig.INK, line=fig.DASHED) for head in trivial["head"]]
    ax.legend(
        handles=marks,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=len(marks),
        frameon=False,
        fontsize=8,
        handlelength=1.6,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def _in_words(row: pd.Series) -> str:
    if not np.isfinite(row["score"]):
        return "not defined"
    text = f"{row['score']:.2f}"
    if np.isfinite(row["low"]):
        text += f" ({row['low']:.2f} to {row['high']:.2f})"
    return fig.minus(text)


# --- Survival --------------------------------------------------------------------------------

#: More curves than this cannot be distinguished, and more bands hide each other.
_MOST, _MOST_BANDS = len(fig.LINES), 3


@checks_arguments(confidence=PART)
@fig.documented
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
    %(key)s
    groupby
        Column of ``obs`` with other groups to draw, at most six, such as a stage.
    confidence
        Level of the bands, ``None`` for no bands; with more than three groups there are none.
    ax
        Draw here instead of into a new figure; leave room below for the numbers at risk.
    %(show)s

    Returns
    -------
    %(axes)s

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
    2011); the interval of the C-index in ``uns[key]['results']`` is more reliable.

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
    fig.require_anndata(adata)
    get.probe_scores(adata, key=key)
    params = params_of(adata.uns, key)
    if params["task"] != "survival":
        raise KeyError(
            f"uns[{key!r}] is a probe of a {params['task']} target; expected "
            "cfm.tl.probe(adata, (time, event), 'survival')."
        )
    time, event = map(str, params["target"])
    column = groupby or key + RISK_GROUP
    fig.require_columns(adata, time, event, column)
    numbers = {"time": adata.obs[time], "event": adata.obs[event]}
    frame = pd.DataFrame(numbers).apply(pd.to_numeric).astype(np.float64)
    frame = frame.assign(group=adata.obs[column]).dropna()
    if frame.empty:
        raise ValueError(f"no observation has {time!r}, {event!r} and {column!r}.")
    # in the order of the categories, else by name
    parts = {str(name): part for name, part in frame.groupby("group", observed=True)}
    if len(parts) > _MOST:
        raise ValueError(f"{column!r} has {len(parts)} groups; expected at most {_MOST}.")

    panel = ax or fig.new_figure(5.6, 3.6 + 0.35 * len(parts)).add_subplot()
    for i, (name, part) in enumerate(parts.items()):
        what = f"{name} risk" if groupby is None and name in (LOW_RISK, HIGH_RISK) else name
        label = f"{fig.shorten(what, 30)} (n = {len(part)}, {int(part['event'].sum())} events)"
        _draw_curve(panel, part, label, i, confidence if len(parts) <= _MOST_BANDS else None)
    end = float(frame["time"].max())
    panel.set_xlim(-0.01 * end, 1.03 * end)
    panel.set_ylim(0, 1.03)
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.set(xlabel=time.replace("_", " "), ylabel="share without the event")
    panel.spines[["top", "right"]].set_visible(False)
    look = fig.Look(loc="lower left", bbox_to_anchor=(0, 1.0), handlelength=3.2)
    panel.legend(frameon=False, fontsize=8, **look)
    if len(parts) == 2:
        p = float(stats.logrank(*map(_censored, parts.values())).pvalue)
        text = "log-rank p " + ("< 0.001" if p < 0.001 else f"= {p:.3f}")
        at_corner = fig.Look(transform=panel.transAxes, ha="right", va="top")
        panel.text(0.99, 0.99, text, fontsize=9, **at_corner)
    _number_at_risk(panel, parts)
    return fig.finish(panel, ax, show=show, save=save)


def _draw_curve(ax: Axes, part: pd.DataFrame, label: str, i: int, confidence: float | None) -> None:
    curve = stats.ecdf(_censored(part)).sf
    color, line = fig.COLORS[i % len(fig.COLORS)], fig.LINES[i % len(fig.LINES)]

    def whole(start: float, found: np.ndarray, end: float) -> np.ndarray:
        """Extend from everybody at the start to the last observation."""
        return np.r_[start, found, end]

    x = whole(0.0, curve.quantiles, part["time"].max())
    y = whole(1.0, curve.probabilities, curve.probabilities[-1])
    ax.step(x, y, where="post", color=color, linestyle=line, lw=1.8, label=label)
    if confidence is not None and part["event"].any():
        with warnings.catch_warnings():
            # before the first event and after the last there is no band
            warnings.filterwarnings("ignore", "The confidence interval is undefined")
            band = curve.confidence_interval(confidence, method="log-log")
        low, high = (
            whole(1.0, side.probabilities, side.probabilities[-1]) for side in (band.low, band.high)
        )
        known = np.isfinite(low) & np.isfinite(high)
        look = fig.Look(step="post", color=color, alpha=0.15, lw=0)
        ax.fill_between(x[known], low[known], high[known], **look)
    ended = part.loc[part["event"] == 0, "time"].to_numpy()
    ax.plot(ended, curve.evaluate(ended), "|", color=color, markersize=6, markeredgewidth=1)


def _censored(part: pd.DataFrame) -> stats.CensoredData:
    return stats.CensoredData.right_censored(part["time"], part["event"] == 0)


def _number_at_risk(ax: Axes, parts: dict[str, pd.DataFrame]) -> None:
    """Write below the axis how many are still observed at each tick."""
    low, high = ax.get_xlim()
    ticks = [tick for tick in ax.get_xticks() if max(low, 0) <= tick <= high]
    style: dict[str, Any] = {"textcoords": "offset points", "va": "top", "fontsize": 8}
    style |= {"xycoords": ax.get_xaxis_transform(), "annotation_clip": False}
    for row, name in enumerate(["at risk", *parts]):
        below = -38 - 11 * row  # points under the axis: beneath the ticks and the label
        side = style | {"xycoords": "axes fraction"}
        ax.annotate(fig.shorten(name, 14), (0, 0), (-14, below), ha="right", **side)
        for tick in ticks if row else []:
            n = int((parts[name]["time"] >= tick).sum())
            color = fig.COLORS[(row - 1) % len(fig.COLORS)]
            ax.annotate(str(n), (tick, 0), (0, below), ha="center", color=color, **style)
