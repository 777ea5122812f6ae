"""Which code may speak to which: ligand-receptor pairs, scored and permuted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from cfm.data._warn import warn_user
from cfm.stats._enrichment import benjamini_hochberg
from cfm.tl._knowledge_graph_cells import gene_columns

if TYPE_CHECKING:
    from anndata import AnnData

#: Between the genes of a complex.
COMPLEX = "_"
#: Values that are held at a time while labels are permuted (32 MiB in float64).
_VALUES = 4_000_000
#: A permuted score this close to the real one is as large: sums differ in their last digits.
_SLACK = 1.0 - 1e-9


@dataclass(frozen=True)
class Pairs:
    """Ligand-receptor pairs whose genes are all measured.

    Attributes
    ----------
    table
        ``ligand`` and ``receptor``, a row per pair.
    columns
        ``(m,)`` int64, columns of the data that hold any of their genes.
    ligand, receptor
        For each pair the places in ``columns`` of its genes.
    n_given
        Pairs that were given.
    """

    table: pd.DataFrame
    columns: np.ndarray
    ligand: list[list[int]]
    receptor: list[list[int]]
    n_given: int


def measured_pairs(table: Any, adata: AnnData) -> Pairs:
    """Find ligand-receptor pairs in data.

    Raises
    ------
    TypeError
        If ``table`` is no DataFrame.
    ValueError
        If it lacks a column, has no rows, or no pair is measured.
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"ligand_receptor is a {type(table).__name__}; expected a DataFrame with the columns "
            "ligand and receptor, such as cfm.datasets.ligand_receptor()."
        )
    missing = [name for name in ("ligand", "receptor") if name not in table]
    if missing or not len(table):
        raise ValueError(
            f"ligand_receptor has {len(table)} rows and the columns {table.columns.tolist()}; "
            "expected pairs in the columns ligand and receptor."
        )
    known = table[["ligand", "receptor"]].dropna().astype(str).drop_duplicates()
    known = known.sort_values(["ligand", "receptor"])
    sides = [[name.split(COMPLEX) for name in known[side]] for side in ("ligand", "receptor")]
    genes = sorted({gene for side in sides for members in side for gene in members})
    place = gene_columns(genes, adata)
    whole = [
        all(gene in place for gene in ligand + receptor)
        for ligand, receptor in zip(*sides, strict=True)
    ]
    if not any(whole):
        raise ValueError(
            f"None of the {len(known)} ligand-receptor pairs has all of its genes measured: "
            f"{len(place)} of {len(genes)} genes were found, looking for such as "
            f"{', '.join(genes[:3])} among such as {', '.join(map(str, adata.var_names[:3]))}. "
            "Give pairs by the names that var_names has (human symbols by default, "
            "cfm.pp.map_genes), or leave communication out with n_links=0."
        )
    table = known[whole].reset_index(drop=True).astype(object)
    used = {
        g for i, side in enumerate(sides) for m, w in zip(side, whole, strict=True) if w for g in m
    }
    columns = np.unique([place[gene] for gene in used]).astype(np.int64)
    at = {gene: int(np.searchsorted(columns, place[gene])) for gene in used}
    ligand, receptor = (
        [[at[gene] for gene in name.split(COMPLEX)] for name in table[side]]
        for side in ("ligand", "receptor")
    )
    return Pairs(table, columns, ligand, receptor, len(known))


def communication(
    values: sparse.csc_matrix,
    code: np.ndarray,
    n_codes: int,
    pairs: Pairs,
    *,
    min_share: float,
    n_permutations: int,
    seed: int,
) -> pd.DataFrame:
    r"""Score each pair between each two codes, and test it by permuted codes.

    .. math:: s = \sqrt{L_a R_b}

    with :math:`L_a` the mean of the ligand in the sender and :math:`R_b` that of the receptor in
    the receiver, each the least over the genes of a complex. Tested are triples in which every
    gene is expressed by at least ``min_share`` of the cells.

    Parameters
    ----------
    values
        ``(n_cells, m)`` CSC, expression of the genes in ``pairs.columns``.
    code
        ``(n_cells,)`` code of each cell, −1 for none: such cells are permuted like the others.
    n_codes
        Number of codes.
    pairs
        What to score.
    min_share
        See above.
    n_permutations
        Random permutations of ``code``; 0 for none.
    seed
        Of the permutations.

    Returns
    -------
    A row per triple that was tested: ``sender``, ``receiver`` (codes), ``ligand``, ``receptor``,
    ``score``, ``excess`` (score minus that of the average cell), ``ligand_mean``,
    ``receptor_mean``, ``p_value`` and ``fdr`` (Benjamini-Hochberg), ``NaN`` without permutations,
    and ``reached``, how many permutations gave as large a score.
    """
    values = sparse.csr_matrix(values)
    groups = _Groups(pairs)
    real = _means(values, code[None], n_codes)[0]
    share = _means(values.sign(), code[None], n_codes)[0]
    expressed = [groups.least(share[None], side)[0] >= min_share for side in ("ligand", "receptor")]
    sender, receiver, pair = np.nonzero(expressed[0][:, None] & expressed[1][None])
    ligand, receptor = (groups.least(real[None], side)[0] for side in ("ligand", "receptor"))
    score = ligand[sender, pair] * receptor[receiver, pair]
    average = np.asarray(values.mean(axis=0)).reshape(1, 1, -1)
    usual = groups.least(average, "ligand") * groups.least(average, "receptor")
    excess = np.sqrt(score) - np.sqrt(usual[0, 0, pair])

    reached = np.zeros(len(score))
    rng = np.random.default_rng(seed)
    step = max(1, _VALUES // max(1, len(score), n_codes * max(values.shape[1], len(pairs.table))))
    for start in range(0, n_permutations if len(score) else 0, step):
        n = min(step, n_permutations - start)
        means = _means(values, rng.permuted(np.tile(code, (n, 1)), axis=1), n_codes)
        found = groups.least(means, "ligand")[:, sender, pair]
        found *= groups.least(means, "receptor")[:, receiver, pair]
        reached += (found >= score * _SLACK).sum(axis=0)
    p_value = np.full(len(score), np.nan)
    if n_permutations:
        p_value = (1.0 + reached) / (1.0 + n_permutations)
    return pd.DataFrame(
        {
            "sender": sender,
            "receiver": receiver,
            "ligand": pairs.table["ligand"].to_numpy(dtype=object)[pair],
            "receptor": pairs.table["receptor"].to_numpy(dtype=object)[pair],
            "score": np.sqrt(score),
            "ligand_mean": ligand[sender, pair],
            "receptor_mean": receptor[receiver, pair],
            "excess": excess,
            "p_value": p_value,
            "fdr": benjamini_hochberg(p_value),
            "reached": reached if n_permutations else np.nan,
        }
    )


def strongest_links(links: pd.DataFrame, n_links: int, max_fdr: float) -> pd.DataFrame:
    """Keep the links above the average cell that pass the test, the strongest of two codes.

    Warns
    -----
    UserWarning
        If none passes because so few permutations cannot give a smaller p-value.
    """
    smallest = links["p_value"].min()
    n_smallest = int((links["p_value"] == smallest).sum())
    n_permutations = round(1.0 / smallest) - 1 if smallest > 0 else 0
    at_floor = (links["reached"] == 0).any()
    if at_floor and max_fdr > 0 and not (links["fdr"] <= max_fdr).any():
        needed = int(np.ceil(len(links) / (n_smallest * max_fdr)))
        warn_user(
            f"No ligand-receptor link passes max_fdr={max_fdr}: {n_smallest} of {len(links)} that "
            f"were tested have the smallest p-value that n_permutations={n_permutations} can give "
            f"({smallest:.2g}), which is too large for so many tests; about {needed} permutations "
            "are needed."
        )
    kept = links[(links["excess"] > 0) & ~(links["fdr"] > max_fdr)]
    kept = kept.sort_values(
        ["sender", "receiver", "excess", "ligand", "receptor"],
        ascending=[True, True, False, True, True],
        kind="stable",
    )
    return kept.groupby(["sender", "receiver"], sort=False).head(n_links).reset_index(drop=True)


class _Groups:
    """The genes of ligands and of receptors, side by side, to take the least of each complex."""

    def __init__(self, pairs: Pairs) -> None:
        self._sides = {}
        for side, members in (("ligand", pairs.ligand), ("receptor", pairs.receptor)):
            # A ligand takes part in many pairs: the least is taken once.
            names, inverse = np.unique(pairs.table[side].astype(str), return_inverse=True)
            of_name = dict(zip(pairs.table[side], members, strict=True))
            genes = [of_name[name] for name in names]
            starts = np.cumsum([0, *map(len, genes)])[:-1]
            self._sides[side] = (np.concatenate(genes), starts, inverse)

    def least(self, means: np.ndarray, side: str) -> np.ndarray:
        """Return ``(k, n_codes, n_pairs)`` of ``(k, n_codes, n_genes)``."""
        genes, starts, inverse = self._sides[side]
        return np.minimum.reduceat(means[..., genes], starts, axis=-1)[..., inverse]


def _means(values: sparse.csr_matrix, labels: np.ndarray, n_codes: int) -> np.ndarray:
    """Return the means over the cells of each code, under each of ``k`` labellings.

    Parameters
    ----------
    values
        ``(n_cells, n_genes)``.
    labels
        ``(k, n_cells)`` codes, −1 for none.
    n_codes
        Number of codes.

    Returns
    -------
    ``(k, n_codes, n_genes)``.
    """
    k, n_cells = labels.shape
    which, cell = np.nonzero(labels >= 0)
    row = which * n_codes + labels[which, cell]
    sizes = np.bincount(row, minlength=k * n_codes)
    member = sparse.csr_matrix((1.0 / sizes[row], (row, cell)), shape=(k * n_codes, n_cells))
    return (member @ values).toarray().reshape(k, n_codes, values.shape[1])
