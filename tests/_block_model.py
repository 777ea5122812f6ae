"""A model whose attention is planted, to test tools that read attention of any model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

from cfm.models import PretrainedModel

N_BLOCKS, BLOCK = 4, 15


class SilentModel(PretrainedModel):
    """A model that embeds nothing and attends to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.module = torch.nn.Linear(1, 1)

    @classmethod
    def setup_anndata(cls, adata: ad.AnnData, **kwargs: Any) -> None: ...

    @classmethod
    def _from_checkpoint(cls, checkpoint: Any) -> Any: ...

    def _contents(self) -> Any:
        return self.module.state_dict(), {}, {}

    def train(self) -> None: ...

    def vocabulary_share(self, adata: ad.AnnData) -> float:
        return 1.0


class BlockModel(SilentModel):
    """Genes G00 … attend to genes of their own block, all more to popular ones; two heads.

    A gene is a token where it moves, strongest first.
    """

    def __init__(self, genes: list[str], block: np.ndarray, contrast: float = 4.0) -> None:
        super().__init__()
        self.genes, self.block, self.contrast = pd.Index(genes), block, contrast

    def get_attention(
        self, adata: ad.AnnData, *, layer: str | None = None
    ) -> Iterator[tuple[pd.Index, np.ndarray]]:
        matrix = adata.X if layer is None else adata.layers[layer]
        for row in np.asarray(matrix, dtype=np.float64):
            effects = np.nan_to_num(row)
            place = self.genes.get_indexer(adata.var_names)
            used = np.argsort(-np.abs(effects), kind="stable")
            used = used[(effects[used] != 0) & (place[used] >= 0)]
            own = place[used]
            popular = 1.0 + own % 7
            same = self.block[own][:, None] == self.block[own][None]
            weights = np.where(same, self.contrast, 1.0) * popular
            weights = np.pad(weights, ((1, 0), (1, 0)), constant_values=1.0)
            heads = np.stack([weights, np.ones_like(weights)])[None]
            heads /= heads.sum(axis=-1, keepdims=True)
            yield self.genes[own].insert(0, "<summary>"), heads.astype(np.float32)


class FactorModel(BlockModel):
    """The same with a linear gene-gene term whose blocks are shifted by half a block."""

    def get_gene_factors(self) -> tuple[pd.Index, np.ndarray]:
        shifted = (np.arange(len(self.genes)) + BLOCK // 2) // BLOCK % N_BLOCKS
        return self.genes, np.eye(N_BLOCKS, dtype=np.float32)[shifted]


def block_data(
    n: int = 8, seed: int = 0, *, n_other: int = 20
) -> tuple[ad.AnnData, np.ndarray, list[str]]:
    """Return profiles in which the genes of a block move alike, their blocks and genes."""
    rng = np.random.default_rng(seed)
    genes = [f"G{i:02d}" for i in range(N_BLOCKS * BLOCK)]
    block = np.repeat(np.arange(N_BLOCKS), BLOCK)
    sign = np.array([1.0, -1.0, 1.0, -1.0])[block]
    effects = sign * (1.0 + 0.3 * rng.standard_normal((n, len(genes))))
    other = np.zeros((n, n_other))  # measured, never moving, unknown to the model
    names = genes + [f"other{i}" for i in range(n_other)]
    adata = ad.AnnData(
        np.hstack([effects, other]).astype(np.float32),
        obs=pd.DataFrame(
            {"virus": pd.Categorical(np.where(np.arange(n) % 2, "B/x", "A"))},
            index=[f"profile{i}" for i in range(n)],
        ),
        var=pd.DataFrame(index=names),
    )
    return adata, block, genes
