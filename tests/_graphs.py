"""Cells with codes, and a model with planted attention that is not ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

#: Codes of the cells of :func:`coded_cells`.
CODES = ("0", "1", "10")


class PlantedAttention:
    """Attends from the cell to ``favourites``, and between the genes of each of ``pairs``.

    No cfm model: an object with the one method that the protocol asks for.
    """

    def __init__(
        self, favourites: list[str], pairs: list[tuple[str, str]], *, loud: float = 30.0
    ) -> None:
        self.favourites, self.pairs, self.loud = set(favourites), pairs, loud
        self.n_read = 0

    def get_attention(
        self, adata: ad.AnnData, *, layer: str | None = None
    ) -> Iterator[tuple[pd.Index, np.ndarray]]:
        matrix = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer])
        for row in matrix:
            self.n_read += 1
            genes = adata.var_names[np.sort(row.indices[row.data > 0])]
            tokens = pd.Index(["<summary>", *genes])
            n = len(tokens)
            weights = np.ones((2, 3, n, n), dtype=np.float32)
            weights[..., 0, :] += self.loud * tokens.isin(list(self.favourites))
            for a, b in self.pairs:
                if a in tokens and b in tokens:
                    weights[..., tokens.get_loc(a), tokens.get_loc(b)] += self.loud
            yield tokens, weights / weights.sum(axis=-1, keepdims=True)


def coded_cells(n: int = 120, seed: int = 0, **columns: Any) -> ad.AnnData:
    """Return cells of three codes; G00 … are high in "0", G10 … in "1", G36 … in "10".

    The ligands L0, L1 are high in "0", the receptors R0 and RA_RB in "1"; L2 and R2 are on
    everywhere, L3 nowhere. ``tissue`` follows the codes in part, ``batch`` does not.
    """
    rng = np.random.default_rng(seed)
    code = np.arange(n) % 3
    genes = [f"G{i:02d}" for i in range(40)]
    genes += ["L0", "L1", "L2", "L3", "R0", "RA", "RB", "R2", "R3"]
    mean = np.full((3, len(genes)), 2.0)
    mean[0, :10] = mean[1, 10:20] = 12.0
    mean[2, 36:40] = 27.0  # all codes have as many counts
    at = {gene: i for i, gene in enumerate(genes)}
    for gene, own in (("L0", 0), ("L1", 0), ("R0", 1), ("RA", 1), ("RB", 1), ("R3", 1)):
        mean[:, at[gene]] = 0.02
        mean[own, at[gene]] = 4.0
    mean[:, at["L3"]] = 0.0
    size = np.exp(0.3 * rng.standard_normal(n))
    counts = rng.poisson(size[:, None] * mean[code]).astype(np.float32)
    tissue = np.where(rng.random(n) < 0.8, np.array(["lung", "gut", "gut"])[code], "skin")
    obs = pd.DataFrame(
        {
            "cell_code": pd.Categorical(np.array(CODES)[code]),
            "tissue": pd.Categorical(tissue),
            "batch": pd.Categorical(rng.choice(["a", "b"], n)),
        }
        | columns,
        index=[f"cell{i:03d}" for i in range(n)],
    )
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=genes))


#: Pairs of :func:`coded_cells`; only the first two are links from "0" to "1".
PAIRS = pd.DataFrame(
    {
        "ligand": ["L0", "L1", "L2", "L3", "nothing"],
        "receptor": ["R0", "RA_RB", "R2", "R3", "R0"],
    }
)


def limits(**constants: float) -> Any:
    """Other constants of :func:`cfm.tl.knowledge_graph` than its own, as a context."""
    return mock.patch.multiple("cfm.tl._knowledge_graph._tool", **constants)
