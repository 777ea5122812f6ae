"""Small CellVQ models without training, and cells for them."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import torch

from cfm.models import CellVQ
from cfm.models.cellvq._data import CellReader

GENES = [f"G{i}" for i in range(40)]
CLASSES = {"cell_type": ["B", "NK", "T"], "tissue": ["blood", "lung"]}
SIZES: dict[str, Any] = {
    **{"dim": 16, "n_layers": 2, "n_heads": 2, "ff_dim": 24},
    **{"decoder_dim": 12, "decoder_layers": 1, "decoder_heads": 2},
    **{"n_bins": 8, "n_bits": 6, "codebook_dim": 16, "codebook_layers": 2, "code_dim": 8},
    "expression_codes": False,
}


def small_model(**kwargs: Any) -> CellVQ:
    """A model without training; its codes are spread, which they are not as it is made."""
    model = CellVQ(**({"vocabulary": GENES, "properties": CLASSES} | SIZES | kwargs))
    reader = CellReader(counted_cells(64, seed=99), model.vocabulary)
    tokens = reader.tokens(np.arange(64))
    module = model.module.eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                weight += torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5
        _, maximum = module.pool(module.encode(*tokens), tokens.padding)
        module.quantiser.proj.bias.copy_(-module.quantiser.proj.weight @ maximum.mean(0))
    return model


def counted_cells(n: int = 12, seed: int = 0, genes: list[str] | None = None) -> ad.AnnData:
    """Counts of cells that express about half of the genes, each cell its own."""
    rng = np.random.default_rng(seed)
    names = [*GENES, "X1", "X2"] if genes is None else genes
    share = rng.uniform(0.2, 0.9, size=(n, 1))
    counts = rng.integers(1, 60, size=(n, len(names))) * (rng.random((n, len(names))) < share)
    counts[:, 5] += 1
    adata = ad.AnnData(counts.astype(np.float32))
    adata.var_names = names
    adata.obs_names = [f"cell{i}" for i in range(n)]
    return adata
