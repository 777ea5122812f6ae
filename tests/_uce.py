"""Toy files of UCE in the layout of its authors, around the golden weights."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch

GOLDEN = Path(__file__).parent / "golden" / "uce"
#: Heads of the golden weights, which have 60 tokens: 4 to 49 are genes, 50 to 59 chromosomes.
N_HEADS = 4
N_GENES, FIRST = 40, 6
GENES = [f"GENE{i}" for i in range(N_GENES)]


def published(folder: Path) -> Path:
    """Write the authors' files: weights, chromosomes, offsets and protein embeddings."""
    (folder / "protein_embeddings").mkdir(parents=True)
    shutil.copy(GOLDEN / "uce_tiny.torch", folder / "uce_tiny.torch")
    embeddings = torch.load(folder / "uce_tiny.torch", weights_only=True)["pe_embedding.weight"]
    proteins = {g.lower(): embeddings[FIRST + i].clone() for i, g in enumerate(GENES)}
    name = "Homo_sapiens.GRCh38.gene_symbol_to_embedding_ESM2.pt"
    torch.save(proteins, folder / "protein_embeddings" / name)
    rng = np.random.default_rng(0)
    chromosomes = pd.DataFrame(
        {
            "species": ["human"] * N_GENES + ["mouse"] * 2,
            "gene_symbol": [*GENES, "GENE0", "GENE1"],
            "chromosome": [str(i % 5 + 1) for i in range(N_GENES)] + ["1", "X"],
            "start": [*rng.permutation(N_GENES) * 10, 5, 6],
        }
    ).sample(frac=1, random_state=0)
    chromosomes.to_csv(folder / "species_chrom.csv", index=False)
    (folder / "species_offsets.pkl").write_bytes(pickle.dumps({"human": FIRST, "mouse": 4}))
    return folder


def cells(n: int = 12, seed: int = 0) -> ad.AnnData:
    """Counts of the toy genes."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(1.0, 2.0, size=(n, N_GENES)))
    x[:, 0] += 1
    return ad.AnnData(
        x.astype(np.float32),
        obs=pd.DataFrame(index=[f"cell{i}" for i in range(n)]),
        var=pd.DataFrame(index=GENES),
    )
