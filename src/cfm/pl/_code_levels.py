"""Cells by code and by level of an annotation, and how levels are told apart."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from cfm._fields import MARGIN, SIMILARITY, params_of
from cfm.pl._figure import legend_below
from cfm.pl._labels import shorten
from cfm.pl._palette import COLORS, GREY

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

#: Levels that get a letter; the rest are one. Both ends of a long legend are still on one page.
_NAMED = 20
_OTHER, _NOT_GIVEN = "other levels", "not given"
#: Inches of a character of the legend, and of its patch with the space after an entry.
_CHAR, _PATCH = 0.064, 0.5
_LONGEST = 34
PLAIN = "#5B7A99"


@dataclass(frozen=True)
class Levels:
    """Cells by code and level.

    Attributes
    ----------
    table
        DataFrame int64, codes by levels, codes as the tool orders them and levels by their number
        of cells; a single column without a name if there is no annotation.
    letters, colors
        How a level is drawn, by its name.
    name
        The annotation; empty if there is none.
    """

    table: pd.DataFrame
    letters: dict[str, str]
    colors: dict[str, str]
    name: str

    @property
    def size(self) -> pd.Series:
        """Cells of each code."""
        return self.table.sum(axis=1)

    def majority(self) -> pd.Series:
        """Level of most cells of each code; one that is named, if any of its cells has one."""
        named = self.table.drop(columns=[_NOT_GIVEN], errors="ignore")
        if named.shape[1] == 0:
            return pd.Series(_NOT_GIVEN, index=self.table.index)
        return named.idxmax(axis=1).where(named.sum(axis=1) > 0, _NOT_GIVEN)

    def legend(self, ax: Axes, *, width: float, drop: float) -> None:
        """Say under the Axes what the letters are."""
        if not self.name:
            return
        entries = {
            level: f"{self.letters[level]}  {shorten(level, _LONGEST)} ({n:,})"
            for level, n in zip(map(str, self.table.columns), self.table.sum(), strict=True)
        }
        handles = [
            Patch(facecolor=self.colors[level], edgecolor="white", label=text)
            for level, text in entries.items()
        ]
        longest = max(map(len, entries.values()))
        columns = int(np.clip(width // (_CHAR * longest + _PATCH), 1, len(entries)))
        legend_below(ax, handles, columns=columns, drop=drop)


def read_levels(adata: AnnData, key: str, groupby: str | None) -> Levels:
    """Count cells by code and level.

    Parameters
    ----------
    adata
        Cells with codes in ``obs[key]``.
    key
        Where they are.
    groupby
        Column of ``obs``; by default the first that the tool was given, if it was given any.

    Raises
    ------
    KeyError
        If the codes or the column are not there.
    ValueError
        If the column holds fractional numbers, or no cell has a code.
    """
    if key not in adata.obs or key + SIMILARITY not in adata.obs or key + MARGIN not in adata.obs:
        raise KeyError(
            f"obs[{key!r}] with its similarity and margin not found; run "
            f"cfm.tl.cell_codes(adata, key_added={key!r}) first, or pass the key it was stored "
            "under."
        )
    code = adata.obs[key].astype("string")
    known = code.notna().to_numpy()
    if not known.any():
        raise ValueError(f"obs[{key!r}] is missing in all {adata.n_obs} cells; nothing to draw.")
    if groupby is None:
        stored = params_of(adata.uns, key).get("groupby", [])
        groupby = next((str(name) for name in stored if str(name) in adata.obs), None)
    elif groupby not in adata.obs:
        raise KeyError(
            f"obs has no column {groupby!r}; expected one of {', '.join(map(str, adata.obs))}."
        )
    codes = code[known].astype(str)
    order = sorted(set(codes), key=_by_number)
    if groupby is None:
        table = codes.value_counts().reindex(order).astype(np.int64).to_frame("")
        return Levels(table, {"": ""}, {"": PLAIN}, "")
    column = adata.obs[groupby]
    if column.dtype.kind == "f":
        raise ValueError(
            f"obs[{groupby!r}] holds fractional numbers; expected categories: cut it into "
            "intervals (pandas.cut)."
        )
    levels = column.astype("string").replace("", pd.NA)[known]
    frequent = (
        levels.value_counts(sort=False).sort_index().sort_values(ascending=False, kind="stable")
    )
    named = [str(level) for level in frequent.index[frequent > 0]]
    kept = named if len(named) <= _NAMED else named[: _NAMED - 1]
    shown = levels.where(levels.isin(kept) | levels.isna(), _OTHER).fillna(_NOT_GIVEN).astype(str)
    table = pd.crosstab(codes.to_numpy(), shown.to_numpy()).reindex(index=order)
    extra = [level for level in (_OTHER, _NOT_GIVEN) if level in table and level not in kept]
    table = table[[*kept, *extra]].astype(np.int64)
    table.columns = table.columns.astype(str)
    letters = dict(zip(kept, ascii_uppercase, strict=False)) | dict.fromkeys(extra, "–")
    if _OTHER in extra:
        letters[_OTHER] = "+"
    colors = {level: COLORS[i % len(COLORS)] for i, level in enumerate(kept)}
    return Levels(table, letters, colors | dict.fromkeys(extra, GREY), groupby)


def _by_number(code: str) -> tuple[int, str]:
    return (int(code), "") if code.isdigit() else (2**62, code)


def text_color(color: str) -> str:
    """Return what can be read on a colour: black or white."""
    red, green, blue = to_rgb(color)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"


def cells(n: int) -> str:
    """Write a number of cells."""
    return f"{n:,} cell{'' if n == 1 else 's'}"
