"""Cells of planted types, and a model that gives them codes by a rule."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cfm.data import GeneVocabulary
from cfm.models.cellvq import CellCodes, Codebook

TYPES = ("B", "NK", "T", "mono")
#: Genes of each type, and genes of none.
N_OWN, N_GENES = 6, 60
GENES = [f"GENE{i}" for i in range(N_GENES)]


def typed_cells(n: int = 40, seed: int = 0, types: tuple[str, ...] = TYPES) -> ad.AnnData:
    """Counts of ``n`` cells of each type, which express six genes of their own."""
    rng = np.random.default_rng(seed)
    kind = np.repeat([TYPES.index(t) for t in types], n)
    mean = np.full((len(kind), N_GENES), 10.0)
    for cell, k in enumerate(kind):
        mean[cell, N_OWN * k : N_OWN * (k + 1)] = 60.0
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(TYPES)[kind]),
            "donor": pd.Categorical(rng.choice(["d1", "d2", "d3"], size=len(kind))),
        },
        index=[f"cell{i}" for i in range(len(kind))],
    )
    counts = rng.poisson(mean).astype(np.float32)
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES))


class NearestCode:
    """Nearest of ``2 ** n_bits`` unit vectors to a projection of log-normalised counts.

    The first four vectors are where the planted types lie, the others are random.
    """

    def __init__(self, n_bits: int = 6, dim: int = 8, seed: int = 0) -> None:
        self.vocabulary = GeneVocabulary(GENES)
        rng = np.random.default_rng(seed)
        self._projection = rng.normal(size=(N_GENES, dim))
        vectors = rng.normal(size=(2**n_bits, dim))
        self._centre = np.zeros(N_GENES)
        self._centre = self._log(typed_cells(20, seed=98).X.toarray()).mean(axis=0)
        if n_bits >= 2:
            kinds = self._latent(typed_cells(20, seed=99).X.toarray())
            vectors[:4] = kinds.reshape(4, 20, dim).mean(axis=1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        bits = (np.arange(2**n_bits)[:, None] >> np.arange(n_bits)[::-1]) & 1
        self._book = Codebook(vectors.astype(np.float32), bits.astype(np.int8))

    def _log(self, counts: np.ndarray) -> np.ndarray:
        total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return np.log1p(counts / total * 1e4) - self._centre

    def _latent(self, counts: np.ndarray) -> np.ndarray:
        latent = self._log(counts) @ self._projection
        return latent / np.linalg.norm(latent, axis=1, keepdims=True)

    def get_codebook(self) -> Codebook:
        return self._book

    def get_cell_codes(
        self,
        adata: ad.AnnData,
        *,
        layer: str | None = None,
        units: str = "counts",
        total_counts: str | None = None,
        batch_size: int = 64,
    ) -> CellCodes:
        matrix = adata.X if layer is None else adata.layers[layer]
        matrix = matrix[:] if adata.isbacked else matrix
        values = sparse.csr_matrix(matrix).toarray().astype(np.float64)
        values = values if units == "counts" else np.expm1(values)
        silent = values.sum(axis=1) == 0
        latent = self._latent(values)
        cosine = latent @ self._book.vectors.T.astype(np.float64)
        order = np.sort(cosine, axis=1)
        second = order[:, -2] if order.shape[1] > 1 else order[:, -1]
        similarity, margin = order[:, -1], order[:, -1] - second
        latent[silent] = similarity[silent] = margin[silent] = np.nan
        code = np.where(silent, -1, cosine.argmax(axis=1)).astype(np.int64)
        kinds = (latent, similarity, margin)
        return CellCodes(code, *(x.astype(np.float32) for x in kinds))
