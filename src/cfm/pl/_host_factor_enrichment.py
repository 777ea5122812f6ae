"""Running-sum plot: where the genes of a reference list stand among the host factors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cfm._arguments import NOT_NEGATIVE, checks_arguments
from cfm._fields import HOST_FACTORS_KEY, RESULTS
from cfm.pl._checks import require_anndata
from cfm.pl._figure import figure_of, finish, legend_below
from cfm.pl._labels import shorten
from cfm.pl._palette import COLORS
from cfm.pl._panels import chosen_groups, group_axes, one_or_all
from cfm.pl._stored import stored_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

_DASHES = ("-", "--", "-.", ":")
#: Height of the ticks of one list, and their distance from the curves, as shares of the range.
_RUG, _APART = 0.07, 0.05


class _Walk(NamedTuple):
    """Running sum of one list: its values at each gene, the places of its hits, the statistics."""

    name: str
    values: np.ndarray
    hits: np.ndarray
    score: float
    normalized: float
    p_value: float
    n_given: int


@checks_arguments(weight=NOT_NEGATIVE)
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
    The legend has, from :func:`gseapy.prerank`:

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
    key
        Where the host factors are stored (``key_added`` of that call).
    group
        Group or groups to draw; ``None`` draws all, one panel each.
    weight
        Power of the score with which a hit counts; 0 uses the ranks alone.
    n_permutations
        Random lists behind NES and p.
    seed
        Makes them repeat.
    ax
        Draw here instead of into a new figure (one group).
    show
        Show the figure. ``False`` closes it; the returned Axes can still be saved.
    save
        File to write the figure to.

    Returns
    -------
    The Axes drawn on; with several groups, or a list of them, a dict from group to Axes.

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
    require_anndata(adata)
    lists = _lists(reference)
    columns = ("group", "explained", "gene", "score", "rank")
    table = stored_table(adata, key, RESULTS, tool="host_factors", columns=columns)
    groups = chosen_groups(table, group, key)
    walks, explained = {}, {}
    for name in groups:
        ranked = table[table["group"] == name].sort_values("rank", kind="stable")
        walks[name] = _walks(ranked, lists, name, weight, n_permutations, seed)
        explained[name] = str(ranked["explained"].iloc[0])
    panels = group_axes(groups, ax, 4.8, 3.55 + 0.3 * len(lists))
    for name, panel in panels.items():
        _draw(panel, walks[name], n_permutations)
        title = f"{shorten(name, 32)} ({len(walks[name][0].values):,} genes)"
        panel.set_title(f"{title}\nexplained: {shorten(explained[name], 32)}", fontsize=9)
    first = next(iter(panels.values()))
    finish(figure_of(first), owned=ax is None, show=show, save=save)
    return one_or_all(panels, group)


def _lists(reference: Iterable[str] | Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    if isinstance(reference, str):
        raise TypeError(
            f"reference is the text {reference!r}; expected a list of gene symbols, or a dict "
            "from names to lists."
        )
    named = reference if isinstance(reference, Mapping) else {"reference": reference}
    lists = {str(name): [str(gene) for gene in genes] for name, genes in named.items()}
    lists = {name: list(dict.fromkeys(genes)) for name, genes in lists.items()}
    empty = [name for name, genes in lists.items() if not genes]
    if empty or not lists:
        raise ValueError(
            f"reference list {empty[0]!r} is empty; expected gene symbols."
            if empty
            else "reference is an empty dict; expected at least one list of gene symbols."
        )
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
    import gseapy  # takes a second to import, which the other plots need not wait for

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
    # ties keep the order of their rank: gseapy would put them in any order
    steps = 1e-9 * np.ptp(score) * np.arange(len(score)) / len(score)
    walks = []
    with _quiet():
        for name, members in lists.items():
            result = gseapy.prerank(
                rnk=pd.Series(score - steps, index=genes),
                gene_sets={name: members},
                min_size=1,
                max_size=len(genes),
                permutation_num=n_permutations,
                weight=weight,
                threads=1,
                seed=seed,
                outdir=None,
                no_plot=True,
            ).results[name]
            walks.append(
                _Walk(
                    name,
                    np.asarray(result["RES"], dtype=np.float64),
                    np.asarray(result["hits"], dtype=np.int64),
                    float(result["es"]),
                    float(result["nes"]),
                    float(result["pval"]),
                    len(members),
                )
            )
    return walks


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep gseapy from writing to the terminal; what matters is checked before."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _draw(ax: Axes, walks: list[_Walk], n_permutations: int) -> None:
    n = len(walks[0].values)
    low = min(0.0, *(walk.values.min() for walk in walks))
    high = max(0.0, *(walk.values.max() for walk in walks))
    span = high - low
    handles = []
    for i, walk in enumerate(walks):
        color, dash = COLORS[i % len(COLORS)], _DASHES[i % len(_DASHES)]
        ranks = np.arange(1, n + 1)
        ax.plot([0, *ranks], [0, *walk.values], dash, color=color, linewidth=1.5)
        peak = int(np.argmax(np.abs(walk.values)))
        ax.plot(ranks[peak], walk.values[peak], "o", color=color, markersize=4)
        top = low - (_APART + i * (_RUG + 0.02)) * span
        ax.vlines(walk.hits + 1, top - _RUG * span, top, color=color, linewidth=0.7)
        handles.append(Line2D([], [], ls=dash, color=color, label=_said(walk, n_permutations)))
    bottom = low - (_APART + len(walks) * (_RUG + 0.02)) * span
    ax.axhline(0, color="#777777", linewidth=0.8)
    ax.set_xlim(-0.01 * n, n + 0.5 + 0.01 * n)
    ax.set_ylim(bottom, high + 0.06 * span)
    ticks = [tick for tick in ax.get_yticks() if low - 1e-9 <= tick <= high + 0.06 * span]
    ax.set_yticks(ticks)
    ax.tick_params(labelsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    which = "genes of the list" if len(walks) == 1 else "genes of each list, as below"
    ax.set_xlabel(f"rank as host factor (ticks: {which})", fontsize=8)
    ax.set_ylabel("running sum", fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    legend_below(ax, handles, columns=1, handle=2.4)


def _said(walk: _Walk, n_permutations: int) -> str:
    least = 1 / n_permutations
    p = f"p < {least:.2g}" if walk.p_value < least else f"p = {walk.p_value:.2g}"
    numbers = f"ES {walk.score:+.2f}, NES {walk.normalized:+.2f}, {p}".replace("-", "−")
    return f"{shorten(walk.name, 28)} ({len(walk.hits)} of {walk.n_given}): {numbers}"
