"""Does a BulkFormer predict what compounds do that it has no signature of?

``python -m benchmarks.compounds`` splits the compounds of the Connectivity Map build 2 that
DrugCentral knows targets of into five folds, learns on four of them and predicts the fifth, beside
predictions that need no model.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from scvi import settings

from benchmarks._report import Report, add_arguments, data_folder
from cfm.datasets import drug_targets
from cfm.metrics import mean_shift
from cfm.models import BulkFormer
from cfm.models.bulkformer._compounds import compound_key, read_features
from cfm.pp import coexpression_graph, tpm

N_FOLDS = 5
N_LISTED = 50
#: Penalty of the ridge regression, as in cfm.metrics.linear_shift.
RIDGE = 3.0
CELLS = ("MCF7", "PC3", "HL60")
HEAD = "BulkFormer, compound head"
NO_SHRINKAGE = "the same without shrinkage"
UNLISTED = "the same, unlisted genes weigh 0.1"
MEAN, CELL_MEAN = "mean signature", "mean signature of the cell line"
SCORES = ("auroc", "correlation", "centred")


def load_signatures(folder: Path) -> pd.DataFrame:
    """Return a signature per compound and cell line: mean rank weight of its instances.

    Index ``(compound, cell)``, columns genes; 1 and −1 for the 50 genes with the largest and the
    50 with the smallest mean weight, else 0. A place p of 100 in an instance weighs log(101 / p).
    """
    sets = folder / "signed_sets"
    instances = pd.read_csv(sets / "cmap_instances.csv.gz", usecols=["instance", "drug", "cell"])
    lists = pd.read_csv(sets / "cmap_up_down.csv.gz", usecols=["instance", "direction", "gene"])
    place = lists.groupby(["instance", "direction"]).cumcount() + 1
    lists["weight"] = lists["direction"] * np.log(101 / place)
    lists = lists.merge(instances[instances["cell"].isin(CELLS)], on="instance")
    lists["compound"] = lists["drug"].map(compound_key)
    total = lists.groupby(["compound", "cell", "gene"])["weight"].sum().rename("weight")
    table = total.reset_index().sort_values("weight", kind="stable")
    groups = table.groupby(["compound", "cell"])
    down = groups.head(N_LISTED).query("weight < 0").assign(direction=-1.0)
    up = groups.tail(N_LISTED).query("weight > 0").assign(direction=1.0)
    listed = pd.concat([up, down])
    wide = listed.pivot_table(index=["compound", "cell"], columns="gene", values="direction")
    return wide.fillna(0.0).astype(np.float32)


def load_samples(folder: Path, genes: pd.Index) -> tuple[ad.AnnData, ad.AnnData]:
    """Return log TPM of genes: samples to train on, and untreated epithelial cells as baseline."""
    cells = ad.read_h5ad(folder / "virus_counts" / "GSE147507.h5ad")
    cells = cells[(cells.obs["virus"] == "none").to_numpy()].copy()
    blood = ad.read_h5ad(folder / "bulk" / "lcl_rnaseq_pickrell.h5ad")
    made = []
    for samples in (cells, blood):
        tpm(samples)
        table = samples.to_df("log_tpm").astype(np.float32)
        made.append(table[table.columns.intersection(genes)])
    shared = made[0].columns.intersection(made[1].columns)
    both = [ad.AnnData(table[shared]) for table in made]
    return ad.concat(both, index_unique="-"), both[0]


def small_model(samples: ad.AnnData, max_steps: int) -> BulkFormer:
    """Train a small BulkFormer for a few steps, or not at all."""
    coexpression_graph(samples)
    BulkFormer.setup_anndata(samples)
    model = BulkFormer(samples, size="mini")
    if max_steps:
        model.train(max_steps=max_steps, batch_size=4, enable_progress_bar=False)
    return model


def score(truth: np.ndarray, predicted: np.ndarray, mean: np.ndarray) -> dict[str, float]:
    """Score one signature, ``(genes,)`` of −1, 0, 1."""
    listed = truth != 0
    up = truth[listed] > 0
    rank = rankdata(predicted[listed])
    n_up, n_down = int(up.sum()), int((~up).sum())
    auroc = np.nan
    if n_up and n_down:
        auroc = (rank[up].sum() - n_up * (n_up + 1) / 2) / (n_up * n_down)
    return {
        "auroc": float(auroc),
        "correlation": correlation(truth, predicted),
        "centred": correlation(truth - mean, predicted - mean),
    }


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r, 0 where one does not vary."""
    x, y = x - x.mean(), y - y.mean()
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    # What differs from the mean in the last digits only does not vary.
    return float(x @ y) / length if length > 1e-3 else 0.0


def without_model(
    signatures: pd.DataFrame, features: pd.DataFrame, training: np.ndarray, test: np.ndarray
) -> dict[str, np.ndarray]:
    """Return what baselines predict for the test signatures, ``(test, genes)`` each."""
    known = signatures[training].to_numpy()
    cells = signatures.index.get_level_values(1)
    mean = mean_shift(known)
    of_cell = {c: mean_shift(known[cells[training] == c]) for c in set(cells[training])}
    names = signatures.index.get_level_values(0)
    # A compound has one row here, the mean of its cell lines: they share its targets.
    merged = signatures[training].groupby(level=0).mean()
    x, effects = features.loc[merged.index].to_numpy(), merged.to_numpy()
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    asked = features.loc[names[test]].to_numpy()
    likeness = asked @ unit.T
    nearest = []
    for row in likeness:
        best = row >= row.max() - 1e-6
        nearest.append(effects[best].mean(axis=0) if row.max() > 0 else mean)
    centred = x - x.mean(axis=0)
    gram = centred @ centred.T
    ridge = RIDGE * np.trace(gram) / len(gram)
    weights = np.linalg.solve(gram + ridge * np.eye(len(gram)), effects - effects.mean(axis=0))
    return {
        MEAN: np.tile(mean, (len(likeness), 1)),
        CELL_MEAN: np.stack([of_cell[c] for c in cells[test]]),
        "nearest compound by targets": np.stack(nearest),
        "ridge on targets": effects.mean(axis=0) + (asked - x.mean(axis=0)) @ centred.T @ weights,
    }


def with_model(
    model: BulkFormer,
    baseline: ad.AnnData,
    signatures: pd.DataFrame,
    features: pd.DataFrame,
    training: np.ndarray,
    test: np.ndarray,
    seed: int,
    steps: int,
) -> tuple[dict[str, pd.DataFrame], float]:
    """Return predictions of the head, compounds by genes, and the shrinkage that it found."""
    table = signatures[training].stack().rename("direction").reset_index()
    table = table[table["direction"] != 0].rename(columns={"cell": "signature"})
    wanted = sorted(set(signatures.index[test].get_level_values(0)))
    sample = ad.AnnData(baseline.to_df().mean().to_frame("mean").T.astype(np.float32))
    _, embedded = next(model.get_gene_embeddings(sample, precision="float32"))
    made, shrinkage = {}, 0.0
    for name, weight in ((HEAD, 1.0), (UNLISTED, 0.1)):
        found = model.train_compounds(
            table, baseline, features=features, n_steps=steps, seed=seed, unlisted_weight=weight
        )
        made[name] = _ask(model, embedded, wanted, signatures.columns)
        if name == HEAD:
            shrinkage = found["shrinkage"]
            model.compound_head.shrinkage.fill_(1.0)
            made[NO_SHRINKAGE] = _ask(model, embedded, wanted, signatures.columns)
    return made, shrinkage


def _ask(
    model: BulkFormer, embedded: np.ndarray, compounds: list[str], genes: pd.Index
) -> pd.DataFrame:
    """Ask the head for many compounds in one sample, whose genes are embedded once."""
    head = model.compound_head
    number = torch.tensor([head.compounds.index(c) for c in compounds])
    with torch.inference_mode():
        made = head(torch.from_numpy(embedded[0])[head.genes], head.describe(number)).numpy()
    known = model.vocabulary.genes[head.genes.numpy()]
    return pd.DataFrame(made, index=compounds, columns=known).reindex(columns=genes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=200, help="training steps of the head")
    parser.add_argument("--model", help="a BulkFormer checkpoint; by default a small new one")
    parser.add_argument("--pretrain", type=int, default=60, help="steps of the small new one")
    arguments = parser.parse_args()
    settings.verbosity = 30
    warnings.filterwarnings("ignore", category=UserWarning)
    folder = data_folder(arguments.data)
    report = Report("compounds", "Compounds without a signature")
    features = read_features(drug_targets())
    signatures = load_signatures(folder)
    has = signatures.index.get_level_values(0).isin(features.index)
    model = BulkFormer.from_pretrained(arguments.model) if arguments.model else None
    genes = signatures.columns
    if model is not None:  # all methods are judged on genes that the model knows
        genes = genes[genes.isin(model.vocabulary.genes)]
    samples, baseline = load_samples(folder, genes)
    signatures = signatures[has][baseline.var_names]
    signatures = signatures[
        ((signatures > 0).sum(axis=1) >= 5) & ((signatures < 0).sum(axis=1) >= 5)
    ]
    features = features.loc[sorted(set(signatures.index.get_level_values(0)))]
    features = features.loc[:, (features > 0).sum() >= 2]
    start = time.perf_counter()
    if model is not None:
        how = f"`{model.checkpoint_name}`"
    else:
        model = small_model(samples, arguments.pretrain)
        how = (
            f"a BulkFormer of size mini trained for {arguments.pretrain} steps on "
            f"{samples.n_obs} samples ({time.perf_counter() - start:.0f} s)"
        )
    names = features.index.to_numpy()
    fold = dict(
        zip(
            names,
            np.random.default_rng(0).permutation(np.arange(len(names)) % N_FOLDS),
            strict=True,
        )
    )
    of = np.array([fold[c] for c in signatures.index.get_level_values(0)])
    rows, shrinkage, seconds = [], [], 0.0
    for i in range(N_FOLDS):
        training, test = of != i, of == i
        mean = signatures[training].to_numpy().mean(axis=0)
        start = time.perf_counter()
        learned, found = with_model(
            model, baseline, signatures, features, training, test, i, arguments.steps
        )
        seconds += time.perf_counter() - start
        shrinkage.append(found)
        made = without_model(signatures, features, training, test)
        asked = signatures.index[test].get_level_values(0)
        for name, table in learned.items():
            # Of genes that no training signature lists nothing is expected.
            made[name] = table.loc[asked].fillna(0.0).to_numpy()
        truth = signatures[test].to_numpy()
        for name, predicted in made.items():
            for compound, y, p in zip(asked, truth, predicted, strict=True):
                rows.append({"compound": compound, "method": name} | score(y, p, mean))
    scores = pd.DataFrame(rows).groupby(["compound", "method"])[list(SCORES)].mean().unstack()
    report.text(
        f"{len(features)} compounds of the Connectivity Map build 2 with targets in DrugCentral "
        f"({features.shape[1]} targets of at least two compounds), {len(signatures)} signatures of "
        f"50 up and 50 down genes (of {signatures.shape[1]:,} that the samples measure) in "
        f"{', '.join(CELLS)}. Compounds are split into {N_FOLDS} folds; those of one drug class "
        "may be on both sides. The baseline is the mean of untreated A549 and bronchial "
        "epithelial cells (GSE147507), because expression of the three cell lines is not among the "
        f"data: the head cannot know the cell line. The model is {how}; the heads learned for "
        f"{seconds:.0f} s. These are microarrays, and replicates share few genes; the authors of "
        "BulkFormer withdrew their own benchmark on L1000 because the assay is not bulk RNA-seq, "
        "and the same holds here."
    )
    table = []
    for name in scores["auroc"].columns:
        line: dict[str, object] = {"method": name}
        for measure in SCORES:
            values = scores[measure][name].to_numpy()
            line[measure] = float(np.nanmean(values))
            if name != MEAN:
                reference = scores[measure][MEAN].to_numpy()
                usable = ~np.isnan(values) & ~np.isnan(reference)
                low, high = _interval(values[usable] - reference[usable])
                line[f"{measure} − mean signature"] = f"{low:+.3f} to {high:+.3f}"
            else:
                line[f"{measure} − mean signature"] = "–"
        table.append(line)
    ordered = pd.DataFrame(table).sort_values("auroc", ascending=False)
    report.table(
        "scores",
        ordered,
        "Held-out compounds: AUROC of up against down among the listed genes, Pearson's r of the "
        "whole profile and of what differs from the training mean; means over compounds, and "
        "bootstrap 95 % intervals of the paired difference to the mean signature",
    )
    report.value("shrinkage", shrinkage)
    report.text(f"Shrinkage that the head found: {', '.join(f'{s:.2f}' for s in shrinkage)}.")
    report.finish(arguments.write)


def _interval(differences: np.ndarray, n: int = 2000) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(differences), (n, len(differences)))
    low, high = np.quantile(differences[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
