"""Training of ``bulkformer-mini`` on the human bulk samples.

``python -m training.train_bulkformer --data DATA --output FOLDER``
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

import anndata as ad
import torch

from benchmarks._report import data_folder
from cfm.models import BulkFormer
from training.bulk_corpus import N_GENES, add_graph, join, read_tables, vocabulary

SEED = 0
MAX_STEPS = 600
N_FACTORS = 640
#: Sizes that a checkpoint of some 7 MB has room for; the factors take most of it.
SIZES = {"dim": 32, "n_layers": 1, "n_heads": 4}
MASK_SHARE = 0.3


def train(
    tables: Collection[ad.AnnData],
    *,
    n_genes: int = N_GENES,
    max_steps: int = MAX_STEPS,
    seed: int = SEED,
) -> BulkFormer:
    """Train a mini BulkFormer from nothing: vocabulary, graph, network, linear term."""
    corpus = join(tables, vocabulary(tables, n_genes))
    add_graph(corpus)
    BulkFormer.setup_anndata(corpus, study_key="study")
    model = BulkFormer(corpus, size="mini", seed=seed, **SIZES)
    model.train(
        max_steps=max_steps,
        mask_share=MASK_SHARE,
        lr=4e-3,
        balanced=True,
        block_size=1,  # rows are drawn as when the bundled weights were made
        seed=seed,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    # A network of so few samples makes predictions and embeddings worse: the term stands alone.
    model.fit_linear_term(N_FACTORS, group_key="group", weight=1.0, seed=seed)
    model.provenance["training_command"] = "python -m training.train_bulkformer"
    model.provenance["training_tables"] = sorted(corpus.obs["table"].unique().tolist())
    model.provenance["n_samples"] = corpus.n_obs
    return model


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order would be other weights
    tables = read_tables(data_folder(args.data))
    model = train(list(tables.values()), max_steps=args.max_steps)
    model.save(args.output, overwrite=True, compact=True)


if __name__ == "__main__":
    main()
