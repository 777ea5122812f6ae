"""Arrays behind :func:`cfm.tl.gene_programs`: what is said of a module of genes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm.tl._program_graph import Edges

#: A program in which at least this share of the genes moves one way has that direction.
DIRECTED = 0.8


def concordance(effects: np.ndarray) -> float:
    r"""Return the share of gene pairs that move the same way, a mean over profiles.

    With :math:`u` genes up and :math:`d` down in a profile it is
    :math:`(\binom{u}{2} + \binom{d}{2}) / \binom{u + d}{2}`. Genes drawn at random give about
    :math:`p^2 + (1 - p)^2`, with :math:`p` the share of genes that go up, not 0.

    Parameters
    ----------
    effects
        ``(n, genes)`` signed effects; 0 and ``NaN`` do not move.

    Returns
    -------
    0 to 1; ``NaN`` if in no profile two genes move.
    """
    with np.errstate(invalid="ignore"):
        up = (effects > 0).sum(axis=1).astype(np.float64)
        down = (effects < 0).sum(axis=1).astype(np.float64)
    pairs = (up + down) * (up + down - 1) / 2
    same = (up * (up - 1) + down * (down - 1)) / 2
    moving = pairs > 0
    return float((same[moving] / pairs[moving]).mean()) if moving.any() else float("nan")


def mean_effects(effects: np.ndarray) -> np.ndarray:
    """Return the mean of each column over the profiles that measure it; 0 if none does."""
    known = np.isfinite(effects)
    total = np.where(known, effects, 0.0).sum(axis=0, dtype=np.float64)
    return total / np.maximum(known.sum(axis=0), 1)


def direction(signs: np.ndarray) -> str:
    """Name the direction of a program from the −1 or 1 of its genes: up, down or mixed."""
    up, down = float((signs > 0).mean()), float((signs < 0).mean())
    return "up" if up >= DIRECTED else "down" if down >= DIRECTED else "mixed"


def centrality(edges: Edges, members: np.ndarray) -> np.ndarray:
    """Return the summed weight of each member's edges to other members, the largest scaled to 1."""
    inside = np.zeros(edges.n_nodes, dtype=bool)
    inside[members] = True
    own = inside[edges.a] & inside[edges.b]
    among = replace(edges, a=edges.a[own], b=edges.b[own], weight=edges.weight[own])
    weight = among.strength()[members]
    return weight / max(float(weight.max(initial=0.0)), 1e-300)


def cohesion(edges: Edges, programs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the share of the weight of each program's edges that stays inside, ``(n,)``."""
    number = np.full(edges.n_nodes, -1, dtype=np.int64)
    for i, members in enumerate(programs):
        number[members] = i
    same = (number[edges.a] == number[edges.b]) & (number[edges.a] >= 0)
    inside = np.bincount(number[edges.a][same], edges.weight[same], minlength=len(programs))
    strength = edges.strength()
    total = np.array([strength[members].sum() for members in programs])
    return 2.0 * inside / np.maximum(total, 1e-300)


def null_p_values(
    sizes: np.ndarray,
    cohesions: np.ndarray,
    null_sizes: np.ndarray,
    null_cohesions: np.ndarray,
    *,
    n_similar: int = 50,
) -> np.ndarray:
    """Compare each program with the modules of random graphs that are nearest to it in size.

    Parameters
    ----------
    sizes, cohesions
        ``(n,)`` of the programs.
    null_sizes, null_cohesions
        ``(m,)`` of the modules that the same algorithm found in random graphs.
    n_similar
        How many of those a program is compared with: the nearest in log size, and all ties.

    Returns
    -------
    ``(n,)`` share of them with at least its cohesion, the program itself counted among them, so
    never 0; ``NaN`` if there are none.
    """
    out = np.full(len(sizes), np.nan)
    if not len(null_sizes):
        return out
    for i, (size, value) in enumerate(zip(sizes, cohesions, strict=True)):
        distance = np.abs(np.log(null_sizes) - np.log(size))
        reach = np.sort(distance)[min(n_similar, len(distance)) - 1]
        similar = null_cohesions[distance <= reach + 1e-12]
        out[i] = (1 + (similar >= value).sum()) / (1 + len(similar))
    return out


def best_jaccard(programs: Sequence[np.ndarray], membership: np.ndarray) -> np.ndarray:
    """Return the Jaccard index of each program with the module most like it, ``(n,)``.

    Parameters
    ----------
    programs
        Nodes of each program.
    membership
        ``(n_nodes,)`` module of each node in another partition; −1 for nodes that are not in it.
    """
    sizes = np.bincount(membership[membership >= 0], minlength=1)
    out = np.zeros(len(programs))
    for i, members in enumerate(programs):
        there = membership[members]
        shared = np.bincount(there[there >= 0], minlength=len(sizes))
        out[i] = (shared / (sizes + len(members) - shared)).max()
    return out
