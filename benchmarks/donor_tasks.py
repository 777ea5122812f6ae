"""Vaccine response, plasma proteins and age of simulated donors: PULSAR beside pseudobulk.

``python -m benchmarks.donor_tasks``. The signal is planted in the cells of
:func:`cfm.datasets.toy_donors`; each data set has a PULSAR of its own, trained without labels.
"""

from __future__ import annotations

import argparse
import logging

import numpy as np
import pandas as pd
import scvi
import torch

import cfm
from benchmarks._report import Report, add_arguments

N_DONORS, N_STEPS = 40, 20
#: Of a planted quantity, in its standard deviations.
NOISE = {"responder": 0.3, "CXCL10": 0.5, "CD14": 0.5}
NAMES = {"X_pulsar": "PULSAR, trained without labels", "expression PCA": "PCA of pseudobulk"}


def score(seed: int, *, n_steps: int = N_STEPS) -> pd.DataFrame:
    """Return the scores of held-out donors of one simulated data set."""
    cells = cfm.datasets.toy_donors(seed, n_donors=N_DONORS)
    cfm.models.Pulsar.setup_anndata(cells, donor_key="donor_id")
    model = cfm.models.Pulsar(cells)
    model.train(max_steps=n_steps, n_cells=40, enable_progress_bar=False)
    donors = cfm.tl.embed_donors(cells, "donor_id", model, n_cells=None)
    truth = cells.uns["truth"].loc[donors.obs_names]
    planted = truth[["Monocyte", "response", "Monocyte"]].set_axis(list(NOISE), axis=1)
    noise = np.random.default_rng(seed).normal(size=planted.shape)
    measured = planted + planted.std().to_numpy() * list(NOISE.values()) * noise
    high = measured["responder"] > measured["responder"].median()
    donors.obs["responder"] = np.where(high, "yes", "no")
    donors.obsm["X_plasma"] = measured[["CXCL10", "CD14"]]
    tables = []
    for target in ("responder", "X_plasma", "age"):
        task, head = ("regression", "ridge")
        if target == "responder":
            task, head = ("classification", "logistic")
        cfm.tl.probe(donors, target, task, use_rep="X_pulsar", heads=head)
        tables.append(donors.uns["probe"]["results"])
    found = pd.concat(tables)
    found = found[found["metric"].isin(["auroc", "pearson"])]
    found = found[found["representation"].isin(NAMES) & (found["target"] != "mean over targets")]
    return found[["target", "metric", "representation", "score"]].assign(seed=seed)


def main() -> None:
    """Score and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, data=False)
    parser.add_argument("--repeats", type=int, default=5, help="data sets")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.WARNING
    torch.set_num_threads(1)
    every = pd.concat([score(seed) for seed in range(args.repeats)])
    every["method"] = every["representation"].map(NAMES)
    scores = every.groupby(["target", "metric", "method"])["score"]
    report = Report("donor_tasks", "Vaccine response, plasma proteins and age of simulated donors")
    report.text(
        f"{args.repeats} data sets of {N_DONORS} donors with 60 to 100 cells each; mean, lowest "
        "and highest score of donors left out (five folds). Responders to a vaccine are the half "
        f"with more monocytes before it (noise of {NOISE['responder']} standard deviations), "
        f"CXCL10 follows the interferon response, CD14 the monocytes (noise {NOISE['CD14']}), and "
        f"T cells become fewer with age. PULSAR is trained on the cells ({N_STEPS} steps)."
    )
    table = scores.agg(score="mean", lowest="min", highest="max").reset_index()
    report.table("scores", table, "AUROC of responders; correlation of values")
    report.finish(args.write)


if __name__ == "__main__":
    main()
