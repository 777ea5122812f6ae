"""Trains the virus classifier on a pretrained CellPulse.

``python -m training.train_virus --data DATA --encoder NAME --output FOLDER`` makes
``cellpulse-virus`` from ``cellpulse-mini``.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

import anndata as ad

from benchmarks._report import data_folder
from cfm.models import CellPulse
from training.corpus import build_corpus

#: Hosts whose contrasts enter: ferret effects agree with no other host's (see the corpus).
HOSTS = ("human", "mouse", "monkey")


def load_corpus(folder: Path, model: CellPulse) -> ad.AnnData:
    """Read labelled contrasts on the model's genes.

    ``obs["teaches_virus"]`` marks usable human signatures: other hosts and the study's own counts
    once more made the naming of viruses worse on left-out studies. ``obs["trains"]`` marks rows
    for the classifier as a whole: usable infections and control against control. Cytokines, drugs
    and bacteria are kept for scoring only: trained on as *uninfected* they are still called
    infected in studies left out, and cost accuracy on true controls.
    """
    corpus = build_corpus(folder, model.vocabulary.genes)
    obs = corpus.obs
    infection = (obs["kind"] == "infection") & obs["usable"].astype(bool)
    host = obs["host"].isin(HOSTS)
    obs["trains"] = host & (infection | (obs["kind"] == "null"))
    signature = (obs["source"] == "signature") & (obs["host"] == "human")
    obs["teaches_virus"] = infection & signature
    return corpus


def train_virus(
    model: CellPulse,
    corpus: ad.AnnData,
    *,
    without_studies: Collection[str] = (),
    without_viruses: Collection[str] = (),
) -> CellPulse:
    """Train the classifier of a model, leaving out whole studies and viruses."""
    obs = corpus.obs
    keep = obs["trains"] & ~obs["study"].isin(list(without_studies))
    keep &= ~obs["virus"].isin(list(without_viruses))
    rows = corpus[keep.to_numpy()].copy()
    CellPulse.setup_anndata(rows, labels_key="virus", study_key="study")
    model.train_classifier(rows, teaches_virus=rows.obs["teaches_virus"].to_numpy(bool))
    return model


def main() -> None:
    """Train on everything and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--encoder", required=True, help="name of a checkpoint, or a folder")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    model = CellPulse.load(args.encoder)
    corpus = load_corpus(data_folder(args.data), model)
    train_virus(model, corpus)
    rows = corpus.obs[corpus.obs["trains"]]
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
