"""Codes where their vectors lie, flattened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.patches import Circle
from matplotlib.transforms import Bbox
from sklearn.decomposition import PCA
from sklearn.manifold import smacof

from cfm.pl import _figure as fig

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from cfm.pl._cell_codes import Levels

#: Radius in inches of the smallest and the largest disc; a letter still fits the smallest.
_SMALL, _LARGE = 0.075, 0.34
#: Share of the area that discs take at most, and inches between them and of the margin.
_FILLED, _GAP, _MARGIN = 0.22, 0.03, 0.4
_LEAST_SIDE = 3.2
_LINE, _NAME, _NAME_SIZE = "#C4C9D1", "#444444", 6.5
#: Inches: from this radius on the number of a code is written into its disc.
_ROOMY = 0.2


def draw_map(
    levels: Levels,
    chosen: list[str],
    vectors: pd.DataFrame,
    neighbours: pd.DataFrame,
    ax: Axes | None,
) -> Axes:
    """Draw the map of :func:`cfm.pl.cell_codes`: the vectors of codes, and pairs of neighbours."""
    n_cells = levels.size[chosen].to_numpy(dtype=np.float64)
    radii = _SMALL + (_LARGE - _SMALL) * np.sqrt(n_cells / n_cells.max())
    side = max(_LEAST_SIDE, np.sqrt((np.pi * radii**2).sum() / _FILLED))
    points = _laid_out(vectors.to_numpy(dtype=np.float64), radii, side)
    low, high = (points - radii[:, None]).min(axis=0), (points + radii[:, None]).max(axis=0)
    width, height = np.maximum(high - low, _LEAST_SIDE / 2) + 2 * _MARGIN
    if ax is None:
        legend = 0.2 * len(levels.letters) if levels.name else 0.0
        ax = fig.new_figure(max(width, 4.0) + 0.3, height + 0.9 + legend).add_subplot()
    x, y = (low + high) / 2
    ax.set(xlim=(x - width / 2, x + width / 2), ylim=(y - height / 2, y + height / 2))
    ax.set_aspect("equal")
    fig.bare(ax)
    ax.set_title(" ", fontsize=9)
    ax.set_xlabel(_note(n_cells), fontsize=7.5)
    first = neighbours[neighbours["cosine_rank"] == 1]
    place = {code: i for i, code in enumerate(chosen)}
    pairs = {
        (min(place[a], place[b]), max(place[a], place[b]))
        for a, b in zip(first["code"], first["neighbour"], strict=True)
        if a in place and b in place
    }
    lines = [points[list(pair)] for pair in sorted(pairs)]
    ax.add_collection(LineCollection(lines, colors=_LINE, linewidths=0.9, zorder=1), autolim=False)
    majority = levels.majority()
    drawn = [majority[code] if levels.name else "" for code in chosen]
    order = np.argsort(-radii, kind="stable")
    discs = [Circle((points[i, 0], points[i, 1]), radii[i]) for i in order]
    look = fig.Look(edgecolors="white", linewidths=0.6, zorder=2)
    colors = [levels.colors[drawn[i]] for i in order]
    ax.add_collection(PatchCollection(discs, facecolors=colors, **look))
    levels.legend(ax, width=max(width, 4.0), drop=0.32)
    fig.settle(ax)  # places need the final layout
    pixels = ax.transData.transform([[0, 0], [1, 0]])
    scale = (pixels[1, 0] - pixels[0, 0]) / fig.figure_of(ax).dpi  # not 1 in somebody's own Axes
    beside = []
    for center, radius, code, level in zip(points, radii, chosen, drawn, strict=True):
        letter = levels.letters[level]
        inside = radius * scale >= _ROOMY
        number = code if inside else ""
        size = float(np.clip(72 * radius * scale, 3.5, 12))
        parts = [(letter, 0.25 if number else 0.0, size)]
        parts.append((number, -0.5 if letter else 0.0, _NAME_SIZE))
        for text, lift, fontsize in parts:
            where = (center[0], center[1] + lift * radius)
            look = fig.Look(color=levels.text_color(level), zorder=3, ha="center")
            if text:
                ax.text(*where, text, fontsize=fontsize, va="center_baseline", **look)
        beside.append("" if inside else code)
    _write_names(ax, beside, points, radii, scale)
    return ax


def _note(n_cells: np.ndarray) -> str:
    largest, smallest = int(n_cells.max()), int(n_cells.min())
    if len(n_cells) == 1:
        return f"{largest:,} cells"
    return f"area: cells ({smallest:,} to {largest:,}); a line to the nearest code (cosine)"


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
    points = (found - found.mean(axis=0)) / (np.ptp(found, axis=0).max() or 1.0) * side
    # Codes with equal vectors lie on one point, which has no direction to move in.
    turn = np.arange(n) * 2.399963  # the golden angle
    points = points + 1e-3 * np.column_stack([np.cos(turn), np.sin(turn)])
    return fig.push_apart(points, radii[:, None] + radii + _GAP, steps=500)


def _write_names(
    ax: Axes, names: list[str], points: np.ndarray, radii: np.ndarray, scale: float
) -> None:
    """Write the number of each code beside it where there is room, of the largest first."""
    corners = ax.transData.transform(np.vstack([points - radii[:, None], points + radii[:, None]]))
    n = len(names)
    discs = [Bbox([corners[i], corners[n + i]]) for i in range(n)]
    written: list[Bbox] = []
    for i in np.argsort(-radii, kind="stable"):
        before = len(ax.texts)
        fig.label_points(
            ax,
            points[i : i + 1],
            [names[i]],
            fontsize=float(np.clip(_NAME_SIZE * scale, 4.5, _NAME_SIZE)),
            radius=(72 * radii[i] * scale + 1.5) * 0.75,  # so that a name begins beyond the disc
            places=fig.SIDES,
            avoid=[disc for j, disc in enumerate(discs) if j != i] + written,
        )
        for text in ax.texts[before:]:
            text.set_color(_NAME)
            written.append(text.get_window_extent())
