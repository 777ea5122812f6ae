"""Predict the direction and size of hidden effects in studies that were never seen.

``python -m benchmarks.masked_direction`` trains one CellPulse per fold of whole studies (kept in
``--models``, so that a second run only scores) and every baseline on the same contrasts and
signed sets.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks._report import REPOSITORY, Report, add_arguments, data_folder
from benchmarks._studies import hide_half_of_top, load_signatures, study_folds, study_weights
from cfm.metrics import (
    CorrelationKernel,
    EffectPCA,
    GeneMean,
    MajoritySign,
    NearestProfiles,
    SignedSetSVD,
    direction_scores,
    paired_bootstrap,
    size_scores,
)
from cfm.models import CellPulse
from training.pretrain import MAX_STEPS, PretrainingData, load_pretraining, pretrain

MODELS = REPOSITORY / "benchmarks" / "models"
N_FOLDS = 6
OURS = "CellPulse"
LINEAR = "CellPulse, linear term alone"
BASELINES = {
    "gene mean": GeneMean(),
    "majority sign": MajoritySign(),
    "PCA of effects": EffectPCA(),
    "SVD of signed sets": SignedSetSVD(),
    "SVD of signed sets and studies": SignedSetSVD(effect_weight=1.0),
    "k nearest profiles": NearestProfiles(),
    "gene-correlation kernel": CorrelationKernel(),
}
LABELS = {"accuracy": "accuracy", "balanced_accuracy": "balanced", "auroc": "AUROC"}


def fold_model(
    data: PretrainingData, fold: int, folder: Path, *, max_steps: int, seed: int
) -> CellPulse:
    """Return the CellPulse of a fold: from the folder, or trained and put there."""
    path = folder / f"fold{fold}-steps{max_steps}-seed{seed}"
    if not path.is_dir():
        start = time.perf_counter()
        model = pretrain(data, max_steps=max_steps, seed=seed)
        model.provenance["seconds"] = time.perf_counter() - start
        model.save(path)
    return CellPulse.load(path)


def score(effects: np.ndarray, hidden: np.ndarray, direction: np.ndarray, size: np.ndarray) -> list:
    """Score one method on every profile."""
    rows = []
    for x, mask, d, s in zip(effects, hidden, direction, size, strict=True):
        rows.append(direction_scores(x, d, mask) | size_scores(x, s, mask))
    return rows


def run_fold(
    model: CellPulse,
    data: PretrainingData,
    effects: np.ndarray,
    hides: int,
) -> pd.DataFrame:
    """Score all methods on the contrasts of one fold, a row per method, hide and contrast."""
    train = data.contrasts
    weights = study_weights(train.obs["study"])
    sets = data.sets.matrix
    fitted = {name: b.fit(train.X, weights, sets) for name, b in BASELINES.items()}
    frames = []
    for seed in range(hides):
        observed, hidden = hide_half_of_top(effects, seed=seed)
        answers = {name: b.predict(observed, hidden) for name, b in fitted.items()}
        visible = np.where(hidden, np.float32(1.0), observed)  # hidden values are never read
        answers[OURS] = model.predict_hidden(visible, hidden)
        weight = model.module.correction_weight.clone()
        model.module.correction_weight.zero_()
        answers[LINEAR] = model.predict_hidden(visible, hidden)
        model.module.correction_weight.copy_(weight)
        for name, (direction, size) in answers.items():
            frame = pd.DataFrame(score(effects, hidden, direction, size))
            frames.append(frame.assign(method=name, row=np.arange(len(effects)), hide=seed))
    return pd.concat(frames, ignore_index=True)


def main() -> None:
    """Run all folds and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--models", type=Path, default=MODELS, help="where fold models are kept")
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS)
    parser.add_argument("--hides", type=int, default=3, help="random choices of the hidden half")
    parser.add_argument("--folds", type=int, default=N_FOLDS, help="run the first folds only")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(max(1, torch.get_num_threads()))
    folder = data_folder(args.data)
    data = load_pretraining(folder)
    human = load_signatures(folder, ("human",)).reindex(data.contrasts.var_names)
    studies = human.obs["study"].astype(str).to_numpy()
    fold_of = study_folds(studies, N_FOLDS)
    parts = []
    for fold in range(min(args.folds, N_FOLDS)):
        test = fold_of == fold
        rest = data.without(set(studies[test]))
        model = fold_model(rest, fold, args.models, max_steps=args.max_steps, seed=args.seed)
        part = run_fold(model, rest, human.effects[test], args.hides)
        part["study"] = studies[test][part["row"]]
        part["contrast"] = human.obs.index[test].to_numpy()[part["row"]]
        parts.append(part)
        shown = part.groupby("method")["accuracy"].mean().round(3).to_dict()
        weight = float(model.module.correction_weight)
        print(f"fold {fold}: correction {weight}, accuracy {shown}", flush=True)
    result = pd.concat(parts, ignore_index=True)
    columns = [*LABELS, "mae", "spearman"]
    per_contrast = result.groupby(["method", "study", "contrast"])[columns].mean()
    per_study = per_contrast.groupby(["method", "study"]).mean()
    means = per_study.groupby("method").mean().loc[[*BASELINES, LINEAR, OURS]]
    report = Report("masked_direction", "Masked direction in unseen studies")
    report.text(
        f"In {per_study.loc[OURS].shape[0]} studies left out of training ({N_FOLDS} folds of whole "
        f"studies, signed sets made from them dropped), half of the 1,000 largest effects of each "
        f"contrast is hidden ({args.hides} random choices). Means over contrasts, then studies; "
        f"{human.effects.shape[1]:,} genes. Baselines share one model of sizes; `size MAE` is in "
        "log2 units, `size ρ` the rank correlation of |log2FC|."
    )
    shown = means.rename(columns=LABELS | {"mae": "size MAE", "spearman": "size ρ"})
    report.table("scores", shown.reset_index(), "Scores")
    rows = []
    for name in [*BASELINES, LINEAR]:
        for column, label in LABELS.items():
            # a contrast whose hidden effects all point one way has no balanced score
            both = per_contrast[column].unstack("method")[[OURS, name]].dropna()
            units = both.index.get_level_values("study").to_numpy()
            row = paired_bootstrap(both[OURS], both[name], units)
            rows.append({"CellPulse minus": name, "score": label} | row)
    report.table("paired", pd.DataFrame(rows), "Paired over studies (95 % bootstrap interval)")
    report.finish(args.write)


if __name__ == "__main__":
    main()
