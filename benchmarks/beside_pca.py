"""Embeddings of ``bulkformer-mini`` beside principal components, on cohorts that it never saw.

``python -m benchmarks.beside_pca --data DATA [--write]``

For each cohort the vocabulary and the linear term, which makes the embedding, are fitted to the
corpus of the bundled model without the studies that are scored. Beside it: as many principal
components of the same corpus, and 50 components of the cohort's own training part.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scvi import settings
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import cfm
from benchmarks._report import Report, add_arguments, data_folder
from cfm.metrics import paired_bootstrap
from cfm.models.bulkformer import LocalFactorModel
from training.bulk_corpus import join, read_tables, vocabulary
from training.train_bulkformer import N_FACTORS

OURS, CORPUS, OWN = "BulkFormer mini", "PCA of the corpus", "PCA of the cohort"
NETWORK = "network alone (bundled, has seen counts)"
LCL = ("lcl_rnaseq_pickrell", "lcl_rnaseq_montgomery")
OVARIAN = ("GSE51088_ovarian", "GSE8842_ovarian", "GSE19829.GPL8300_ovarian")
BLADDER = ("GSE1827_bladder", "GSE5287_bladder")
AGILENT = "TCGA_agilent_KIRC_KIRP_LUAD_UCEC_LGG"
SURVIVAL: dict[str, Any] = {
    "target": ("time_days", "event"),
    "task": "survival",
    "heads": "cox",
}
SEEDS = range(5)
#: Folds of studies with infected and control samples.
N_FOLDS = 5
#: A cancer with fewer deaths is divided into three parts and not five.
FEW_EVENTS = 15


@dataclass
class Cohort:
    """Samples with an outcome.

    Attributes
    ----------
    name
        Of its row.
    adata
        ``X`` is log TPM, or ``relative`` to the mean of a gene.
    metric
        What is scored.
    arguments
        Of :func:`cfm.tl.probe`.
    without
        Tables of the corpus that are left out.
    relative
        Whether values are logarithms around the mean of each gene, as of microarrays.
    """

    name: str
    adata: ad.AnnData
    metric: str
    arguments: dict[str, Any]
    without: tuple[str, ...] = ()
    relative: bool = False


def _relative(folder: Path, file: str, by: str | None = None) -> ad.AnnData:
    """Read natural logarithms around the mean of each gene, in each level of a column."""
    adata = ad.read_h5ad(folder / "bulk" / f"{file}.h5ad")
    x = pd.DataFrame(np.asarray(adata.X) * np.log(2.0), adata.obs_names, adata.var_names)
    x = x.loc[:, ~x.columns.duplicated()]
    groups = np.zeros(len(x)) if by is None else adata.obs[by].to_numpy()
    x = x - x.groupby(groups).transform("mean")
    return ad.AnnData(x.astype(np.float32), obs=adata.obs)


def _survival(name: str, adata: ad.AnnData, **kwargs: Any) -> Cohort:
    events = int((adata.obs["event"].astype(float) == 1).sum())
    arguments = SURVIVAL | {"seed": SEEDS, "n_folds": 3 if events < FEW_EVENTS else 5}
    return Cohort(f"survival, {name}", adata, "c_index", arguments, **kwargs)


def cohorts(folder: Path, tables: dict[str, ad.AnnData]) -> Iterator[Cohort]:
    """Yield all cohorts but the infections."""
    lcl = ad.concat([tables[name] for name in LCL])
    yield Cohort("sex, LCL, other study", lcl, "auroc", {"target": "sex", "groups": "study"}, LCL)
    islets = tables["GSE50244_islets"]
    regression = {"task": "regression", "heads": "ridge", "seed": SEEDS}
    for target in ("age", "hba1c"):
        arguments = {"target": target} | regression
        yield Cohort(f"{target}, islets", islets, "spearman", arguments, ("GSE50244_islets",))
    lines = _relative(folder, "cgp200_camptothecin")
    response = {"target": "ic50_camptothecin"} | regression
    yield Cohort("camptothecin, cell lines", lines, "spearman", response, relative=True)
    tcga = tables["tcga_small5_rsem"]
    tissue = {"target": "cancer", "groups": "patient", "seed": range(3)}
    yield Cohort("cancer, TCGA RNA", tcga, "balanced_accuracy", tissue, ("tcga_small5_rsem",))
    for cancer in sorted(tcga.obs["cancer"].unique()):
        part = tcga[(tcga.obs["cancer"] == cancer).to_numpy()].copy()
        one = _survival(f"TCGA {cancer}", part, without=("tcga_small5_rsem",))
        one.arguments["groups"] = "patient"
        yield one
    agilent = _relative(folder, AGILENT)
    tissue = {"target": "project", "seed": range(3)}
    yield Cohort("cancer, TCGA arrays", agilent, "balanced_accuracy", tissue, relative=True)
    for cancer in sorted(agilent.obs["project"].unique()):
        part = agilent[(agilent.obs["project"] == cancer).to_numpy()].copy()
        yield _survival(f"TCGA {cancer}, arrays", part, relative=True)
    for name, files in (("ovarian", OVARIAN), ("bladder", BLADDER)):
        parts = [_relative(folder, f"{file}_survival") for file in files]
        joined = ad.concat(parts, join="outer", fill_value=np.nan, index_unique="-")
        arguments = SURVIVAL | {"groups": "study", "n_folds": len(files)}
        yield Cohort(f"survival, {name}, other study", joined, "c_index", arguments, relative=True)
    icb = _relative(folder, "ICB_8cohorts_response", "study")
    icb = icb[icb.obs["response"].isin(["R", "NR"]).to_numpy()].copy()
    icb.obs["response"] = icb.obs["response"].astype(str)
    arguments = {"target": "response", "groups": "study", "n_folds": icb.obs["study"].nunique()}
    yield Cohort("response to immunotherapy, other study", icb, "auroc", arguments, relative=True)


class Embedders:
    """The linear term and principal components, fitted to some tables of the corpus."""

    def __init__(self, tables: Collection[ad.AnnData]) -> None:
        self.genes = vocabulary(tables)
        corpus = join(tables, self.genes)
        values = np.asarray(corpus.X)
        groups = corpus.obs["group"].to_numpy()
        self.term = LocalFactorModel.fit(values, groups, n_factors=N_FACTORS)
        self.mean = np.nanmean(values, axis=0)
        n = self.term.embed(values[:1]).shape[1]
        self.pca = PCA(n, svd_solver="randomized", random_state=0)
        self.pca.fit(np.where(np.isfinite(values), values, self.mean))

    def __call__(self, adata: ad.AnnData, relative: bool) -> dict[str, np.ndarray]:
        place = adata.var_names.get_indexer(self.genes)
        values = np.where(place >= 0, np.asarray(adata.X)[:, place], np.nan).astype(np.float32)
        if relative:
            values = values + self.term.middle.numpy()
        filled = np.where(np.isfinite(values), values, self.mean)
        components = self.pca.transform(filled).astype(np.float32)
        return {OURS: self.term.embed(values), CORPUS: components}


def infections(tables: dict[str, ad.AnnData]) -> tuple[dict[str, Any], pd.DataFrame]:
    """Score infected against control samples; what embeds never saw the studies of a fold.

    All samples are embedded by the same fit in a fold, so this is no cohort of :func:`score`.
    """
    parts = []
    for table in tables.values():
        if "virus" in table.obs and "stimulus" not in table.obs:
            part = table[table.obs["condition"].isin(["infected", "control"]).to_numpy()].copy()
            part.obs = part.obs[["study", "condition"]].astype(str)
            parts.append(part)
    joined = ad.concat(parts, join="outer", fill_value=np.nan)
    both = joined.obs.groupby("study")["condition"].transform("nunique") == 2
    joined = joined[both.to_numpy()].copy()
    study = joined.obs["study"].to_numpy()
    infected = (joined.obs["condition"] == "infected").to_numpy()
    order = np.random.default_rng(0).permutation(np.unique(study))
    found: list[dict[str, Any]] = []
    for fold in range(N_FOLDS):
        scored = np.isin(study, order[fold::N_FOLDS])
        rest = [t for t in tables.values() if t.obs["study"].iloc[0] not in set(study[scored])]
        features = Embedders(rest)(joined, relative=False)
        features[OWN] = _own_components(np.asarray(joined.X), ~scored)
        for name, values in features.items():
            folds = list(GroupKFold(3).split(values[~scored], groups=study[~scored]))
            head = LogisticRegressionCV(
                Cs=np.logspace(-4, 1, 6), cv=folds, class_weight="balanced", max_iter=3000
            )
            model = make_pipeline(StandardScaler(), head)
            model.fit(values[~scored], infected[~scored])
            answer = model.decision_function(values[scored])
            for one in np.unique(study[scored]):
                rows = study[scored] == one
                auroc = roc_auc_score(infected[scored][rows], answer[rows])
                found.append({"study": one, "method": name, "auroc": auroc})
    by = pd.DataFrame(found).pivot(index="study", columns="method", values="auroc")
    name = "infected or control, other study"
    row = {"cohort": name, "samples": joined.n_obs, "score": "auroc"} | by.mean().to_dict()
    pairs = []
    for baseline in (CORPUS, OWN):
        pair = paired_bootstrap(by[OURS], by[baseline], by.index.to_numpy())
        pairs.append(
            {"cohort": name, "baseline": baseline, "difference": pair["diff"]}
            | {"low": pair["low"], "high": pair["high"]}
        )
    return row, pd.DataFrame(pairs)


def _own_components(values: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Return 50 components of the genes that nearly all measure, fitted to the training rows."""
    values = values[:, np.isfinite(values).mean(axis=0) >= 0.9]
    values = np.where(np.isfinite(values), values, np.nanmean(values[training], axis=0))
    pca = PCA(50, svd_solver="randomized", random_state=0).fit(values[training])
    return np.asarray(pca.transform(values))


def score(cohort: Cohort, embedded: dict[str, np.ndarray]) -> tuple[dict[str, Any], pd.DataFrame]:
    """Probe the embeddings of a cohort; returns its scores, and the differences of ours."""
    adata = cohort.adata.copy()
    adata.obsm.clear()
    adata.obsm.update(embedded)
    if not cohort.relative:
        cfm.tl.embed(adata, "bulkformer-mini", key_added=NETWORK, pooling="mean")
    used = list(adata.obsm)
    cfm.tl.probe(adata, use_rep=used, **({"heads": "logistic"} | cohort.arguments))
    found = adata.uns["probe"]["results"]
    found = found[found["metric"] == cohort.metric].set_index("representation")
    names = {name: name for name in used} | {"expression PCA": OWN}
    row: dict[str, Any] = {"cohort": cohort.name, "samples": adata.n_obs, "score": cohort.metric}
    row |= {label: float(found.loc[name, "score"]) for name, label in names.items()}
    pairs = adata.uns["probe"]["comparisons"]
    pairs = pairs[(pairs["metric"] == cohort.metric) & (pairs["representation"] == OURS)]
    pairs = pairs[pairs["baseline"] != "none"].replace({"baseline": {"expression PCA": OWN}})
    pairs = pairs.assign(cohort=cohort.name)
    return row, pairs[["cohort", "baseline", "difference", "low", "high"]]


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of the names of cohorts")
    args = parser.parse_args()
    settings.verbosity = 30  # no progress bars between the tables
    warnings.simplefilter("ignore", UserWarning)  # genes that a cohort lacks
    folder = data_folder(args.data)
    tables = read_tables(folder)
    embedders: dict[tuple[str, ...], Embedders] = {}
    rows, pairs = [], []

    def add(row: dict[str, Any], compared: pd.DataFrame) -> None:
        rows.append(row)
        pairs.append(compared)
        print(row, flush=True)

    for cohort in cohorts(folder, tables):
        if args.only and not cohort.name.startswith(tuple(args.only)):
            continue
        if cohort.without not in embedders:
            rest = [table for name, table in tables.items() if name not in cohort.without]
            embedders[cohort.without] = Embedders(rest)
        add(*score(cohort, embedders[cohort.without](cohort.adata, cohort.relative)))
    if not args.only or "infected" in args.only:
        add(*infections(tables))
    report = Report("beside_pca", "Bulk embeddings beside principal components")
    width = embedders[()].term.embed(embedders[()].mean[None]).shape[1] if () in embedders else 128
    report.text(
        "For each cohort, vocabulary and linear term of `bulkformer-mini` are fitted to its corpus "
        f"without the scored studies, and embed the samples in {width} numbers; as many principal "
        "components of the same corpus stand beside it, and 50 components of the cohort itself, "
        "fitted to the training part of each fold. The same heads (logistic, ridge or Cox "
        "regression), nested cross-validation; *other study*: each study in turn is predicted from "
        "the others. Microarrays are taken around the mean of each gene in their study. The "
        "network of the bundled model embeds beside them where values are TPM: it has seen the "
        "samples without labels. That 128 factors embed was chosen with these scores in sight; 64 "
        "did about as well. Random projections of what the factors leave (64 to 256 of them) were "
        "tried for tissues that the corpus lacks, as islets are here: no reliable gain."
    )
    report.table("scores", pd.DataFrame(rows), "Scores")
    report.table(
        "paired",
        pd.concat(pairs, ignore_index=True),
        f"{OURS} less the others, paired over groups (95 % bootstrap interval)",
    )
    report.finish(args.write)


if __name__ == "__main__":
    main()
