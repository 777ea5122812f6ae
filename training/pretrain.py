"""Pretraining of CellPulse on the real data, with studies held out where a benchmark asks.

``python -m training.pretrain --data DATA --output FOLDER`` trains ``cellpulse-mini``.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks._report import data_folder
from benchmarks._studies import SignedSets, load_signatures, load_signed_sets
from cfm.data import map_identifiers
from cfm.models import CellPulse

#: Share of the usable human contrasts that must measure a gene for it to enter the vocabulary.
MIN_MEASURED = 0.25
SEED = 0
MAX_STEPS = 240


@dataclass(frozen=True)
class PretrainingData:
    """Contrasts as an AnnData (obs ``study``), and signed sets over the same genes."""

    contrasts: ad.AnnData
    sets: SignedSets

    def without(self, studies: Collection[str]) -> PretrainingData:
        """Leave whole studies out, and the signed sets that were made from them."""
        keep = ~self.contrasts.obs["study"].isin(list(studies)).to_numpy()
        return PretrainingData(self.contrasts[keep].copy(), self.sets.without_studies(studies))


def vocabulary(folder: Path) -> pd.Index:
    """Genes with a current symbol in at least a quarter of the usable human contrasts."""
    human = load_signatures(folder, ("human",))
    share = np.isfinite(human.effects).mean(axis=0)
    mapped = map_identifiers(human.var_names.tolist(), organism="human").mapped
    return human.var_names[(share >= MIN_MEASURED) & mapped]


def load_pretraining(folder: Path) -> PretrainingData:
    """Read all contrasts (also those that the manifest calls unusable) and the signed sets."""
    genes = vocabulary(folder)
    rows = load_signatures(folder, ("human", "mouse", "monkey"), usable=None).reindex(genes)
    rows = rows[np.isfinite(rows.effects).sum(axis=1) >= 1000]
    obs = pd.DataFrame({"study": rows.obs["study"].astype(str)}, index=rows.obs.index)
    contrasts = ad.AnnData(rows.effects, obs=obs, var=pd.DataFrame(index=genes))
    return PretrainingData(contrasts, load_signed_sets(folder, genes, ("immunesigdb", "cytosig")))


def pretrain(data: PretrainingData, *, max_steps: int = MAX_STEPS, seed: int = SEED) -> CellPulse:
    """Train a mini CellPulse from nothing."""
    contrasts = data.contrasts.copy()
    sets = ad.AnnData(data.sets.matrix, var=pd.DataFrame(index=contrasts.var_names))
    CellPulse.setup_anndata(contrasts, study_key="study")
    model = CellPulse(contrasts, signed_sets=sets, size="mini", seed=seed)
    model.train(max_steps=max_steps, seed=seed)
    model.provenance["training_command"] = "python -m training.pretrain"
    return model


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS)
    args = parser.parse_args()
    model = pretrain(load_pretraining(data_folder(args.data)), max_steps=args.max_steps)
    model.save(args.output, overwrite=True, compact=True)


if __name__ == "__main__":
    main()
