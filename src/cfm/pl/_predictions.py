"""Predictions against the truth: curves, confusion matrix, calibration, predicted values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from cfm._adata import in_memory
from cfm._arguments import checks_arguments
from cfm._fields import PROBABILITIES, VIRUS_KEY
from cfm.pl import _figure as fig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

ClassKind = Literal["confusion", "roc", "precision_recall", "calibration"]
#: Bins of predicted probability.
_N_BINS = 10
#: Confusion matrices with more columns than this have no numbers.
_NUMBERED = 24


class Classes(NamedTuple):
    """Predicted classes of ``n`` observations.

    Attributes
    ----------
    truth, call
        ``(n,)`` names.
    proba
        ``(n, classes)``.
    fold
        ``(n,)`` number of the model that predicted an observation.
    mass
        ``(n,)`` what an observation adds to the weight of its fold.
    """

    truth: np.ndarray
    call: np.ndarray
    proba: pd.DataFrame
    fold: np.ndarray
    mass: np.ndarray


def known_classes(found: Classes, label: str | None, where: str) -> tuple[Classes, str | None]:
    """Return the observations of classes with a probability, and the class to draw.

    Of two classes it is the second; ``None`` stands for all of more classes.

    Raises
    ------
    KeyError
        If ``label`` is no class.
    ValueError
        If the truth has fewer than two of the classes.
    """
    names = list(map(str, found.proba))
    rows = np.isin(found.truth, names) & np.isfinite(found.proba.to_numpy(np.float64)).all(axis=1)
    present = sorted(set(found.truth[rows]))
    if len(present) < 2:
        what = f"one class, {present[0]!r}" if present else f"none of the classes {names[:5]}"
        raise ValueError(
            f"{where} has {what}, among the observations with a probability; expected two or more "
            "(kind='confusion' takes any)."
        )
    if label is not None:
        label = fig.pick("label", label, present, where)[0]
    elif len(names) == 2:
        label = names[1]
    return Classes(*(part[rows] for part in found)), label


# --- Drawing on arrays -----------------------------------------------------------------------


def curve(kind: str, found: Classes, label: str | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Return a ROC or precision–recall curve, and the area below it.

    Curves are made within folds and averaged, folds by their mass and classes equally, so that the
    area is the mean of the areas.
    """
    parts = [
        [(_steps(kind, case[rows], score[rows]), found.mass[rows].sum()) for rows in folds]
        for case, score, folds in _of_classes(found, label)
    ]
    weights = [w / sum(w for _, w in folds) / len(parts) for folds in parts for _, w in folds]
    curves = [points for folds in parts for points, _ in folds]
    edges = np.unique(np.concatenate([x for x, _ in curves]))
    a, step = edges[:-1], np.diff(edges)
    # between two edges all curves are straight lines: two points inside give both ends
    inner = [
        np.average([np.interp(a + share * step, *c) for c in curves], axis=0, weights=weights)
        for share in (1 / 3, 2 / 3)
    ]
    x = np.column_stack([a, a + step]).ravel()
    y = np.column_stack([2 * inner[0] - inner[1], 2 * inner[1] - inner[0]]).ravel()
    area = float((step * (inner[0] + inner[1])).sum() / 2)
    if kind == "roc":
        x, y = np.r_[0.0, x, 1.0], np.r_[0.0, y, 1.0]
    return x, y, area


def chance(kind: str, found: Classes, label: str | None) -> list[float]:
    """Return the ends of the line that random scores give."""
    if kind == "roc":
        return [0.0, 1.0]
    shares = [
        np.average([c[r].mean() for r in rows], weights=[found.mass[r].sum() for r in rows])
        for c, _, rows in _of_classes(found, label)
    ]
    return [float(np.mean(shares))] * 2


def _of_classes(
    found: Classes, label: str | None
) -> Iterator[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
    """Yield for each class its members, their scores, and the rows of folds with and without."""
    for name in map(str, found.proba) if label is None else [label]:
        case = found.truth == name
        folds = [np.flatnonzero(found.fold == fold) for fold in np.unique(found.fold)]
        folds = [rows for rows in folds if 0 < case[rows].sum() < len(rows)]
        if folds:
            yield case, found.proba[name].to_numpy(dtype=np.float64), folds


def _steps(kind: str, case: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if kind == "roc":
        x, y, _ = roc_curve(case, score, drop_intermediate=False)
        return x, y
    precision, recall, _ = precision_recall_curve(case, score)
    # a precision holds from the recall before it, as in the average precision
    return np.repeat(recall[::-1], 2)[1:-1], np.repeat(precision[-2::-1], 2)


def draw_curves(
    ax: Axes, kind: str, methods: Mapping[str, Classes], label: str | None, *, note: str = ""
) -> None:
    """Draw the curve of each method, its area in the legend, and the line of chance."""
    for i, (name, found) in enumerate(methods.items()):
        x, y, area = curve(kind, found, label)
        look = fig.Look(color=fig.COLORS[i % len(fig.COLORS)], lw=1.8)
        line = fig.LINES[i % len(fig.LINES)]
        ax.plot(x, y, linestyle=line, label=f"{fig.shorten(name, 30)}: {area:.2f}", **look)
    level = chance(kind, next(iter(methods.values())), label)
    at = "" if kind == "roc" else f": {level[0]:.2f}"
    ax.plot([0, 1], level, color=fig.GREY, linestyle=fig.DASHED, lw=1, label=f"chance{at}")
    of = f"{fig.shorten(label, 24)} against the rest" if label else "mean over the classes"
    names = {"roc": ("false positive rate", "true positive rate")}
    left, up = names.get(kind, ("recall", "precision"))
    ax.set(xlabel=left, ylabel=up, xlim=(-0.02, 1.02), ylim=(-0.02, 1.03), aspect="equal")
    ax.set_title(of + note, fontsize=9)
    fig.tidy(ax)
    look = fig.Look(fontsize=7.5, title_fontsize=7.5, handlelength=3, frameon=False)
    look["title"] = "AUROC" if kind == "roc" else "average precision"
    ax.legend(loc="lower right" if kind == "roc" else "best", **look)


def draw_confusion(ax: Axes, found: Classes) -> None:
    """Draw how many observations of each class got each call; shades are shares of the row."""
    rows = [name for name in map(str, found.proba) if name in set(found.truth)]
    rows += sorted(set(found.truth) - set(rows))
    columns = rows + sorted(set(found.call) - set(rows))
    table = pd.crosstab(found.truth, found.call).reindex(index=rows, columns=columns, fill_value=0)
    draw_shares(ax, table)
    ax.set(xlabel="predicted", ylabel="true (observations)")
    ax.set_title("share of the row, observations", fontsize=9)


def draw_shares(ax: Axes, table: pd.DataFrame) -> None:
    """Draw a table of numbers of observations; shades are shares of the row."""
    counts, rows, columns = table.to_numpy(), list(table.index), list(table.columns)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in np.argwhere(counts > 0) if len(columns) <= _NUMBERED else ():
        color = "white" if shares[i, j] > 0.55 else "black"
        text = f"{shares[i, j]:.2f}\n{counts[i, j]}"
        ax.text(j, i, text, ha="center", va="center", fontsize=6.5, color=color)
    sums = counts.sum(axis=1)
    labels = [f"{fig.shorten(r, 24)} ({n})" for r, n in zip(rows, sums, strict=True)]
    ax.set_yticks(range(len(rows)), labels)
    turned = 90 if max(map(len, columns)) > 6 else 0
    ax.set_xticks(range(len(columns)), [fig.shorten(c, 24) for c in columns], rotation=turned)
    fig.tidy(ax, "left", "bottom")
    ax.tick_params(length=0)


def draw_calibration(ax: Axes, found: Classes, label: str | None) -> None:
    """Draw the share that was right against the predicted probability, in bins."""
    if label is None:
        p = found.proba.to_numpy(dtype=np.float64).max(axis=1)
        right = found.proba.columns.to_numpy()[found.proba.to_numpy().argmax(axis=1)] == found.truth
        what, of = "share right", "most probable class"
    else:
        p, right = found.proba[label].to_numpy(dtype=np.float64), found.truth == label
        what, of = f"share of {fig.shorten(label, 24)}", fig.shorten(label, 24)
    place = np.minimum((p * _N_BINS).astype(int), _N_BINS - 1)
    bins = pd.DataFrame({"p": p, "right": right}).groupby(place).agg(["mean", "size"])
    x, y = bins["p", "mean"].to_numpy(), bins["right", "mean"].to_numpy()
    n = bins["p", "size"].to_numpy()
    spread = np.sqrt(y * (1 - y) / n)  # one standard error of a share
    ax.plot([0, 1], [0, 1], color=fig.GREY, linestyle=fig.DASHED, lw=1, label="calibrated")
    look = fig.Look(color=fig.COLORS[0], lw=1.4, ms=5, elinewidth=1)
    ax.errorbar(x, y, spread, fmt="o-", label="bin (± 1 s.e.), with its observations", **look)
    limits = fig.Look(xlim=(-0.02, 1.04), ylim=(-0.08, 1.08), aspect="equal")
    ax.set(xlabel=f"predicted probability of the {of}" if label is None else f"probability of {of}")
    ax.set(ylabel=what, **limits)
    for i in range(len(n)):
        shift = fig.Look(xytext=(5, -9), textcoords="offset points")
        ax.annotate(str(n[i]), (x[i], y[i]), fontsize=7, color=fig.INK, **shift)
    fig.tidy(ax)
    ax.legend(frameon=False, fontsize=7.5, loc="lower right")


def draw_predicted(ax: Axes, true: np.ndarray, predicted: np.ndarray, note: str) -> None:
    """Draw predicted against true values, with the line on which both are equal."""
    shown = np.isfinite(true) & np.isfinite(predicted)
    true, predicted = true[shown], predicted[shown]
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    ax.plot(ends, ends, color=fig.GREY, linestyle=fig.DASHED, lw=1, zorder=0)
    ax.scatter(true, predicted, s=14, color=fig.COLORS[0], alpha=0.6, linewidths=0)
    ax.set(xlabel="true", ylabel="predicted")
    ax.set_title(f"{note}; n = {len(true)}", fontsize=9)
    fig.tidy(ax)


# --- Calls and properties --------------------------------------------------------------------


@checks_arguments()
@fig.documented
def classification(
    adata: AnnData,
    truth: str,
    *,
    key: str = VIRUS_KEY,
    kind: ClassKind = "confusion",
    label: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw predicted classes against known ones.

    ``"confusion"``: counts of each true class and call; shades are shares of the row. ``"roc"`` and
    ``"precision_recall"``: one class against the rest, with the area in the legend and the line of
    chance. ``"calibration"``: share that is right by predicted probability, with the observations
    of each bin. All but the first leave out observations of classes that the model lacks.

    Parameters
    ----------
    adata
        With the result of :func:`cfm.tl.predict_virus` or :func:`cfm.tl.predict_properties`.
    truth
        Column of ``obs`` with the known class; observations without one are left out.
    key
        Column of ``obs`` with the calls, such as ``"predicted_virus"``,
        ``"predicted_virus_response"`` or ``"predicted_cell_type"``.
    kind
        What to draw.
    label
        Class to draw. By default the second of two; of more classes their mean, and in calibration
        the most probable class of each observation.
    %(ax)s

    Returns
    -------
    %(axes)s

    Raises
    ------
    KeyError
        If there are no predictions under ``key``, or a column or class does not exist.
    ValueError
        If no observation has a known class, or only one class has observations.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.blanco_melo(), "virus", "none", by="series")
    >>> cfm.tl.predict_virus(contrasts, n_matches=0)
    >>> cfm.pl.classification(contrasts, "virus", show=False).get_xlabel()
    'predicted'
    """
    fig.require_anndata(adata)
    if key not in adata.obs or key + PROBABILITIES not in adata.obsm:
        raise KeyError(
            f"obs[{key!r}] and obsm[{key + PROBABILITIES!r}] not found; run "
            "cfm.tl.predict_virus(adata) or cfm.tl.predict_properties(adata) first, or pass the "
            "column with its calls as key=."
        )
    fig.require_columns(adata, truth)
    frame = adata.obs[[truth, key]]
    rows = frame.notna().all(axis=1).to_numpy()
    texts = frame[rows].astype(str)
    if texts.empty:
        raise ValueError(f"No observation has a class in obs[{truth!r}] and in obs[{key!r}].")
    # zarr takes no "/" in the names of columns
    names = {name.replace("/", "|"): name for name in np.unique(texts)}
    proba = in_memory(adata.obsm[key + PROBABILITIES])[rows].rename(columns=names)
    n = len(texts)
    truths, calls = texts.to_numpy(dtype=object).T
    found = Classes(truths, calls, proba, np.zeros(n, dtype=int), np.ones(n))
    panels = draw_classes(kind, {fig.shorten(key, 30): found}, label, f"obs[{truth!r}]", ax)
    return fig.finish(next(iter(panels.values())), ax, show=show, save=save)


def draw_classes(
    kind: str, methods: Mapping[str, Classes], label: str | None, where: str, ax: Axes | None
) -> dict[str, Axes]:
    """Draw one kind of figure of predicted classes; curves share a panel."""
    if kind == "confusion":
        if label is not None:
            raise ValueError(f"label={label!r} is not for kind='confusion', which has all classes.")
        found = next(iter(methods.values()))
        across, down = len({*found.truth, *found.call}), len(set(found.truth))
        size = (2.2 + 0.48 * across, 1.8 + 0.42 * down)
        panels = fig.open_panels(list(methods), ax, *size, argument="use_rep")
        for name, panel in panels.items():
            draw_confusion(panel, methods[name])
    else:
        known = {name: known_classes(found, label, where) for name, found in methods.items()}
        chosen = next(iter(known.values()))[1]
        parts = {name: found for name, (found, _) in known.items()}
        curves = kind != "calibration"
        names = ["curves"] if curves else list(parts)
        panels = fig.open_panels(names, ax, 4.2, 4.2, argument="use_rep")
        first = next(iter(parts))
        n_out = len(methods[first].truth) - len(parts[first].truth)
        note = f"\n{n_out} observations of other classes left out" if n_out else ""
        for name, panel in panels.items():
            if curves:
                draw_curves(panel, kind, parts, chosen, note=note)
            else:
                draw_calibration(panel, parts[name], chosen)
                panel.set_title(fig.shorten(name, 40) + note, fontsize=9)
    if kind == "confusion" and len(panels) > 1:
        for name, panel in panels.items():
            panel.set_title(fig.shorten(name, 40), fontsize=9)
    return panels
