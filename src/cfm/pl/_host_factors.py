"""Ranked bars of the host genes that matter most for a group's call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cfm._arguments import checks_arguments
from cfm._fields import HOST_FACTORS_KEY, RESULTS
from cfm.pl._checks import require_anndata
from cfm.pl._figure import figure_of, finish, legend_below
from cfm.pl._labels import room_for_tips, shorten
from cfm.pl._palette import ARROWS, DIRECTION_STYLES, SIGNIFICANT
from cfm.pl._panels import chosen_groups, group_axes, one_or_all
from cfm.pl._stored import stored_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

_COLUMNS = (
    "group", "explained", "gene", "score", "rank", "direction", "effect", "call_effect", "fdr",
    "n_profiles",
)  # fmt: skip
_KNOWN = "known"
_HATCH = "////"


@checks_arguments()
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
    The length of a bar is the score. It points right if the gene speaks for the call
    (``call_effect`` > 0) and left if it speaks against it. Colour and arrow give the direction of
    the gene's own effect in the group (▲ up, ▼ down, ● unchanged), and the number its mean log2
    fold change. A filled bar with a star has a false discovery rate of at most 0.05, a hollow one
    a larger one, and a hatched one none because no null distribution was possible. Genes that were
    given as known (``method="guided"``) carry a †.

    Parameters
    ----------
    adata
        Profiles with the fields written by :func:`cfm.tl.host_factors`.
    key
        Where they are stored (``key_added`` of that call).
    group
        Group or groups to draw; ``None`` draws all, one panel each.
    n_genes
        At most this many genes, the first by rank.
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
    require_anndata(adata)
    table = stored_table(adata, key, RESULTS, tool="host_factors", columns=_COLUMNS)
    groups = chosen_groups(table, group, key)
    parts = {}
    for name in groups:
        part = table[table["group"] == name].sort_values("rank", kind="stable")
        parts[name] = part.head(n_genes)
    rows = max(3, *map(len, parts.values()))
    longest = max(len(name) for part in parts.values() for name in _row_names(part))
    panels = group_axes(groups, ax, 3.6 + 0.08 * longest, 1.7 + 0.19 * rows)
    for name, panel in panels.items():
        _draw(panel, name, parts[name])
    first = next(iter(panels.values()))
    finish(figure_of(first), owned=ax is None, show=show, save=save)
    return one_or_all(panels, group)


def _draw(ax: Axes, group: str, table: pd.DataFrame) -> None:
    call = np.nan_to_num(table["call_effect"].to_numpy(dtype=np.float64))
    # a score below zero has no length: its gene ranks last, and the sign stands for the call
    length = np.clip(np.nan_to_num(table["score"].to_numpy(dtype=np.float64)), 0, None)
    values = np.where(call < 0, -length, length)
    fdr = table["fdr"].to_numpy(dtype=np.float64)
    rows = np.arange(len(table))
    directions = table["direction"].tolist()
    for y, value, direction, q in zip(rows, values, directions, fdr, strict=True):
        color = DIRECTION_STYLES[direction].color
        ax.barh(
            y,
            value,
            height=0.72,
            facecolor=color if q <= SIGNIFICANT else "white",
            edgecolor=color,
            linewidth=1.2,
            hatch=_HATCH if np.isnan(q) else None,
        )
    ax.axvline(0, color="#777777", linewidth=0.8)
    texts = [_tip(*row) for row in zip(directions, table["effect"], fdr, strict=True)]
    tips = [
        ax.annotate(
            text,
            (value, y),
            xytext=(-4 if left else 4, 0),
            textcoords="offset points",
            va="center",
            ha="right" if left else "left",
            fontsize=7,
            color=DIRECTION_STYLES[direction].color if direction != "unchanged" else "#444444",
        )
        for y, value, text, left, direction in zip(
            rows, values, texts, call < 0, directions, strict=True
        )
    ]
    ax.set_yticks(rows, _row_names(table), fontsize=8)
    ax.set_ylim(max(len(table), 3) - 0.4, -0.6)  # two bars are no beams
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)
    ax.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    n = int(table["n_profiles"].iloc[0])
    explained = shorten(str(table["explained"].iloc[0]), 32)
    title = f"{shorten(group, 32)} ({n} profile{'' if n == 1 else 's'})\nexplained: {explained}"
    ax.set_title(title, fontsize=9)
    sides = "   ← against it · for what is explained →" if (call != 0).any() else ""
    ax.set_xlabel(f"score{sides}", fontsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    handles = _legend(set(directions), fdr)
    if _KNOWN in table and table[_KNOWN].any():
        handles.append(Line2D([], [], linestyle="", label="† given as known"))
    legend_below(ax, handles, columns=2)
    room_for_tips(ax, values, tips)


def _tip(direction: str, effect: float, fdr: float) -> str:
    if np.isnan(effect) or effect == 0:
        number = "" if np.isnan(effect) else " 0"
    else:
        digits = 1 if abs(effect) >= 0.095 else 2  # a small effect is no −0.0
        number = f" {effect:+.{digits}f}".replace("-", "−")
    return f"{ARROWS[direction]}{number}{' *' if fdr <= SIGNIFICANT else ''}"


def _row_names(table: pd.DataFrame) -> list[str]:
    known = table[_KNOWN].astype(bool) if _KNOWN in table else [False] * len(table)
    return [
        f"{shorten(gene, 24)}{' †' if given else ''}"
        for gene, given in zip(table["gene"], known, strict=True)
    ]


def _legend(directions: set[str], fdr: np.ndarray) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], linestyle="", marker=style.marker, color=style.color, label=name)
        for name, style in DIRECTION_STYLES.items()
        if name in directions
    ]
    handles[0].set_label(f"{handles[0].get_label()} (number: mean log2FC)")
    dark = "#444444"
    kinds = (
        (fdr <= SIGNIFICANT, f"FDR ≤ {SIGNIFICANT:g} (*)", dark, None),
        (fdr > SIGNIFICANT, f"FDR > {SIGNIFICANT:g}", "white", None),
        (np.isnan(fdr), "no FDR possible", "white", _HATCH),
    )
    handles += [
        Patch(edgecolor=dark, label=text, facecolor=face, hatch=hatch)
        for found, text, face, hatch in kinds
        if found.any()
    ]
    return handles
