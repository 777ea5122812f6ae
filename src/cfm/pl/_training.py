"""Loss curves of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.ticker import MaxNLocator

from cfm._arguments import checks_arguments
from cfm.pl import _figure as fig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from matplotlib.axes import Axes

#: Which part of the data a curve was measured on: its suffix, and how it is drawn.
_PARTS = ("train", "validation", "test")
#: Of curves without a part of the data in their name.
_UNSAID = ""
_ALIASES = {"val": "validation", "valid": "validation", "training": "train"}
_DRAWN = {
    "train": (fig.COLORS[0], "-", "o"),
    "validation": (fig.COLORS[1], "--", "s"),
    "test": (fig.COLORS[2], ":", "^"),
    _UNSAID: (fig.COLORS[0], "-", "o"),
}


@checks_arguments()
@fig.documented
def training(
    model: Any,
    *,
    metric: str | Sequence[str] = "loss",
    log: bool = False,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | dict[str, Axes]:
    """Draw how a loss went down during training, on training and validation data.

    Parameters
    ----------
    model
        A trained model (its ``history`` is read), such a history itself (a mapping from names
        like ``"train_loss_epoch"`` and ``"validation_loss"`` to a DataFrame or Series over
        epochs), or one DataFrame with a column per curve.
    metric
        What to draw, without the words for the part of the data: ``"loss"`` finds
        ``train_loss``, ``train_loss_epoch``, ``validation_loss``, ``loss_validation``. Several
        names make one panel each.
    log
        Logarithmic vertical axis.
    %(panel)s

    Returns
    -------
    The Axes drawn on; with several metrics a dict from metric to Axes.

    Raises
    ------
    KeyError
        If the model was not trained or has no such curve; the text lists what there is.
    TypeError
        If ``model`` holds no history.
    ValueError
        If ``ax`` is given with several metrics.

    Examples
    --------
    >>> import cfm
    >>> model = cfm.models.CellPulse.from_pretrained("cellpulse-mini")
    >>> ax = cfm.pl.training(model, show=False)
    >>> len(ax.lines) > 0
    True
    """
    curves = _curves(model)
    metrics = fig.pick("metric", metric, sorted(curves), "the history")
    panels = fig.open_panels(metrics, ax, 5.0, 3.6, argument="metric")
    for name, panel in panels.items():
        _draw(panel, name, curves[name], log=log)
    return fig.one_or_all(fig.finish(panels, ax, show=show, save=save), metric)


def _curves(model: Any) -> dict[str, dict[str, pd.Series]]:
    """Sort a history into metric -> part of the data -> values over epochs."""
    history = getattr(model, "history", model)
    if history is None or (isinstance(history, Mapping | pd.DataFrame) and len(history) == 0):
        raise KeyError("the model has no training history; call its train() first.")
    if not isinstance(history, Mapping | pd.DataFrame):
        raise TypeError(
            f"got a {type(model).__name__} without a history; expected a trained model, its "
            "history, or a DataFrame with one column per curve."
        )
    curves: dict[str, dict[str, pd.Series]] = {}
    for key in history:
        values = history[key]
        if isinstance(values, pd.DataFrame):
            values = values.iloc[:, 0]
        values = pd.to_numeric(pd.Series(values), errors="coerce").dropna()
        name, part = _metric_and_part(str(key))
        # steps and epochs of the same loss: epochs are the smoother, shorter curve
        known = curves.setdefault(name, {})
        if len(values) and (part not in known or not str(key).endswith("_step")):
            known[part] = values
    return {name: parts for name, parts in curves.items() if parts}


def _metric_and_part(key: str) -> tuple[str, str]:
    words = [_ALIASES.get(word, word) for word in key.split("_")]
    parts = [word for word in words if word in _PARTS]
    rest = [word for word in words if word not in (*_PARTS, "epoch", "step")]
    return "_".join(rest) or key, parts[0] if parts else _UNSAID


def _draw(ax: Axes, metric: str, parts: Mapping[str, pd.Series], *, log: bool) -> None:
    for part in (name for name in (*_PARTS, _UNSAID) if name in parts):
        values = parts[part]
        color, line, marker = _DRAWN[part]
        every = max(1, len(values) // 12)  # enough markers to distinguish the curves without colour
        ax.plot(
            values.index,
            values.to_numpy(),
            line,
            color=color,
            marker=marker,
            markevery=every,
            markersize=4,
            linewidth=1.5,
            label=f"{part or metric.replace('_', ' ')} (last {values.iloc[-1]:.3g})",
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    longest = max(parts.values(), key=len)
    if len(longest) == 1:  # one epoch: no range to choose ticks from
        ax.set_xlim(longest.index[0] - 1, longest.index[0] + 1)
    if log:
        ax.set_yscale("log")
    names = {values.index.name for values in parts.values()} - {None}
    ax.set(xlabel=str(names.pop()) if len(names) == 1 else "epoch", ylabel=metric.replace("_", " "))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
