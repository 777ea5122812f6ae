"""What all plots share: checks of what is drawn, figures, legends, names, colours."""

from __future__ import annotations

import os
from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox, ScaledTranslation
from scipy import sparse

from cfm._adata import check_sparse, check_tables
from cfm._adata import pick as pick
from cfm._adata import require_anndata as _require_anndata
from cfm._adata import stored_table as stored_table
from cfm._docs import fill_docs
from cfm._fields import NOT_VIRAL, UNINFECTED, UNRESOLVED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

T = TypeVar("T")

#: How something is drawn: keyword arguments of matplotlib.
Look = dict[str, Any]

_SHOW = """
show
    Show the figure. ``False`` closes it; the returned Axes can still be saved.
save
    File to write the figure to.
"""
documented = fill_docs(
    {
        "key": """
key
    Where they are stored (``key_added`` of that call).
""",
        "group": """
group
    Group or groups to draw; ``None`` draws all, one panel each.
""",
        "ax": f"""
ax
    Draw here instead of into a new figure.
{_SHOW.strip()}
""",
        "panel": f"""
ax
    Draw here instead of into a new figure; takes one panel.
{_SHOW.strip()}
""",
        "show": _SHOW,
        "axes": """
The Axes drawn on.
""",
        "group_axes": """
The Axes drawn on; with several groups, or a list of them, a dict from group to Axes.
""",
    }
)

# --- What is drawn ---------------------------------------------------------------------------


def require_anndata(adata: object) -> None:
    """Check that something is an AnnData, with its tables in memory.

    Raises
    ------
    TypeError
        If it is not; the error names what to pass instead.
    ValueError
        If names are no text, or a column is there twice.
    """
    if isinstance(adata, AnnData) and not isinstance(adata.obs, pd.DataFrame):
        raise TypeError(
            "adata was read by anndata.experimental.read_lazy, and a figure is drawn from memory; "
            "pass adata.to_memory()."
        )
    _require_anndata(adata)
    check_tables(adata)


def require_columns(adata: AnnData, *names: str | None) -> None:
    """Check that columns of ``obs`` exist; ``None`` stands for no column."""
    for name in names:
        if name is not None and name not in adata.obs:
            raise KeyError(
                f"obs has no column {name!r}; expected one of {', '.join(map(str, adata.obs))}."
            )


def stored_rows(matrix: Any, rows: Any) -> Any:
    """Return some rows of a matrix in any storage, in memory, sparse if they are stored so."""
    block = check_sparse(matrix, "the matrix")[rows]
    block = block.compute() if hasattr(block, "compute") else block  # dask
    return check_sparse(block, "the matrix")


def dense_rows(matrix: Any, rows: Any, columns: Any = slice(None)) -> np.ndarray:
    """Return some rows and columns of a matrix in any storage, ``(rows, columns)`` float64."""
    block = stored_rows(matrix, rows)[:, columns]
    return np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64)


# --- Figures ---------------------------------------------------------------------------------

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


def open_panels(
    names: Sequence[str],
    ax: Axes | None,
    width: float,
    height: float,
    *,
    argument: str,
    extra: tuple[float, float] = (0.0, 0.0),
) -> dict[str, Axes]:
    """Return an Axes for each name: ``ax`` for a single one, else panels of that size in inches.

    Parameters
    ----------
    argument
        The one that names panels, for the error.
    extra
        Width and height that the figure has beyond its panels.

    Raises
    ------
    ValueError
        If ``ax`` is given with several names.
    """
    if ax is not None:
        if len(names) > 1:
            raise ValueError(
                f"ax= takes one panel, but there are {len(names)} of {argument}= "
                f"({', '.join(map(str, names))}); pass one."
            )
        return {names[0]: ax}
    across = 2 if len(names) == 4 else min(3, len(names))
    down = -(-len(names) // across)
    figure = new_figure(extra[0] + width * across, extra[1] + height * down)
    if down > 1:  # a title keeps its distance from the legend above it
        figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[union-attr, call-arg]
    panels = np.ravel(figure.subplots(down, across, squeeze=False))
    for unused in panels[len(names) :]:
        unused.remove()
    return dict(zip(names, panels, strict=False))


def one_or_all(
    panels: dict[str, Axes], wanted: str | Sequence[str] | None
) -> Axes | dict[str, Axes]:
    """Return the Axes itself where one panel was named or found, else the dict of them."""
    if len(panels) == 1 and (wanted is None or isinstance(wanted, str)):
        return next(iter(panels.values()))
    return panels


def settle(ax: Axes) -> None:
    """Lay the figure out, so that sizes and places in it are final."""
    figure_of(ax).draw_without_rendering()


def width_and_height(ax: Axes) -> tuple[float, float]:
    """Return the final size of an Axes in inches."""
    if figure_of(ax).get_layout_engine() is not None:
        settle(ax)
    box, dpi = ax.get_window_extent(), figure_of(ax).dpi
    return box.width / dpi, box.height / dpi


def finish(
    drawn: T, ax: Axes | None, *, show: bool | None = None, save: str | Path | None = None
) -> T:
    """Save, show and close the figure by the arguments; return what was drawn.

    Parameters
    ----------
    drawn
        The Axes, or a dict of them.
    ax
        The caller's own Axes: its figure is only shown on ``show=True`` and never closed.
    show
        ``None`` shows a figure of ours if the backend has a screen. ``False`` closes it, so that
        neither a notebook displays it nor memory fills up; the Axes stays usable.
    save
        File to write to; its suffix sets the format.

    Raises
    ------
    TypeError
        If ``save`` is no file name. A figure of ours that cannot be saved is closed.
    """
    figure = figure_of(next(iter(drawn.values())) if isinstance(drawn, dict) else drawn)  # type: ignore[arg-type]
    if save is not None:
        with ExitStack() as on_failure:
            if ax is None:
                on_failure.callback(plt.close, figure)
            if not isinstance(save, str | os.PathLike):
                raise TypeError(f"save={save!r} is no file name; pass one, such as 'figure.png'.")
            figure.savefig(save, dpi=SAVE_DPI, bbox_inches="tight")
            on_failure.pop_all()  # saved: the figure stays open
    if show or (show is None and ax is None and _has_screen()):
        plt.show()
    elif show is False and ax is None:
        plt.close(figure)
    return drawn


def _has_screen() -> bool:
    # plt.show() on a file-only backend (agg, pdf, …) does nothing but warn
    backend = mpl.get_backend().lower()
    with_window = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    notebook = ("inline", "ipympl", "widget", "nbagg")
    return backend in map(str.lower, with_window) or any(name in backend for name in notebook)


# --- Axes, legends and scales ----------------------------------------------------------------


def tidy(ax: Axes, *without: str, size: float = 8) -> None:
    """Remove the spines on some sides, at least at the top and the right, and set the font size."""
    ax.spines[["top", "right", *without]].set_visible(False)
    ax.tick_params(labelsize=size)
    ax.xaxis.label.set_fontsize(size)
    ax.yaxis.label.set_fontsize(size)


def name_rows(ax: Axes, names: Sequence[str], *, least: int = 1) -> None:
    """Name rows 0, 1, … from the top down, with room for at least so many."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(max(len(names), least) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)


def bare(ax: Axes) -> None:
    """Remove ticks and spines."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def scatter(ax: Axes, points: np.ndarray, **look: Any) -> PathCollection:
    """Draw points ``(n, 2)``."""
    return ax.scatter(points[:, 0], points[:, 1], **look)


def mark(label: str, color: str = "none", marker: str = "", line: Any = "", **look: Any) -> Line2D:
    """Return a legend entry: a marker, a line, or a text alone."""
    return Line2D([], [], color=color, marker=marker, linestyle=line, label=label, **look)


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


def color_scale(
    ax: Axes,
    cmap: str | Colormap,
    span: tuple[float, float],
    *,
    ticks: dict[float, str],
    title: str,
    note: str,
    drop: float,
    width: float = 1.5,
) -> None:
    """Draw a colour scale ``drop`` inches below the cells with a note beside it, in any figure."""
    # inches, counted from the lower left corner of the cells
    corner = figure_of(ax).dpi_scale_trans + ScaledTranslation(0, 0, ax.transAxes)  # type: ignore[arg-type]
    scale = ax.inset_axes((0, -drop, width, 0.11), transform=corner)
    scale.imshow(np.linspace(0, 1, 65)[None], cmap=cmap, aspect="auto", extent=(*span, 0, 1))
    scale.set_xticks(list(ticks), list(ticks.values()))
    scale.set_yticks([])
    scale.tick_params(labelsize=7, length=2)
    scale.set_xlabel(title, fontsize=7.5, labelpad=1)
    ax.annotate(
        note,
        (width + 0.2, 0.13 - drop),
        xycoords=corner,
        fontsize=7.5,
        va="top",
        linespacing=1.6,
        annotation_clip=False,
    )


# --- Names -----------------------------------------------------------------------------------

#: Horizontal and vertical offset in points, and the alignment.
Place = tuple[float, float, Literal["left", "center", "right"], Literal["top", "center", "bottom"]]
#: Offsets in points that are tried in turn, with the alignment that keeps the text off the point.
SIDES: tuple[Place, ...] = (
    (6, 0, "left", "center"),
    (-6, 0, "right", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
)
_PLACES: tuple[Place, ...] = (
    *SIDES,
    (6, 8, "left", "bottom"),
    (-6, 8, "right", "bottom"),
    (6, -8, "left", "top"),
    (-6, -8, "right", "top"),
)
#: Share by which a text is wider in a saved picture than on screen, as letters are whole pixels.
_ROUNDING = 0.09


def shorten(name: object, limit: int = 60) -> str:
    """Cut a name to ``limit`` characters by leaving out its middle: both ends identify it."""
    text = str(name)
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def plural(n: int, noun: str) -> str:
    """Write a number of things."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def minus(text: str) -> str:
    """Write hyphens as minus signs."""
    return text.replace("-", "−")


def write_tip(ax: Axes, text: str, value: float, row: float, **look: Any) -> Annotation:
    """Write a text just beyond the end of a bar, on its left where the value is below 0."""
    left = look.pop("left", value < 0)
    place = Look(xytext=(-4 if left else 4, 0), textcoords="offset points")
    style = Look(fontsize=7, va="center", ha="right" if left else "left") | look
    return ax.annotate(text, (value, row), **place, **style)


def label_points(
    ax: Axes,
    points: np.ndarray,
    names: Sequence[str],
    *,
    fontsize: float = 7.5,
    radius: float = 4.5,
    avoid: Sequence[Bbox] = (),
    frame: Bbox | None = None,
    halo: str | None = None,
    places: Sequence[Place] = _PLACES,
) -> None:
    """Write each name beside its point, at the first place that touches nothing drawn so far.

    Parameters
    ----------
    ax
        Where to write; its limits must be final.
    points
        ``(n, 2)`` positions in data units.
    names
        ``n`` texts. A name that fits nowhere is left out rather than written over another one;
        an empty one is a point to keep clear of, without a name.
    fontsize, radius
        Of the text and of the largest marker, in points.
    avoid
        Boxes in pixels to keep clear of.
    frame
        Box in pixels to stay inside of; ``None`` takes the Axes.
    halo
        Colour around the letters where they cross lines.
    places
        Where to try, in turn, for points of radius 4.5.
    """
    pixels = ax.transData.transform(points)
    off = radius / 4.5
    radius *= figure_of(ax).dpi / 72
    frame = frame or ax.get_window_extent()
    effects = [withStroke(linewidth=2.5, foreground=halo)] if halo else None
    taken: list[Bbox] = list(avoid)
    for i, (point, name) in enumerate(zip(points, names, strict=True)):
        if not name:
            continue
        others = np.delete(pixels, i, axis=0)
        text = ax.annotate(
            name,
            tuple(point),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=fontsize,
            in_layout=False,
            path_effects=effects,
        )
        for dx, dy, ha, va in places:
            text.set(position=(off * dx, off * dy), ha=ha, va=va)
            box = _widest(text.get_window_extent(), ha)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
            free = inside and not any(box.overlaps(other) for other in taken)
            if free and not box.padded(radius).count_contains(others):
                taken.append(box.padded(2) if halo else box)
                break
        else:
            text.remove()


def _widest(box: Bbox, ha: str) -> Bbox:
    """Return the box of a text at the resolution at which its letters are rounded up most."""
    more = _ROUNDING * box.width
    left = {"left": 0.0, "center": 0.5, "right": 1.0}[ha]
    return Bbox.from_extents(box.x0 - left * more, box.y0, box.x1 + (1 - left) * more, box.y1)


def room_for_tips(ax: Axes, values: np.ndarray, tips: Sequence[Annotation]) -> None:
    """Widen the horizontal limits so that the texts at the ends of the bars stay inside.

    Parameters
    ----------
    ax
        With all row names written: they decide how wide the Axes is.
    values
        Lengths of the bars, with sign.
    tips
        Texts that begin a few points beyond the ends, aligned away from the bar.
    """
    width = width_and_height(ax)[0] * figure_of(ax).dpi
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    span = high - low or 1.0
    pad = 8 * figure_of(ax).dpi / 72
    share = {"left": 0.0, "right": 0.0}  # of the width, by the side that the text stands on
    for tip in tips:
        side = "left" if tip.get_horizontalalignment() == "right" else "right"
        text = Text.get_window_extent(tip).width + pad
        share[side] = max(share[side], min(text / width, 0.4))
    whole = span / (1 - share["left"] - share["right"])
    ax.set_xlim(low - share["left"] * whole, high + share["right"] * whole)


# --- Places ----------------------------------------------------------------------------------


def push_apart(
    points: np.ndarray,
    apart: float | np.ndarray,
    inside: Callable[[np.ndarray], np.ndarray] = lambda points: points,
    *,
    steps: int = 80,
) -> np.ndarray:
    """Move points that are closer than ``apart`` away from each other, a little at a time.

    Parameters
    ----------
    points
        ``(n, 2)`` positions.
    apart
        Least distance, one or ``(n, n)``.
    inside
        Returns positions brought back inside the frame.
    steps
        At most so many.
    """
    for _ in range(steps):
        step = points[:, None] - points[None]
        distance = np.hypot(step[..., 0], step[..., 1])
        short = np.clip(apart - distance, 0, None)
        np.fill_diagonal(short, 0.0)
        if short.max() < 1e-3:
            break
        unit = step / np.maximum(distance, 1e-9)[..., None]
        points = inside(points + 0.4 * (unit * short[..., None]).sum(axis=1))
    return points


# --- Colours and markers ---------------------------------------------------------------------

#: Okabe and Ito (2008), without black (kept for text) and with yellow darkened to show on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C7A00")
MARKERS = ("o", "s", "^", "D", "v", "p", "<", "*", ">", "d", "h")
DASHED = (0, (4, 3))
#: Lines that are told apart without their colour.
LINES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (5, 2, 1.5, 2)),
    (0, (9, 2)),
    (0, (5, 2, 1.5, 2, 1.5, 2)),
)
GREY, AXIS, INK = "#8A8A8A", "#777777", "#222222"
#: Direction of an effect, blue–red with grey at zero.
DOWN, ZERO, UP = "#2166AC", "#D9D9D9", "#B2182B"
#: A false discovery rate up to this is marked.
SIGNIFICANT = 0.05
UP_TO, ABOVE = f"FDR ≤ {SIGNIFICANT:g}", f"FDR > {SIGNIFICANT:g}"


class Style(NamedTuple):
    """How one category is drawn."""

    color: str
    marker: str


#: The same said by shape, in texts and as markers.
ARROWS = {"up": "▲", "down": "▼", "unchanged": "●", "mixed": "◆"}
DIRECTION_STYLES = {"up": Style(UP, "^"), "down": Style(DOWN, "v"), "unchanged": Style(GREY, "o")}
#: Answers that are not viruses look different from every virus.
_SPECIAL = {
    UNINFECTED: Style(INK, "P"),
    NOT_VIRAL: Style("#555555", "H"),
    UNRESOLVED: Style(GREY, "X"),
}


def category_styles(names: Iterable[str]) -> dict[str, Style]:
    """Give each category its own pair of colour and marker.

    Neighbouring categories differ in both; a pair repeats only after 77 categories.
    """
    counter = count()
    styles = {}
    for name in names:
        if name in _SPECIAL:
            styles[name] = _SPECIAL[name]
            continue
        i = next(counter)
        styles[name] = Style(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)])
    return styles
