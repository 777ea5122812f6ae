"""Core-essential genes from embeddings of genes, beside expression and degree.

``python -m benchmarks.essentiality --data DATA [--write]``

Each gene is one observation. A logistic regression is trained on some genes and scored on others;
its penalty is chosen in the training genes.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler

import cfm
from benchmarks._report import Report, add_arguments, data_folder
from benchmarks.host_factors import load_degree
from training.bulk_corpus import TABLES, read_table

TISSUES = ("lcl_rnaseq_pickrell", "tcga_small5_rsem", "GSE50244_islets")
#: Samples of each table.
N_SAMPLES = 40
N_FOLDS, N_BOOT = 5, 1000
N_COMPONENTS = 50
EMBEDDING, LOADINGS = "BulkFormer mini, network", "BulkFormer mini, linear term"
SIMPLE = ("mean expression", "variance of expression", "degree in Reactome FI")


def read_samples(data: Path, seed: int) -> ad.AnnData:
    """Return some samples of each table, log TPM, over the genes that all have."""
    rng = np.random.default_rng(seed)
    parts = []
    for table in TABLES:
        if Path(table.file).name in TISSUES:
            adata = read_table(data, table)
            chosen = rng.permutation(adata.n_obs)[:N_SAMPLES]
            parts.append(adata[np.sort(chosen)].copy())
    return ad.concat(parts, join="inner")


def gene_set(data: Path, name: str) -> pd.Index:
    """Return the current symbols of a list of genes."""
    table = pd.read_csv(data / "gene_sets" / f"{name}.txt", sep="\t")
    found = cfm.data.map_identifiers(table.iloc[:, 0].tolist(), organism="human")
    return pd.Index(found.symbol[found.mapped]).unique()


def simple_features(samples: ad.AnnData, degree: pd.Series) -> dict[str, np.ndarray]:
    """Return the baselines, ``(n_genes, n_features)`` by name."""
    x = np.asarray(samples.X)
    tissue = samples.obs["table"].to_numpy()
    # within tissues: between them, the mean of a gene differs
    variance = np.mean([x[tissue == t].var(axis=0) for t in np.unique(tissue)], axis=0)
    single = [x.mean(axis=0), variance, degree.reindex(samples.var_names).fillna(0.0).to_numpy()]
    found = {name: value[:, None] for name, value in zip(SIMPLE, single, strict=True)}
    found["all three"] = np.column_stack(single)
    centred = x - x.mean(axis=0)
    found[f"PCA of expression, {N_COMPONENTS}"] = PCA(N_COMPONENTS, random_state=0).fit_transform(
        centred.T
    )
    return found


def out_of_fold(features: np.ndarray, positive: np.ndarray, seed: int) -> np.ndarray:
    """Return a score of each gene by a model of other genes; ranks within folds."""
    out = np.empty(len(features))
    for train, test in StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed).split(
        features, positive
    ):
        model = make_pipeline(
            QuantileTransformer(n_quantiles=200, output_distribution="normal", random_state=0),
            StandardScaler(),
            LogisticRegressionCV(
                Cs=np.logspace(-4, -1, 4), cv=3, scoring="roc_auc", class_weight="balanced"
            ),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(features[train], positive[train])
        rank = model.decision_function(features[test]).argsort().argsort()
        out[test] = (rank + 0.5) / len(test)
    return out


def score_all(features: dict[str, np.ndarray], positive: np.ndarray, seed: int) -> pd.DataFrame:
    """Return AUROC of each representation, with the difference to the best simple one.

    Intervals hold 95 % of bootstrap draws of genes.
    """
    made = {}
    for name, x in features.items():
        made[name] = out_of_fold(x, positive, seed)
        print(name, f"{roc_auc_score(positive, made[name]):.3f}", flush=True)
    auroc = {name: roc_auc_score(positive, score) for name, score in made.items()}
    ours = (EMBEDDING, LOADINGS)
    best = max((name for name in auroc if not name.startswith(ours)), key=auroc.__getitem__)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(N_BOOT):
        rows = rng.integers(0, len(positive), len(positive))
        draws.append({n: roc_auc_score(positive[rows], s[rows]) for n, s in made.items()})
    drawn = pd.DataFrame(draws)
    low, high = drawn.quantile(0.025), drawn.quantile(0.975)
    less = drawn.sub(drawn[best], axis=0)
    return pd.DataFrame(
        {
            "method": list(auroc),
            "AUROC": list(auroc.values()),
            "low": low.to_numpy(),
            "high": high.to_numpy(),
            "less the best simple one": [auroc[n] - auroc[best] for n in auroc],
            "low of difference": less.quantile(0.025).to_numpy(),
            "high of difference": less.quantile(0.975).to_numpy(),
        }
    )


def main() -> None:
    """Score and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = data_folder(args.data)
    samples, degree = read_samples(data, args.seed), load_degree(data)
    essential, others = gene_set(data, "CEGv2"), gene_set(data, "NEGv1")
    model = cfm.models.load_model("bulkformer-mini")
    known = model.vocabulary.genes.intersection(samples.var_names)
    report = Report("essentiality", "Core-essential genes from embeddings of genes")
    n_other = len(known.intersection(others))
    report.text(
        f"Genes: {len(essential)} core-essential (CEGv2) and {len(others)} non-essential ones "
        f"(NEGv1). The bundled model knows {len(known.intersection(essential))} and {n_other} of "
        "them, as non-essential genes are hardly expressed. So its embeddings are scored on "
        "core-essential genes against all other genes of its vocabulary. The baselines are also "
        "scored against NEGv1, on all genes that the samples measure. Samples: "
        f"{N_SAMPLES} each of lymphoblastoid lines, TCGA tumours and islets, which are part of the "
        "model's corpus. "
        f"Logistic regression in {N_FOLDS} folds of genes. An embedding of the "
        "network is the mean over samples; the linear term has loadings of genes."
    )
    own = samples[:, known].copy()
    cfm.tl.embed(own, model, level="gene")
    place = model.vocabulary.genes.get_indexer(known)
    features = simple_features(own, degree)
    features[EMBEDDING] = own.varm["X_bulkformer_genes"]
    term = model.linear_term
    features[LOADINGS] = (term.loadings * term.loading_scale[:, None]).cpu().numpy()[place]
    for name in (EMBEDDING, LOADINGS):
        features[f"{name} + all three"] = np.column_stack([features[name], features["all three"]])
    table = score_all(features, known.isin(essential), args.seed)
    report.table("scores", table, "Core-essential against the other genes of the vocabulary")
    both = samples.var_names[samples.var_names.isin(essential.union(others))]
    table = score_all(
        simple_features(samples[:, both].copy(), degree), both.isin(essential), args.seed
    )
    n = int(both.isin(essential).sum())
    report.table("all_genes", table, f"{n} core-essential against {len(both) - n} non-essential")
    report.finish(args.write)


if __name__ == "__main__":
    main()
