"""Trains the virus classifier on a pretrained CellPulse.

``python -m training.train_virus --data DATA --encoder NAME --output FOLDER`` makes
``cellpulse-virus`` from ``cellpulse-mini``.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks._report import data_folder
from benchmarks._studies import load_signed_sets
from cfm.models import CellPulse
from training._plan import UNINFECTED
from training._responses import read_set_responses
from training.corpus import build_corpus

#: The study of the demo and the README, which nothing that is bundled has learned from.
DEMO_STUDY = "GSE147507"


def load_corpus(folder: Path, model: CellPulse) -> ad.AnnData:
    """Read labelled contrasts on the model's genes, and signed sets whose names tell a response.

    ``obs["trains"]`` marks rows for the classifier: usable human infections, stimuli and control
    against control, and the pairs of ImmuneSigDB (:mod:`training._responses`) as rows of −1, 0
    and 1. ``obs["teaches_virus"]`` marks usable human signatures: other hosts and the study's own
    counts once more made the naming of viruses worse on left-out studies.
    """
    corpus = build_corpus(folder, model.vocabulary.genes)
    obs = corpus.obs
    human = (obs["host"] == "human") & obs["usable"].astype(bool)
    # CytoSig holds weights over many studies, no contrasts
    obs["trains"] = human & obs["whole"].astype(bool) & (obs["study"] != "CytoSig")
    obs["teaches_virus"] = human & (obs["kind"] == "infection") & (obs["source"] == "signature")
    return ad.concat([corpus, _signed_sets(folder, corpus.var_names)], join="outer")


def _signed_sets(folder: Path, genes: pd.Index) -> ad.AnnData:
    """Pairs of ImmuneSigDB as rows of −1, 0 and 1, upwards in what was given."""
    table = read_set_responses(folder)
    sets = load_signed_sets(folder, genes, ("immunesigdb",))
    table = table[table.index.isin(sets.names)]
    place = pd.Index(sets.names).get_indexer(table.index)
    signs = table["sign"].to_numpy(dtype=np.float32)[:, None]
    viral = table["response"] == "viral"
    obs = pd.DataFrame(
        {
            "study": table["study"],
            "response": table["response"],
            # which virus it is, the names tell in too many ways
            "virus": np.where(viral, "a virus", UNINFECTED),
            "kind": np.where(viral, "infection", "stimulus"),
            "source": "signed sets",
            "host": "human",
            "agent": "",
            "usable": True,
            "whole": True,
            "trains": True,
            "teaches_virus": False,
        }
    )
    x = sets.matrix[place].toarray() * signs
    return ad.AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=genes))


def train_virus(
    model: CellPulse,
    corpus: ad.AnnData,
    *,
    without_studies: Collection[str] = (),
    without_viruses: Collection[str] = (),
) -> pd.DataFrame:
    """Train the classifier of a model, leaving out whole studies and viruses."""
    obs = corpus.obs
    keep = obs["trains"].astype(bool) & ~obs["study"].isin(list(without_studies))
    keep &= ~obs["virus"].isin(list(without_viruses))
    rows = corpus[keep.to_numpy()].copy()
    CellPulse.setup_anndata(rows, labels_key="virus", study_key="study")
    return model.train_classifier(
        rows, responses="response", teaches_virus=rows.obs["teaches_virus"].to_numpy(bool)
    )


def main() -> None:
    """Train on everything and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--encoder", required=True, help="name of a checkpoint, or a folder")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    model = CellPulse.load(args.encoder)
    corpus = load_corpus(data_folder(args.data), model)
    train_virus(model, corpus, without_studies=[DEMO_STUDY])
    rows = corpus.obs[corpus.obs["trains"].astype(bool) & (corpus.obs["study"] != DEMO_STUDY)]
    teaching = rows[rows["teaches_virus"].astype(bool)]
    studies = teaching.groupby("virus", observed=True)["study"].nunique()
    model.provenance |= {
        "studies_per_virus": {str(k): int(v) for k, v in studies.items()},
        "n_contrasts": {str(k): int(n) for k, n in rows["kind"].value_counts().items()},
        "training_command": "python -m training.train_virus --encoder cellpulse-mini",
    }
    model.save(args.output, overwrite=True, compact=True)


if __name__ == "__main__":
    main()
