"""Codes where their vectors lie, flattened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.patches import Circle
from matplotlib.transforms import Bbox
from sklearn.decomposition import PCA
from sklearn.manifold import smacof

from cfm.pl._code_levels import Levels, text_color
from cfm.pl._figure import figure_of, new_figure
from cfm.pl._labels import Place, label_points

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Radius in inches of the smallest and the largest disc; a letter still fits the smallest.
_SMALL, _LARGE = 0.075, 0.34
#: Share of the area that discs take at most, and inches between them and of the margin.
_FILLED, _GAP, _MARGIN = 0.22, 0.03, 0.4
_LEAST_SIDE = 3.2
_LINE, _NAME, _NAME_SIZE = "#C4C9D1", "#444444", 6.5
#: Inches: from this radius on the number of a code is written into its disc.
_ROOMY = 0.2
#: A number stands at a side of its disc, never between two.
_PLACES: tuple[Place, ...] = (
    (6, 0, "left", "center"),
    (-6, 0, "right", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
)


def draw_map(
    levels: Levels, chosen: list[str], vectors: pd.DataFrame, neighbours: pd.DataFrame, *,
    title: str, ax: Axes | None,
) -> Axes:  # fmt: skip
    """Draw the map of :func:`cfm.pl.cell_codes`.

    Parameters
    ----------
    levels
        Cells by code and level.
    chosen
        Codes to draw.
    vectors
        Of the codes, rows by their names.
    neighbours
        Pairs of codes with ``cosine_rank``.
    title
        Title.
    ax
        Where to draw.
    """
    n_cells = levels.size[chosen].to_numpy(dtype=np.float64)
    radii = _SMALL + (_LARGE - _SMALL) * np.sqrt(n_cells / n_cells.max())
    side = max(_LEAST_SIDE, np.sqrt((np.pi * radii**2).sum() / _FILLED))
    points = _laid_out(vectors.loc[chosen].to_numpy(dtype=np.float64), radii, side)
    low, high = (points - radii[:, None]).min(axis=0), (points + radii[:, None]).max(axis=0)
    width, height = np.maximum(high - low, _LEAST_SIDE / 2) + 2 * _MARGIN
    if ax is None:
        legend = 0.2 * len(levels.letters) if levels.name else 0.0
        ax = new_figure(max(width, 4.0) + 0.3, height + 0.9 + legend).add_subplot()
    centre = (low + high) / 2
    ax.set_xlim(centre[0] - width / 2, centre[0] + width / 2)
    ax.set_ylim(centre[1] - height / 2, centre[1] + height / 2)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(_note(n_cells, len(chosen)), fontsize=7.5)
    _links(ax, chosen, points, neighbours)
    majority = levels.majority()
    colors = [levels.colors[majority[code] if levels.name else ""] for code in chosen]
    order = np.argsort(-radii, kind="stable")
    ax.add_collection(
        PatchCollection(
            [Circle((points[i, 0], points[i, 1]), radii[i]) for i in order],
            facecolors=[colors[i] for i in order],
            edgecolors="white",
            linewidths=0.6,
            zorder=2,
        )
    )
    levels.legend(ax, width=max(width, 4.0), drop=0.32)
    figure = figure_of(ax)
    figure.draw_without_rendering()  # places need the final layout
    pixels = ax.transData.transform([[0, 0], [1, 0]])
    scale = (pixels[1, 0] - pixels[0, 0]) / figure.dpi  # not 1 in somebody's own Axes
    texts = [levels.letters[majority[code]] if levels.name else "" for code in chosen]
    beside = []
    for center, radius, code, letter, color in zip(
        points, radii, chosen, texts, colors, strict=True
    ):
        inside = [letter] if radius * scale < _ROOMY else [letter, code]
        _write(ax, center, radius, scale, inside, text_color(color))
        beside.append("" if code in inside else code)
    _names(ax, beside, points, radii, scale)
    return ax


def _note(n_cells: np.ndarray, n: int) -> str:
    largest, smallest = int(n_cells.max()), int(n_cells.min())
    size = f"area: cells ({smallest:,} to {largest:,})" if n > 1 else f"{largest:,} cells"
    return f"{size}; a line to the nearest code (cosine)" if n > 1 else size


def _laid_out(vectors: np.ndarray, radii: np.ndarray, side: float) -> np.ndarray:
    """Place codes in inches, those with like vectors near each other and no two on each other."""
    n = len(vectors)
    if n == 1:
        return np.zeros((1, 2))
    k = min(2, n - 1, vectors.shape[1])
    start = np.zeros((n, 2))
    start[:, :k] = PCA(k, svd_solver="full").fit_transform(vectors)
    angle = np.arccos(np.clip(vectors @ vectors.T, -1.0, 1.0))
    np.fill_diagonal(angle, 0.0)
    found, _ = smacof((angle + angle.T) / 2, n_components=2, init=start, n_init=1)
    span = np.ptp(found, axis=0).max() or 1.0
    return _pushed_apart((found - found.mean(axis=0)) / span * side, radii)


def _pushed_apart(points: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Move discs that cover each other away from each other, a little at a time."""
    n = len(points)
    # Codes with equal vectors lie on one point, which has no direction to move in.
    turn = np.arange(n) * 2.399963  # the golden angle
    points = points + 1e-3 * np.column_stack([np.cos(turn), np.sin(turn)])
    apart = radii[:, None] + radii + _GAP
    np.fill_diagonal(apart, 0.0)
    for _ in range(500):
        step = points[:, None] - points[None]
        distance = np.hypot(step[..., 0], step[..., 1])
        short = np.clip(apart - distance, 0, None)
        if short.max() < 1e-3:
            break
        unit = step / np.maximum(distance, 1e-9)[..., None]
        points = points + 0.45 * (unit * short[..., None]).sum(axis=1)
    return points


def _links(ax: Axes, chosen: list[str], points: np.ndarray, neighbours: pd.DataFrame) -> None:
    """Draw a line from each code to its nearest one."""
    place = {code: i for i, code in enumerate(chosen)}
    first = neighbours[neighbours["cosine_rank"] == 1]
    pairs = {
        tuple(sorted((place[a], place[b])))
        for a, b in zip(first["code"], first["neighbour"], strict=True)
        if a in place and b in place
    }
    lines = [points[list(pair)] for pair in sorted(pairs)]
    ax.add_collection(LineCollection(lines, colors=_LINE, linewidths=0.9, zorder=1), autolim=False)


def _write(
    ax: Axes, center: np.ndarray, radius: float, scale: float, texts: list[str], color: str
) -> None:
    """Write a letter into a disc, and under it a number if there is one."""
    letter, number = [*texts, ""][:2]
    parts = [
        (letter, 0.25 if number else 0.0, float(np.clip(72 * radius * scale, 3.5, 12))),
        (number, -0.5 if letter else 0.0, _NAME_SIZE),
    ]
    for text, lift, size in parts:
        if text:
            x, y = center[0], center[1] + lift * radius
            ax.text(
                x, y, text, color=color, fontsize=size, zorder=3, ha="center", va="center_baseline"
            )


def _names(ax: Axes, names: list[str], points: np.ndarray, radii: np.ndarray, scale: float) -> None:
    """Write the number of each code beside it where there is room, of the largest first."""
    corners = ax.transData.transform(np.vstack([points - radii[:, None], points + radii[:, None]]))
    n = len(names)
    discs = [Bbox([corners[i], corners[n + i]]) for i in range(n)]
    written: list[Bbox] = []
    for i in np.argsort(-radii, kind="stable"):
        before = len(ax.texts)
        label_points(
            ax,
            points[i : i + 1],
            [names[i]],
            fontsize=float(np.clip(_NAME_SIZE * scale, 4.5, _NAME_SIZE)),
            radius=(72 * radii[i] * scale + 1.5) * 0.75,  # so that a name begins beyond the disc
            places=_PLACES,
            avoid=[disc for j, disc in enumerate(discs) if j != i] + written,
        )
        for text in ax.texts[before:]:
            text.set_color(_NAME)
            written.append(text.get_window_extent())
