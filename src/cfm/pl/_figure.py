"""Where a plot is drawn, and what happens to its figure afterwards."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.transforms import ScaledTranslation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Dots per inch of saved pictures: sharp on screen, small enough to mail.
SAVE_DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """Open a figure of the given size in inches whose layout makes room for every label."""
    return plt.figure(figsize=(width, height), layout="constrained")


def figure_of(ax: Axes) -> Figure:
    """Return the top-level figure of an Axes, also inside subfigures."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("ax= is an Axes that was removed from its figure; pass a live one.")
    return figure


def legend_below(
    ax: Axes,
    handles: Sequence[Artist],
    *,
    columns: int,
    drop: float = 0.42,
    handle: float = 1.3,
) -> None:
    """Put a legend ``drop`` inches under the left end of the lower axis, whatever the size.

    ``handle`` is the length of a sample line, in letters.
    """
    shift = ScaledTranslation(0, -drop, figure_of(ax).dpi_scale_trans)
    ax.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=ax.transAxes + shift,
        ncols=columns,
        frameon=False,
        fontsize=7.5,
        handlelength=handle,
        handletextpad=0.5,
        columnspacing=1.2,
        borderpad=0,
    )


def finish(
    figure: Figure, *, owned: bool, show: bool | None = None, save: str | Path | None = None
) -> None:
    """Save, show and close as asked.

    Parameters
    ----------
    figure
        The figure drawn on.
    owned
        Whether the plot function opened it. The caller's own figure (``ax=`` was given) is only
        shown on ``show=True`` and never closed.
    show
        ``None`` shows the figure if it is owned and the backend has a screen. ``False`` closes an
        owned figure, so that neither a notebook displays it nor memory fills up; the returned
        Axes stays usable (``ax.figure.savefig(...)``).
    save
        File to write to; its suffix sets the format.

    Raises
    ------
    TypeError
        If ``save`` is no file name. An owned figure that cannot be saved is closed.
    """
    if save is not None:
        with ExitStack() as on_failure:
            if owned:
                on_failure.callback(plt.close, figure)
            if not isinstance(save, str | os.PathLike):
                raise TypeError(f"save={save!r} is no file name; pass one, such as 'figure.png'.")
            figure.savefig(save, dpi=SAVE_DPI, bbox_inches="tight")
            on_failure.pop_all()  # saved: the figure stays open
    if show is None:
        if owned and _has_screen():
            plt.show()
    elif show:
        plt.show()
    elif owned:
        plt.close(figure)


def _has_screen() -> bool:
    # plt.show() on a file-only backend (agg, pdf, …) does nothing but warn
    backend = mpl.get_backend().lower()
    with_window = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    notebook = ("inline", "ipympl", "widget", "nbagg")
    return backend in map(str.lower, with_window) or any(name in backend for name in notebook)
