"""Host factors of a group: the first of them, and where the genes of other lists stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cfm._arguments import NOT_NEGATIVE, checks_arguments
from cfm._fields import HOST_FACTORS_KEY, RESULTS
from cfm.pl import _figure as fig

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_COLUMNS = (
    "group", "explained", "gene", "score", "rank", "direction", "effect", "call_effect", "fdr",
    "n_profiles",
)  # fmt: skip
_KNOWN, _HATCH, _DARK = "known", "////", "#444444"


def _by_group(
    adata: AnnData, key: str, group: str | Sequence[str] | None, columns: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Return the host factors of each group in the order of their rank."""
    table = fig.stored_table(adata, key, RESULTS, columns, tool="host_factors")
    groups = fig.pick("group", group, table["group"].unique(), f"uns[{key!r}]")
    table = table.sort_values("rank", kind="stable")
    return {name: table[table["group"] == name] for name in groups}


def _explained(table: pd.DataFrame) -> str:
    return f"explained: {fig.shorten(table['explained'].iloc[0], 32)}"


@checks_arguments()
@fig.documented
def host_factors(
    adata: AnnData,
    *,
    key: str = HOST_FACTORS_KEY,
    group: str | Sequence[str] | None = None,
    n_genes: int = 15,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | dict[str, Axes]:
    """Draw the first host factors of a group, in the order of their rank.

    The title has the group and what is explained: a virus, or that there is a response.
    The length of a bar is the score. It points right if the gene supports the call
    (``call_effect`` > 0) and left if it opposes it. Colour and arrow give the direction of
    the gene's own effect in the group (▲ up, ▼ down, ● unchanged), and the number its mean log2
    fold change. A filled bar with a star has a false discovery rate of at most 0.05, a hollow one
    a larger one, and a hatched one none because no null distribution was possible. Genes that were
    given as known (``method="guided"``) carry a †.

    Parameters
    ----------
    adata
        Profiles with the fields written by :func:`cfm.tl.host_factors`.
    %(key)s
    %(group)s
    n_genes
        At most this many genes, the first by rank.
    %(panel)s

    Returns
    -------
    %(group_axes)s

    Raises
    ------
    KeyError
        If :func:`cfm.tl.host_factors` was not run, or a group is not in its result.
    ValueError
        If ``n_genes`` is below 1, ``group`` is empty, or ``ax`` is given with several groups.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.host_factors(contrasts, "virus", "reversal", n_permutations=5)
    >>> ax = cfm.pl.host_factors(contrasts, group="virus_A", n_genes=5, show=False)
    >>> len(ax.get_yticklabels())
    5
    """
    fig.require_anndata(adata)
    parts = {name: part[:n_genes] for name, part in _by_group(adata, key, group, _COLUMNS).items()}
    rows = max(3, *map(len, parts.values()))
    longest = max(len(name) for part in parts.values() for name in _row_names(part))
    size = (3.6 + 0.08 * longest, 1.7 + 0.19 * rows)
    panels = fig.open_panels(list(parts), ax, *size, argument="group")
    for name, panel in panels.items():
        _draw_bars(panel, name, parts[name])
    return fig.one_or_all(fig.finish(panels, ax, show=show, save=save), group)


def _draw_bars(ax: Axes, group: str, table: pd.DataFrame) -> None:
    call = np.nan_to_num(table["call_effect"].to_numpy(dtype=np.float64))
    # a score below zero has no length: its gene ranks last, and the sign stands for the call
    length = np.clip(np.nan_to_num(table["score"].to_numpy(dtype=np.float64)), 0, None)
    values = np.where(call < 0, -length, length)
    fdr = table["fdr"].to_numpy(dtype=np.float64)
    directions, effects = table["direction"].tolist(), table["effect"]
    tips = []
    rows = zip(values, call < 0, directions, effects, fdr, strict=True)
    for y, (value, left, direction, effect, q) in enumerate(rows):
        color = fig.DIRECTION_STYLES[direction].color
        face, hatch = color if q <= fig.SIGNIFICANT else "white", _HATCH if np.isnan(q) else None
        look = fig.Look(facecolor=face, edgecolor=color, hatch=hatch)
        ax.barh(y, value, height=0.72, linewidth=1.2, **look)
        color = color if direction != "unchanged" else _DARK
        tips.append(fig.write_tip(ax, _tip(direction, effect, q), value, y, left=left, color=color))
    ax.axvline(0, color=fig.AXIS, linewidth=0.8)
    fig.name_rows(ax, _row_names(table), least=3)  # two bars are no beams
    ax.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    profiles = fig.plural(int(table["n_profiles"].iloc[0]), "profile")
    ax.set_title(f"{fig.shorten(group, 32)} ({profiles})\n{_explained(table)}", fontsize=9)
    sides = "   ← against it · for what is explained →" if (call != 0).any() else ""
    ax.set_xlabel(f"score{sides}")
    fig.tidy(ax, "left")
    handles = _key(set(directions), fdr)
    if _KNOWN in table and table[_KNOWN].any():
        handles.append(fig.mark("† given as known"))
    fig.legend_below(ax, handles, columns=2)
    fig.room_for_tips(ax, values, tips)


def _tip(direction: str, effect: float, fdr: float) -> str:
    if np.isnan(effect) or effect == 0:
        number = "" if np.isnan(effect) else " 0"
    else:
        number = fig.minus(f" {effect:+.{1 if abs(effect) >= 0.095 else 2}f}")  # never −0.0
    return f"{fig.ARROWS[direction]}{number}{' *' if fdr <= fig.SIGNIFICANT else ''}"


def _row_names(table: pd.DataFrame) -> list[str]:
    known = table[_KNOWN].astype(bool) if _KNOWN in table else [False] * len(table)
    genes = zip(table["gene"], known, strict=True)
    return [f"{fig.shorten(gene, 24)}{' †' if given else ''}" for gene, given in genes]


def _key(directions: set[str], fdr: np.ndarray) -> list[Artist]:
    handles: list[Artist] = [
        fig.mark(name, *style) for name, style in fig.DIRECTION_STYLES.items() if name in directions
    ]
    handles[0].set_label(f"{handles[0].get_label()} (number: mean log2FC)")
    kinds = (
        (fdr <= fig.SIGNIFICANT, f"{fig.UP_TO} (*)", _DARK, None),
        (fdr > fig.SIGNIFICANT, fig.ABOVE, "white", None),
        (np.isnan(fdr), "no FDR possible", "white", _HATCH),
    )
    for found, text, face, hatch in kinds:
        if found.any():
            handles.append(Patch(edgecolor=_DARK, label=text, facecolor=face, hatch=hatch))
    return handles


# --- Lists of genes --------------------------------------------------------------------------

_DASHES = ("-", "--", "-.", ":")
#: Height of the ticks of one list, and their distance from the curves, as shares of the range.
_RUG, _APART = 0.07, 0.05


class Walk(NamedTuple):
    """A running sum along ranked genes, and how far it goes beside those of random sets.

    ``values`` ``(n_genes,)``; ``score``, its largest departure from 0; ``normalized``, that over
    its mean in random sets of the same sign; ``p_value``, the share of these that go as far.
    """

    values: np.ndarray
    score: float
    normalized: float
    p_value: float


def random_places(n: int, most: int, n_permutations: int, seed: int) -> np.ndarray:
    """Return ``(n_permutations, most)`` places among ``n`` in random order, none twice in a row."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(n, most, replace=False) for _ in range(n_permutations)])


def preranked_walk(
    score: np.ndarray, inside: np.ndarray, random: np.ndarray, *, weight: float
) -> Walk:
    r"""Walk along ranked genes (GSEA, Subramanian et al. 2005).

    .. math:: ES = P_{hit}(i) - P_{miss}(i) \text{ where its size is largest}, \quad
        P_{hit}(i) = \sum_{j \le i,\, j \in S} \frac{|s_j|^w}{\sum_{k \in S} |s_k|^w}, \quad
        P_{miss}(i) = \sum_{j \le i,\, j \notin S} \frac{1}{n - |S|}

    The numbers of :func:`gseapy.prerank`, which walks past every gene in each permutation where
    this only visits the genes of the set.

    Parameters
    ----------
    score
        ``(n,)`` scores of the genes, by rank.
    inside
        ``(n,)`` bool, the genes of the set; some, but not all.
    random
        What :func:`random_places` returned, for at least as many genes as the set has; several
        sets may share it.
    weight
        The power :math:`w`.
    """
    size = np.abs(score) ** weight
    place = np.flatnonzero(inside)
    n, k = len(score), len(place)
    hit = np.where(inside, size, 0.0)
    total = hit.sum()
    hit = hit / total if total > 0 else inside / k  # all genes of the set have score 0
    values = np.cumsum(hit) - np.cumsum(~inside) / (n - k)
    found = values[np.abs(values).argmax()]
    null = _departures(np.sort(random[:, :k], axis=1), size, n)
    same = null[null * found > 0]
    if not len(same):
        return Walk(values, float(found), float("nan"), 0.0)
    further = float((np.abs(same) >= abs(found)).mean())
    return Walk(values, float(found), float(found / np.abs(same).mean()), further)


def _departures(place: np.ndarray, size: np.ndarray, n: int) -> np.ndarray:
    """Return the score of sets, from ``(n_sets, k)`` sorted places of their genes.

    The sum is highest after a gene of the set and lowest before one.
    """
    k = place.shape[1]
    hit = np.cumsum(size[place], axis=1)
    total = hit[:, -1:].copy()
    hit = np.divide(
        hit, total, out=np.tile(np.arange(1, k + 1) / k, (len(hit), 1)), where=total > 0
    )
    missed = (place - np.arange(k)) / (n - k)
    high = (hit - missed).max(axis=1)
    before = np.concatenate([np.zeros((len(hit), 1)), hit[:, :-1]], axis=1)
    low = (before - missed).min(axis=1)
    return np.where(high >= -low, high, low)


class _Walk(NamedTuple):
    """Walk of one list, the places of its genes, and how many were given."""

    name: str
    walk: Walk
    hits: np.ndarray
    n_given: int


@checks_arguments(weight=NOT_NEGATIVE)
@fig.documented
def host_factor_enrichment(
    adata: AnnData,
    reference: Iterable[str] | Mapping[str, Iterable[str]],
    *,
    key: str = HOST_FACTORS_KEY,
    group: str | Sequence[str] | None = None,
    weight: float = 1.0,
    n_permutations: int = 1000,
    seed: int = 0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | dict[str, Axes]:
    r"""Draw how the genes of a reference list gather at the top of the host factors.

    Genes are walked through by rank. The curve rises at a gene of the list and falls at the
    others (GSEA, Subramanian et al. 2005); the ticks below show where the genes of the list are.
    The legend has:

    - ES, the largest departure from zero,
      :math:`\max_i |P_{hit}(i) - P_{miss}(i)|` with its sign, where a hit counts with
      :math:`|score|^{weight}`;
    - NES, the same divided by its mean over permutations with that sign;
    - p, the share of permutations of the genes that reach it (not below 1/``n_permutations``).

    The permutations take genes for independent. They are not: genes that are regulated together
    make p too small, so read it as a summary of the picture and not as a test.

    Parameters
    ----------
    adata
        Profiles with the fields written by :func:`cfm.tl.host_factors`.
    reference
        Gene symbols, for instance the hits of a CRISPR screen; or several lists by name.
    %(key)s
    %(group)s
    weight
        Power of the score with which a hit counts; 0 uses the ranks alone.
    n_permutations
        Random lists behind NES and p.
    seed
        Of the permutations.
    %(panel)s

    Returns
    -------
    %(group_axes)s

    Raises
    ------
    KeyError
        If :func:`cfm.tl.host_factors` was not run, or a group is not in its result.
    TypeError
        If ``reference`` is a text.
    ValueError
        If ``n_permutations`` is below 1, a list is empty, has no gene among the ranked ones or all
        of them, all scores of a group are the same, ``group`` is empty, or ``ax`` is given with
        several groups.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.host_factors(contrasts, "virus", "reversal", n_permutations=5)
    >>> screen = contrasts.var_names[:40]  # in earnest: the hits of a genetic screen
    >>> ax = cfm.pl.host_factor_enrichment(contrasts, screen, group="virus_A", show=False)
    >>> ax.get_xlabel()
    'rank as host factor (ticks: genes of the list)'
    """
    fig.require_anndata(adata)
    lists = _lists(reference)
    columns = ("group", "explained", "gene", "score", "rank")
    ranked = _by_group(adata, key, group, columns)
    walks = {
        name: _walks(table, lists, name, weight, n_permutations, seed)
        for name, table in ranked.items()
    }
    panels = fig.open_panels(list(walks), ax, 4.8, 3.55 + 0.3 * len(lists), argument="group")
    for name, panel in panels.items():
        _draw_walks(panel, walks[name], n_permutations)
        title = f"{fig.shorten(name, 32)} ({len(ranked[name]):,} genes)\n{_explained(ranked[name])}"
        panel.set_title(title, fontsize=9)
    return fig.one_or_all(fig.finish(panels, ax, show=show, save=save), group)


def _lists(reference: Iterable[str] | Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Return the lists by name, each gene once."""
    if isinstance(reference, str):
        raise TypeError(
            f"reference is the text {reference!r}; expected a list of gene symbols, or a dict "
            "from names to lists."
        )
    named = reference if isinstance(reference, Mapping) else {"reference": reference}
    lists = {str(name): list(dict.fromkeys(map(str, genes))) for name, genes in named.items()}
    if not lists:
        raise ValueError("reference is an empty dict; expected at least one list of gene symbols.")
    for name, genes in lists.items():
        if not genes:
            raise ValueError(f"reference list {name!r} is empty; expected gene symbols.")
    return lists


def _walks(
    ranked: pd.DataFrame,
    lists: dict[str, list[str]],
    group: str,
    weight: float,
    n_permutations: int,
    seed: int,
) -> list[_Walk]:
    """Score each list along the genes of one group, sorted by rank."""
    genes = pd.Index(ranked["gene"])
    score = ranked["score"].to_numpy(dtype=np.float64)
    if np.ptp(score) == 0:
        raise ValueError(
            f"all {len(genes)} genes of group {group!r} have the same score, so no order is there "
            "to walk through."
        )
    for name, members in lists.items():
        n = int(genes.isin(members).sum())
        if n in (0, len(genes)):
            what = "none of the" if n == 0 else "all"
            raise ValueError(
                f"reference list {name!r} has {what} {len(genes)} ranked genes of group "
                f"{group!r}; expected some of them, as current gene symbols."
            )
    inside = {name: genes.isin(members) for name, members in lists.items()}
    most = max(int(found.sum()) for found in inside.values())
    random = random_places(len(genes), most, n_permutations, seed)
    return [
        _Walk(
            name,
            preranked_walk(score, found, random, weight=weight),
            np.flatnonzero(found),
            len(lists[name]),
        )
        for name, found in inside.items()
    ]


def _draw_walks(ax: Axes, walks: list[_Walk], n_permutations: int) -> None:
    n = len(walks[0].walk.values)
    low = min(0.0, *(walk.walk.values.min() for walk in walks))
    high = max(0.0, *(walk.walk.values.max() for walk in walks))
    span = high - low
    handles = []
    for i, walk in enumerate(walks):
        color, dash = fig.COLORS[i % len(fig.COLORS)], _DASHES[i % len(_DASHES)]
        ax.plot(np.arange(n + 1), np.r_[0, walk.walk.values], dash, color=color, linewidth=1.5)
        peak = int(np.argmax(np.abs(walk.walk.values)))
        ax.plot(peak + 1, walk.walk.values[peak], "o", color=color, markersize=4)
        top = low - (_APART + i * (_RUG + 0.02)) * span
        ax.vlines(walk.hits + 1, top - _RUG * span, top, color=color, linewidth=0.7)
        handles.append(fig.mark(_numbers(walk, n_permutations), color, line=dash))
    ax.axhline(0, color=fig.AXIS, linewidth=0.8)
    ax.set_xlim(-0.01 * n, n + 0.5 + 0.01 * n)
    ax.set_ylim(low - (_APART + len(walks) * (_RUG + 0.02)) * span, high + 0.06 * span)
    ax.set_yticks([y for y in ax.get_yticks() if low - 1e-9 <= y <= high + 0.06 * span])
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    which = "genes of the list" if len(walks) == 1 else "genes of each list, as below"
    ax.set(xlabel=f"rank as host factor (ticks: {which})", ylabel="running sum")
    fig.tidy(ax)
    fig.legend_below(ax, handles, columns=1, handle=2.4)


def _numbers(walk: _Walk, n_permutations: int) -> str:
    least = 1 / n_permutations
    p = f"p < {least:.2g}" if walk.walk.p_value < least else f"p = {walk.walk.p_value:.2g}"
    numbers = fig.minus(f"ES {walk.walk.score:+.2f}, NES {walk.walk.normalized:+.2f}, {p}")
    return f"{fig.shorten(walk.name, 28)} ({len(walk.hits)} of {walk.n_given}): {numbers}"
