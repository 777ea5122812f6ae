"""Communication between codes: ligand-receptor pairs, scored and tested."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import false_discovery_control

from cfm._adata import warn_user

if TYPE_CHECKING:
    from cfm.tl._knowledge_graph._codes import CodedCells
    from cfm.tl._knowledge_graph._knowledge import Pairs

#: Values in memory at a time in permutations (32 MiB in float64).
_VALUES = 4_000_000
#: Tolerance for ties of permuted and observed scores: sums differ in their last digits.
_SLACK = 1.0 - 1e-9
_TRIPLE = ["sender", "receiver", "ligand", "receptor"]


def score_links(
    values: sparse.csr_matrix,
    code: np.ndarray,
    n_codes: int,
    pairs: Pairs,
    *,
    min_share: float,
    n_permutations: int,
    seed: int,
) -> pd.DataFrame:
    r"""Score each pair between all pairs of codes, and test it by permuted codes.

    .. math:: s = \sqrt{L_a R_b}

    with :math:`L_a` the mean of the ligand in the sender and :math:`R_b` that of the receptor in
    the receiver, each the least over the genes of a complex. Scored are triples in which every
    gene is expressed by at least ``min_share`` of the cells.

    Parameters
    ----------
    values
        ``(n_cells, m)`` CSR, expression of the genes in ``pairs.columns``.
    code
        ``(n_cells,)`` code of each cell, −1 for none: such cells are permuted like the others.
    n_codes
        Number of codes.
    pairs
        Ligand-receptor pairs.
    min_share
        See above.
    n_permutations
        Random permutations of ``code``; 0 for none.
    seed
        Seed of the permutations.

    Returns
    -------
    A row per triple: ``sender``, ``receiver`` (codes), ``ligand``, ``receptor``, ``score``,
    ``ligand_mean``, ``receptor_mean``, ``weight`` (score minus that of the average cell),
    ``p_value`` and ``fdr`` (Benjamini-Hochberg), ``NaN`` without permutations.
    """
    groups = _Complexes(pairs)
    real = _means(values, code[None], n_codes)
    share = _means(values.sign(), code[None], n_codes)
    expressed = [groups.least(share, side)[0] >= min_share for side in ("ligand", "receptor")]
    sender, receiver, pair = np.nonzero(expressed[0][:, None] & expressed[1][None])
    ligand, receptor = (groups.least(real, side)[0] for side in ("ligand", "receptor"))
    score = ligand[sender, pair] * receptor[receiver, pair]
    average = np.asarray(values.mean(axis=0)).reshape(1, 1, -1)
    usual = groups.least(average, "ligand") * groups.least(average, "receptor")

    p_value = np.full(len(score), np.nan)
    if n_permutations and len(score):
        reached = np.zeros(len(score))
        rng = np.random.default_rng(seed)
        step = max(1, _VALUES // max(len(score), n_codes * max(values.shape[1], len(pairs.table))))
        for start in range(0, n_permutations, step):
            n = min(step, n_permutations - start)
            means = _means(values, rng.permuted(np.tile(code, (n, 1)), axis=1), n_codes)
            found = groups.least(means, "ligand")[:, sender, pair]
            found *= groups.least(means, "receptor")[:, receiver, pair]
            reached += (found >= score * _SLACK).sum(axis=0)
        p_value = (1.0 + reached) / (1.0 + n_permutations)
    tested = n_permutations and len(score)
    return pd.DataFrame(
        {
            "sender": sender,
            "receiver": receiver,
            "ligand": pairs.table["ligand"].to_numpy(dtype=object)[pair],
            "receptor": pairs.table["receptor"].to_numpy(dtype=object)[pair],
            "score": np.sqrt(score),
            "ligand_mean": ligand[sender, pair],
            "receptor_mean": receptor[receiver, pair],
            "weight": np.sqrt(score) - np.sqrt(usual[0, 0, pair]),
            "p_value": p_value,
            "fdr": false_discovery_control(p_value) if tested else p_value,
        }
    )


def liana_links(
    values: sparse.csr_matrix,
    cells: CodedCells,
    pairs: Pairs,
    *,
    min_share: float,
    n_permutations: int,
    seed: int,
) -> pd.DataFrame:
    r"""Score the same triples by the consensus of liana's methods (Dimitrov et al. 2022).

    ``weight`` is :math:`-\log_{10}` of liana's ``specificity_rank``, the robust rank aggregate of
    CellPhoneDB, Connectome, logFC and NATMI, which orders links but is no calibrated p-value:
    ``p_value`` is that of CellPhoneDB's permutation test. Cells in none of the codes are left out.

    Parameters
    ----------
    values, pairs, min_share, n_permutations, seed
        As for :func:`score_links`.
    cells
        Code of each cell.

    Returns
    -------
    As :func:`score_links`.

    Raises
    ------
    ImportError
        If liana is not installed.
    """
    try:
        import liana
        from anndata import AnnData
    except ImportError as error:
        raise ImportError(
            "communication='liana' needs the package liana, which is not installed: pip install "
            "'cfm-tools[communication]', or leave communication='permutation'."
        ) from error
    scores = score_links(
        values,
        cells.code,
        len(cells.names),
        pairs,
        min_share=min_share,
        n_permutations=0,
        seed=seed,
    )
    if not len(scores):
        return scores
    own = np.flatnonzero(cells.code >= 0)
    names = np.array([str(i) for i in range(len(cells.names))])
    data = AnnData(
        values[own][:, list(pairs.place.values())],
        obs=pd.DataFrame({"code": pd.Categorical(names[cells.code[own]])}, index=own.astype(str)),
        var=pd.DataFrame(index=list(pairs.place)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = liana.mt.rank_aggregate(
            data,
            groupby="code",
            resource=pairs.table.astype(str),
            expr_prop=min_share,
            min_cells=1,
            use_raw=False,
            n_perms=n_permutations,
            seed=seed,
            inplace=False,
        )
    theirs = pd.DataFrame(
        {
            "sender": found["source"].astype(int),
            "receiver": found["target"].astype(int),
            "ligand": found["ligand_complex"].astype(str),
            "receptor": found["receptor_complex"].astype(str),
            "weight": -np.log10(found["specificity_rank"].clip(np.finfo(float).tiny, 1.0)),
            # CellPhoneDB counts the permutations that reach the score; the real labelling is one.
            "p_value": (found["cellphone_pvals"] * n_permutations + 1.0) / (n_permutations + 1.0),
        }
    )
    links = scores.drop(columns=["weight", "p_value"]).merge(theirs, on=_TRIPLE)
    return links.assign(fdr=false_discovery_control(links["p_value"]))


def strongest_links(
    links: pd.DataFrame, n_links: int, max_fdr: float, n_permutations: int
) -> pd.DataFrame:
    """Return the links of positive weight that pass the test, the strongest of two codes.

    Warns
    -----
    UserWarning
        If no link passes since the smallest p-value of so few permutations is too large.
    """
    smallest = links["p_value"].min()
    passed = links["fdr"] <= max_fdr
    if len(links) and not passed.any() and smallest == 1.0 / (1.0 + n_permutations):
        n_smallest = int((links["p_value"] == smallest).sum())
        warn_user(
            f"No ligand-receptor link passes a false discovery rate of {max_fdr}: {n_smallest} of "
            f"{len(links)} tested have the smallest p-value of {n_permutations} "
            f"permutations ({smallest:.2g}), which is too large for so many tests. Use fewer "
            "codes, such as the groups of cfm.tl.cell_codes(adata, n_groups=…), or fewer pairs: "
            "knowledge={'ligand_receptor': pairs}."
        )
    kept = links[(links["weight"] > 0) & passed].sort_values(
        ["sender", "receiver", "weight", "ligand", "receptor"],
        ascending=[True, True, False, True, True],
        kind="stable",
    )
    return kept.groupby(["sender", "receiver"], sort=False).head(n_links).reset_index(drop=True)


class _Complexes:
    """The genes of ligands and of receptors, for the minimum over each complex."""

    def __init__(self, pairs: Pairs) -> None:
        self._sides = {}
        for side in ("ligand", "receptor"):
            # A ligand is in many pairs: its minimum is computed once.
            names, inverse = np.unique(pairs.table[side].astype(str), return_inverse=True)
            genes = [pairs.members(name) for name in names]
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
