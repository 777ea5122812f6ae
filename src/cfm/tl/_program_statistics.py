"""Arrays behind :func:`cfm.tl.gene_programs`: what is said of a module of genes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cfm.stats._evidence import upper_p_values

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


def program_effects(effects: np.ndarray, programs: Sequence[np.ndarray]) -> np.ndarray:
    """Return how far the genes of each program move together, ``(n_programs,)``.

    The absolute mean effect of its genes in a profile, a mean over the profiles that measure any:
    near 0 where genes go up and down in the same profile.
    """
    out = np.zeros(len(programs))
    for i, members in enumerate(programs):
        own = effects[:, members]
        measured = np.isfinite(own).any(axis=1)
        out[i] = np.abs(mean_effects(own[measured].T)).mean() if measured.any() else 0.0
    return out


def program_strengths(effects: np.ndarray, programs: Sequence[np.ndarray]) -> np.ndarray:
    r"""Return how far programs move in units of what as many unrelated genes would, ``(n,)``.

    .. math:: \frac{1}{n} \sum_{i=1}^{n} \frac{\left| \sum_a e_{ia} \right|}{\sigma_i \sqrt{k_i}}

    over the :math:`k_i` genes of a program that profile :math:`i` measures, with the root mean
    square :math:`\sigma_i` of all effects of the profile.
    """
    known = np.isfinite(effects)
    values = np.where(known, effects, 0.0).astype(np.float64)
    scale = np.sqrt((values**2).sum(axis=1) / np.maximum(known.sum(axis=1), 1))
    out = np.zeros(len(programs))
    for i, members in enumerate(programs):
        n = np.maximum(known[:, members].sum(axis=1), 1)
        moved = np.abs(values[:, members].sum(axis=1))
        out[i] = (moved / np.maximum(scale * np.sqrt(n), 1e-300)).mean()
    return out


def null_p_values(
    sizes: np.ndarray, strengths: np.ndarray, null_sizes: np.ndarray, null_strengths: np.ndarray
) -> np.ndarray:
    r"""Compare the strengths of programs with those that a null has at their size.

    Large programs are stronger by chance. The trend :math:`\log s = a + b \log k` of the null is
    taken off, up to the sizes that hold the middle 90 % of it: what is larger gains by its size.

    Parameters
    ----------
    sizes, strengths
        ``(n,)`` of the programs; sizes above 0.
    null_sizes, null_strengths
        ``(m,)`` of the programs that the same steps found under the null.

    Returns
    -------
    ``(n,)`` share of the null with at least that strength, the program itself counted, so never 0;
    ``NaN`` if the null has no program.
    """
    if not len(null_sizes):
        return np.full(len(sizes), np.nan)
    ends = np.quantile(np.log(null_sizes), [0.05, 0.95])
    of_null, own = (np.clip(np.log(x), *ends) for x in (null_sizes, sizes))
    moving = null_strengths > 0
    centred = of_null[moving] - of_null[moving].mean() if moving.any() else np.zeros(0)
    squares = float(centred @ centred)
    slope = centred @ np.log(null_strengths[moving]) / squares if squares > 0 else 0.0
    return upper_p_values(strengths / np.exp(slope * own), null_strengths / np.exp(slope * of_null))


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
