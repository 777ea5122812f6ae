"""Codes of cells: what they are made of, their genes, and where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cfm._arguments import checks_arguments
from cfm._fields import CELL_CODE_KEY, MARKERS, NEIGHBOURS, VECTORS
from cfm.pl._checks import require_anndata
from cfm.pl._code_composition import draw_composition, head, order_codes
from cfm.pl._code_levels import Levels, read_levels
from cfm.pl._code_map import draw_map
from cfm.pl._code_markers import draw_markers
from cfm.pl._figure import figure_of, finish
from cfm.pl._stored import stored_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

Kind = Literal["composition", "markers", "map"]
#: Codes that are drawn unless told otherwise.
_MOST = {"composition": 30, "markers": 15, "map": 400}
_MARKER_COLUMNS = ("code", "rank", "gene")
_NEIGHBOUR_COLUMNS = ("code", "neighbour", "cosine_rank")


@checks_arguments()
def cell_codes(
    adata: AnnData,
    *,
    key: str = CELL_CODE_KEY,
    kind: Kind = "composition",
    groupby: str | None = None,
    codes: Sequence[str] | None = None,
    n_codes: int | None = None,
    n_genes: int = 3,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw what codes are made of, their marker genes, or a map of them.

    ``"composition"`` has a bar for each code, cut by the levels of an annotation, and beside it
    the number of its cells; codes of one majority stand together. ``"markers"`` has a dot for each
    code and gene: larger where more of the code's cells express the gene, darker where they
    express more of it; frames are around the genes that are markers of the code. ``"map"`` has a
    disc for each code, whose area grows with its cells, near those with like vectors
    (multidimensional scaling of the angles between them), moved apart where they would cover each
    other; a line goes to the nearest code, which two dimensions cannot always show.

    Levels have a letter and a colour, the letter telling them apart also where colours recur.
    Codes that are not drawn are those with fewest cells, which the title says.

    Parameters
    ----------
    adata
        Cells with the fields written by :func:`cfm.tl.cell_codes`.
    key
        Where they are stored (``key_added`` of that call).
    kind
        Which of the three.
    groupby
        Column of ``obs`` with the annotation; by default the first that the tool was given. All
        but the 20 most frequent levels are taken together.
    codes
        Codes to draw, such as ``["7", "12"]``; ``None`` takes those with most cells.
    n_codes
        At most so many, where ``codes`` is ``None``; by default 30 (composition), 15 (markers) or
        400 (map).
    n_genes
        Markers of each code.
    ax
        Draw here instead of into a new figure.
    show
        Show the figure. ``False`` closes it; the returned Axes can still be saved.
    save
        File to write the figure to.

    Returns
    -------
    The Axes drawn on.

    Raises
    ------
    KeyError
        If :func:`cfm.tl.cell_codes` was not run, or a column, code or gene is not there.
    ValueError
        If ``kind`` is unknown, a number is below 1, ``codes`` is empty, the annotation holds
        fractional numbers, no cell has a code, or none of the codes has markers.

    Examples
    --------
    >>> import cfm, scanpy as sc
    >>> cells = sc.datasets.pbmc68k_reduced().raw.to_adata()[::4].copy()
    >>> reading = {"units": "log1p_cp10k", "total_counts": "n_counts"}
    >>> cfm.tl.cell_codes(cells, groupby="bulk_labels", **reading)
    >>> ax = cfm.pl.cell_codes(cells, show=False)
    >>> ax.get_xlabel()
    "share of the code's cells, by bulk_labels"
    """
    require_anndata(adata)
    levels = read_levels(adata, key, groupby)
    candidates = list(levels.table.index)
    tool = "cell_codes"
    if kind == "markers":
        markers = stored_table(adata, key, MARKERS, tool=tool, columns=_MARKER_COLUMNS, empty=True)
        with_markers = set(markers["code"])
        candidates = [code for code in candidates if code in with_markers]
        if codes is None and not candidates:
            raise ValueError(
                f"No code in uns[{key!r}] has markers: all have fewer cells than its min_cells; "
                "run cfm.tl.cell_codes again with a smaller one, or with n_markers above 0."
            )
    chosen = _chosen(levels, candidates, codes, n_codes or _MOST[kind], key)
    ordered = chosen if codes is not None else order_codes(levels, chosen)
    title = head(levels, chosen)
    owned = ax is None
    if kind == "composition":
        ax = draw_composition(levels, ordered, title=title, ax=ax)
    elif kind == "markers":
        ax = draw_markers(
            adata,
            key,
            markers[markers["code"].isin(ordered) & (markers["rank"] <= n_genes)]
            .assign(place=lambda table: table["code"].map({c: i for i, c in enumerate(ordered)}))
            .sort_values(["place", "rank"], kind="stable"),
            _with_majority(levels, ordered),
            title=title,
            ax=ax,
        )
    else:
        vectors = stored_table(adata, key, VECTORS, tool=tool, columns=())
        vectors.index = vectors.index.astype(str)
        neighbours = stored_table(
            adata, key, NEIGHBOURS, tool=tool, columns=_NEIGHBOUR_COLUMNS, empty=True
        )
        ax = draw_map(levels, ordered, vectors, neighbours, title=title, ax=ax)
    finish(figure_of(ax), owned=owned, show=show, save=save)
    return ax


def _chosen(
    levels: Levels, candidates: list[str], codes: Sequence[str] | None, n_codes: int, key: str
) -> list[str]:
    """Return the codes to draw: those named, or those with most cells."""
    if codes is None:
        size = levels.size[candidates]
        return list(size.sort_values(ascending=False, kind="stable").index[:n_codes])
    wanted = [codes] if isinstance(codes, str) else [str(code) for code in codes]
    if not wanted:
        raise ValueError("codes is an empty list; pass None or name at least one.")
    unknown = [code for code in wanted if code not in candidates]
    if unknown:
        raise KeyError(
            f"code {unknown[0]!r} is not in obs[{key!r}], or has nothing to draw; expected some of "
            f"{', '.join(candidates[:20])}{', …' if len(candidates) > 20 else ''}."
        )
    return list(dict.fromkeys(wanted))


def _with_majority(levels: Levels, ordered: list[str]) -> dict[str, str]:
    """Return what to write beside each code: its number, its majority and its cells."""
    majority, size = levels.majority() if levels.name else None, levels.size
    return {
        code: f"{code} ({size[code]:,})"
        if majority is None
        else f"{majority[code]}  {code} ({size[code]:,})"
        for code in ordered
    }
