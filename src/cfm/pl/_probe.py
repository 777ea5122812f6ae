"""Scores of probes with their intervals, against plain expression and the trivial predictor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from cfm._arguments import checks_arguments
from cfm._fields import (
    MEAN_TARGET,
    NO_FEATURES,
    PARAMS,
    PLAIN_EXPRESSION,
    PROBE_KEY,
    RESULTS,
    params_of,
)
from cfm.pl._checks import require_anndata
from cfm.pl._figure import figure_of, finish, new_figure
from cfm.pl._labels import shorten
from cfm.pl._palette import COLORS, GREY, MARKERS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from anndata import AnnData
    from matplotlib.axes import Axes

_DEFAULT = {
    "classification": "balanced_accuracy",
    "regression": "pearson",
    "survival": "c_index",
}
_LABELS = {
    "accuracy": "accuracy",
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
#: Space for the row names and for the numbers, in inches.
_CHAR, _NUMBERS = 0.075, 1.5


@checks_arguments()
def probe(
    adata: AnnData,
    *,
    key: str = PROBE_KEY,
    metric: str | Sequence[str] | None = None,
    target: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | dict[str, Axes]:
    """Draw how well each representation predicts the target, and what a baseline reaches.

    A row is a representation, the last one the principal components of plain expression; a marker
    is a head, its line the bootstrap interval, its number on the right. The dashed line is the
    trivial predictor, which sees no features. With several targets a marker is their mean, and
    the small dots are the targets.

    Parameters
    ----------
    adata
        With the result of :func:`cfm.tl.probe`.
    key
        Where it is stored (``key_added`` of that call).
    metric
        What to draw, by default ``"balanced_accuracy"``, ``"pearson"`` or ``"c_index"``. Several
        make a panel each.
    target
        One of several targets, instead of their mean.
    ax
        Draw here instead of into a new figure (one ``metric``).
    show
        Show the figure. ``False`` closes it; the returned Axes can still be saved.
    save
        File to write the figure to.

    Returns
    -------
    The Axes drawn on; with several metrics a dict from metric to Axes.

    Raises
    ------
    KeyError
        If :func:`cfm.tl.probe` was not run, or has no such metric or target.
    ValueError
        If ``ax`` is given with several metrics, or no metric.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.toy_bulk_cohort()
    >>> cfm.pp.tpm(adata)
    >>> cfm.tl.probe(adata, "disease", groups="study", n_folds=3, layer="log_tpm")
    >>> ax = cfm.pl.probe(adata, show=False)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['expression', 'expression PCA']
    """
    require_anndata(adata)
    results, params = stored_probe(adata, key)
    metrics = [metric] if isinstance(metric, str) else list(metric or [])
    if metric is None:
        metrics = [_DEFAULT[str(params["task"])]]
    if not metrics:
        raise ValueError("metric is an empty list; name at least one score.")
    unknown = [name for name in metrics if name not in set(results["metric"])]
    if unknown:
        raise KeyError(f"no score {unknown} stored; there are {list(results['metric'].unique())}.")
    targets = list(results["target"].unique())
    if target is not None and target not in targets:
        raise KeyError(f"no target {target!r} stored; there are {targets[:20]}.")
    if ax is not None and len(metrics) > 1:
        raise ValueError(f"ax= takes one panel, but {len(metrics)} metrics were asked for.")
    owned = ax is None
    names = [n for n in results["representation"].unique() if n != NO_FEATURES]
    heads = list(results.loc[results["representation"] != NO_FEATURES, "head"].unique())
    if ax is None:
        side = _CHAR * max(len(shorten(n, 30)) for n in names)
        height = 1.1 + len(names) * max(0.45, 0.26 * len(heads))
        figure = new_figure((side + 3.2 + _NUMBERS) * len(metrics), height)
        panels = list(figure.subplots(1, len(metrics), squeeze=False)[0])
    else:
        panels = [ax]
    for panel, name in zip(panels, metrics, strict=True):
        _draw(panel, results[results["metric"] == name], name, target, (names, heads))
    finish(figure_of(panels[0]), owned=owned, show=show, save=save)
    if metric is None or isinstance(metric, str):
        return panels[0]
    return dict(zip(metrics, panels, strict=True))


def stored_probe(adata: AnnData, key: str) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    """Return the table of scores and the record of :func:`cfm.tl.probe`.

    Raises
    ------
    KeyError
        If there is none under this key.
    """
    record = adata.uns.get(key)
    if not isinstance(record, Mapping) or RESULTS not in record or not params_of(adata.uns, key):
        raise KeyError(
            f"uns[{key!r}] holds no probe; run cfm.tl.probe(adata, …, key_added={key!r}) first, or "
            "pass the key it was stored under."
        )
    return record[RESULTS], record[PARAMS]


def _draw(
    ax: Axes,
    table: pd.DataFrame,
    metric: str,
    target: str | None,
    order: tuple[list[str], list[str]],
) -> None:
    names, heads = order
    targets = list(table["target"].unique())
    shown = target if target is not None else targets[0]
    single = table[table["target"] != MEAN_TARGET]
    own = table[table["target"] == shown]
    values: list[np.ndarray] = []
    for i, name in enumerate(names):
        for j, head in enumerate(heads):
            y = i + _STEP * (j - (len(heads) - 1) / 2)
            chosen = own[(own["representation"] == name) & (own["head"] == head)]
            if chosen.empty:
                continue
            row = chosen.iloc[0]
            color = GREY if name == PLAIN_EXPRESSION else COLORS[i % len(COLORS)]
            if shown == MEAN_TARGET:
                each = single[(single["representation"] == name) & (single["head"] == head)]
                ax.plot(each["score"], np.full(len(each), y), ".", color=color, alpha=0.35, ms=4)
                values.append(each["score"].to_numpy())
            ax.hlines(y, row["low"], row["high"], color=color, linewidth=1.6)
            marker = MARKERS[j % len(MARKERS)]
            ax.plot(row["score"], y, marker, color=color, markersize=6.5)
            ax.annotate(
                _in_words(row),
                (1.02, y),
                xycoords=ax.get_yaxis_transform(),
                va="center",
                fontsize=8,
                annotation_clip=False,
            )
            values.append(row[["score", "low", "high"]].to_numpy(dtype=np.float64))
    lowest = own[own["representation"] == NO_FEATURES]
    if len(lowest) and np.isfinite(lowest["score"].iloc[0]):
        level = float(lowest["score"].iloc[0])
        ax.axvline(level, color="#222222", linestyle=(0, (4, 3)), linewidth=1.2, zorder=0)
        values.append(np.array([level]))
    _finish_axes(ax, values, metric, own, order)


def _in_words(row: pd.Series) -> str:
    if not np.isfinite(row["score"]):
        return "not defined"
    text = f"{row['score']:.2f}"
    if np.isfinite(row["low"]):
        text += f" ({row['low']:.2f} to {row['high']:.2f})"
    return text.replace("-", "−")


def _finish_axes(
    ax: Axes,
    values: list[np.ndarray],
    metric: str,
    own: pd.DataFrame,
    order: tuple[list[str], list[str]],
) -> None:
    names, heads = order
    ax.set_yticks(range(len(names)), [shorten(name, 30) for name in names])
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)
    known = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.array([])
    if known.size:
        space = max(0.04 * np.ptp(known), 1e-3 * np.abs(known).max(), 1e-9)
        ax.set_xlim(known.min() - 2 * space, known.max() + 2 * space)
    what = _LABELS.get(metric, metric)
    n_groups, n_obs = int(own["n_groups"].max()), int(own["n_obs"].max())
    sample = f"{n_obs} observations" + (f", {n_groups} groups" if n_groups < n_obs else "")
    subject = shorten(str(own["target"].iloc[0]).replace("/", " and "), 40)
    ax.set_xlabel(f"{what}\n{subject}; {sample}", fontsize=9)
    ax.grid(axis="x", color="#E4E4E4", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    marks = [
        Line2D([], [], color="#222222", linestyle="", marker=MARKERS[j % len(MARKERS)], label=head)
        for j, head in enumerate(name.replace("_", " ") for name in heads)
    ]
    trivial = own[(own["representation"] == NO_FEATURES) & np.isfinite(own["score"])]
    marks += [
        Line2D([], [], color="#222222", linestyle=(0, (4, 3)), label=str(head))
        for head in trivial["head"]
    ]
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
