"""Gene programs as an ordered heat map or as a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cfm._arguments import checks_arguments
from cfm._fields import ENRICHMENT, GENE_PROGRAMS_KEY, PROGRAM_EDGES, PROGRAM_GENES, PROGRAMS
from cfm.pl._checks import require_anndata
from cfm.pl._figure import figure_of, finish
from cfm.pl._palette import SIGNIFICANT
from cfm.pl._program_heatmap import draw_heatmap
from cfm.pl._program_network import draw_network
from cfm.pl._stored import stored_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

_PROGRAM_COLUMNS = ("group", "size", "direction", "coherence", "fdr")
_GENE_COLUMNS = ("program", "gene", "weight", "sign", "rank")
_EDGE_COLUMNS = ("gene_a", "gene_b", "weight", "program_a", "program_b")
#: Rows of a heat map that fit a screen, and genes of a program that tell what it is.
_ROWS, _FEWEST = 60, 3
#: Nodes of a network that can still be told apart.
_NODES = 300


@checks_arguments()
def gene_programs(
    adata: AnnData,
    *,
    key: str = GENE_PROGRAMS_KEY,
    kind: Literal["heatmap", "network"] = "heatmap",
    programs: Sequence[str] | None = None,
    n_programs: int = 15,
    n_genes: int | None = None,
    layer: str | None = None,
    groupby: str | None = None,
    label: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the genes of the programs in all profiles, or how they hang together.

    ``"heatmap"`` has genes in rows, ordered by program and then by their rank in it, and profiles
    in columns. Colour is the effect (blue down, grey zero, red up); ``+`` and ``−`` in the cells
    say the same. The arrow before a gene's name is its direction in the program. Each program is
    named at the right with its size, coherence (share of concordant gene pairs) and false
    discovery rate, with a star up to 0.05, and the gene set that it is most enriched in, if one
    has a false discovery rate of at most 0.05.

    ``"network"`` has one disc for each program, genes as nodes (▲ red: up, ▼ blue: down) whose
    size grows with their weight in it, and the stored edges as lines: within programs the
    heaviest three of each gene, between them the heaviest sixty. The first genes of each program
    are named where there is room.

    Parameters
    ----------
    adata
        Profiles with the fields written by :func:`cfm.tl.gene_programs`.
    key
        Where they are stored (``key_added`` of that call).
    kind
        Which of the two.
    programs
        Names of the programs to draw, in this order; ``None`` takes the first ``n_programs`` as
        stored.
    n_programs
        At most so many, where ``programs`` is ``None``. The title says how many there are.
    n_genes
        At most so many genes of each program, the first by rank. ``None`` takes what fits: 60
        rows, but at least 3 genes a program; or 300 nodes.
    layer
        For the heat map: layer to read instead of ``X``.
    groupby
        For the heat map: column of ``obs`` by which the profiles are ordered and divided.
    label
        For the heat map: column of ``obs`` that names the profiles; ``None`` uses ``obs_names``.
        More than 40 profiles are not named.
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
        If :func:`cfm.tl.gene_programs` was not run, or a program, layer or column is not there,
        or the genes of the programs are no longer in ``var_names``.
    ValueError
        If ``kind`` is unknown, ``n_programs`` or ``n_genes`` is below 1, ``programs`` is empty,
        or no program was found.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.gene_programs(contrasts, n_genes=400, n_permutations=2)
    >>> ax = cfm.pl.gene_programs(contrasts, groupby="virus", show=False)
    >>> [label.get_text() for label in ax.get_xticklabels()][:2]
    ['study1|virus_A_vs_none', 'study4|virus_A_vs_none']
    """
    require_anndata(adata)
    tool = "gene_programs"
    table = stored_table(adata, key, PROGRAMS, tool=tool, columns=_PROGRAM_COLUMNS)
    table.index = table.index.astype(str)
    genes = stored_table(adata, key, PROGRAM_GENES, tool=tool, columns=_GENE_COLUMNS)
    shown = table.loc[_chosen(table, programs, n_programs, key)]
    fit = max(_FEWEST, _ROWS // len(shown)) if kind == "heatmap" else _NODES // len(shown)
    n_shown = n_genes or fit
    genes = _first_genes(genes, list(shown.index), n_shown)
    of = f" of {len(table)}" if len(shown) < len(table) else ""
    title = f"{len(shown)}{of} gene program{'' if len(table) == 1 else 's'}"
    if (shown["size"] > n_shown).any():
        title += f", first {n_shown} gene{'' if n_shown == 1 else 's'} of each"

    owned = ax is None
    if kind == "heatmap":
        ax = draw_heatmap(
            adata,
            shown,
            genes,
            sets=_best_sets(adata, key),
            title=title,
            layer=layer,
            groupby=groupby,
            label=label,
            ax=ax,
        )
    else:
        edges = stored_table(
            adata, key, PROGRAM_EDGES, tool=tool, columns=_EDGE_COLUMNS, empty=True
        )
        ax = draw_network(shown, genes, edges, title=title, ax=ax)
    finish(figure_of(ax), owned=owned, show=show, save=save)
    return ax


def _chosen(
    table: pd.DataFrame, programs: Sequence[str] | None, n_programs: int, key: str
) -> list[str]:
    if programs is None:
        return list(table.index[:n_programs])
    wanted = [programs] if isinstance(programs, str) else [str(name) for name in programs]
    if not wanted:
        raise ValueError("programs is an empty list; pass None or name at least one.")
    for name in wanted:
        if name not in table.index:
            raise KeyError(
                f"program {name!r} is not in uns[{key!r}]; expected one of "
                f"{', '.join(table.index)}."
            )
    return list(dict.fromkeys(wanted))


def _best_sets(adata: AnnData, key: str) -> dict[str, str]:
    """Name the gene set that each program is most enriched in, where one is significant."""
    if ENRICHMENT not in adata.uns[key]:
        return {}
    columns = ("program", "term", "p_value", "fdr")
    table = stored_table(adata, key, ENRICHMENT, tool="gene_programs", columns=columns, empty=True)
    table = table[table["fdr"] <= SIGNIFICANT].sort_values("p_value", kind="stable")
    first = table.drop_duplicates("program")
    return dict(zip(first["program"], first["term"], strict=True))


def _first_genes(genes: pd.DataFrame, programs: list[str], n_genes: int) -> pd.DataFrame:
    """Order the genes by program, then rank, and keep the first of each program."""
    parts = genes[genes["program"].isin(programs)].copy()
    parts["place"] = parts["program"].map({name: i for i, name in enumerate(programs)})
    parts = parts.sort_values(["place", "rank"], kind="stable")
    return parts.groupby("place", sort=True).head(n_genes).reset_index(drop=True)
