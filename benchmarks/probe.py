"""What embeddings tell about outcomes and infections, beside plain expression.

``python -m benchmarks.probe --data DATA [--write]``

Every cohort is probed by :func:`cfm.tl.probe`: nested cross-validation in which no patient or
study is ever split, the same heads on each representation, on principal components of the
expression and on nothing. A further model is a line in :data:`REPRESENTATIONS`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scvi import settings

import cfm
from benchmarks._report import Report, add_arguments, data_folder
from cfm.models import load_model
from training._count_studies import COUNT_STUDIES
from training.corpus import build_corpus, read_counts

MODEL = "cellpulse-mini"
BULK_MODEL = "bulkformer-mini"
#: Of these cohorts the bulk model knows the samples; it is not shown arrays.
BULK_STUDIES = ("REbola_USA", "GSE119117")
#: A gene takes part in the cohort of many studies if at least this share of them measures it.
_MEASURED = 0.9


@dataclass(frozen=True)
class Cohort:
    """Observations with a target.

    Attributes
    ----------
    name, title
        Key of its tables, and a heading.
    adata
        ``X`` on a log scale.
    kind
        What an observation is: ``"samples"``, ``"rescaled samples"``, those with ``"log TPM"``,
        ``"samples of many studies"`` or ``"contrasts"``; says which models read it.
    arguments
        Of :func:`cfm.tl.probe`: target, task, groups, folds.
    metrics
        The scores to report, the one that decides first.
    remark
        What a reader has to know.
    """

    name: str
    title: str
    adata: ad.AnnData
    kind: str
    arguments: dict[str, Any]
    metrics: tuple[str, ...]
    remark: str


@dataclass(frozen=True)
class Representation:
    """How a model's embedding gets into ``obsm[key]``, and which kind of observations it reads."""

    key: str
    kind: str
    write: Callable[[ad.AnnData, str], None]


def _cellpulse(adata: ad.AnnData, key: str) -> None:
    cfm.tl.embed(adata, MODEL, key_added=key)


def _centred(adata: ad.AnnData, key: str) -> None:
    """Take off the mean of each study: no model, but what most separates studies is gone."""
    x = pd.DataFrame(np.asarray(adata.X), index=adata.obs_names)
    adata.obsm[key] = (x - x.groupby(adata.obs["study"].to_numpy()).transform("mean")).to_numpy()


def _bulkformer(adata: ad.AnnData, key: str) -> None:
    cfm.tl.embed(adata, BULK_MODEL, key_added=key)


def _bulkformer_rescaled(adata: ad.AnnData, key: str) -> None:
    """Embed samples whose values are not TPM, brought to the sum that 620 of 20,000 genes have."""
    values = np.expm1(np.asarray(adata.X, dtype=np.float64))
    share = adata.n_vars / 20_000
    scaled = adata.copy()
    scaled.X = np.log1p(values / values.sum(axis=1, keepdims=True) * 1e6 * share).astype(np.float32)
    cfm.tl.embed(scaled, BULK_MODEL, key_added=key)
    adata.obsm[key] = scaled.obsm[key]


def _bulkformer_centred(adata: ad.AnnData, key: str) -> None:
    """Embed samples, and take off the mean embedding of each study."""
    cfm.tl.embed(adata, BULK_MODEL, key_added=key)
    x = pd.DataFrame(adata.obsm[key], index=adata.obs_names)
    adata.obsm[key] = (x - x.groupby(adata.obs["study"].to_numpy()).transform("mean")).to_numpy()


REPRESENTATIONS = (
    Representation("X_cellpulse", "contrasts", _cellpulse),
    Representation("X_bulkformer", "log TPM", _bulkformer),
    Representation("X_bulkformer", "rescaled samples", _bulkformer_rescaled),
    Representation("expression less study mean", "samples of many studies", _centred),
    Representation("X_bulkformer less study mean", "samples of many studies", _bulkformer_centred),
)


def kirc(folder: Path) -> Cohort:
    """Overall survival in kidney cancer."""
    table = pd.read_csv(folder / "bulk" / "tcga_kirc_survival.csv.gz").set_index("patient")
    genes = table.columns.difference(["time_days", "event"], sort=False)
    x = np.log1p(table[genes].to_numpy(np.float32))
    adata = ad.AnnData(x, obs=table[["time_days", "event"]])
    adata.var_names = genes
    return Cohort(
        "kirc",
        "Survival, TCGA kidney cancer",
        adata,
        "rescaled samples",
        {"target": ("time_days", "event"), "task": "survival", "seed": range(5)},
        ("c_index", "auroc_t", "brier_t"),
        "50 patients chosen as 25 dead and 25 alive, 620 genes; five-fold, five times. The values "
        f"are not TPM: for {BULK_MODEL}, which was trained on other cancers, they are brought to "
        "the sum that as many genes have on average.",
    )


def donors(folder: Path, file: str, title: str, keep: str, remark: str) -> Cohort:
    """Infected against control samples of one study, whose donors gave both."""
    adata = ad.read_h5ad(folder / "virus_counts" / f"{file}.h5ad")
    adata = adata[adata.obs.eval(keep, engine="python").to_numpy(bool)].copy()
    counts = adata.uns.get("units") == "counts"
    if counts:
        cfm.pp.map_genes(adata)
        cfm.pp.tpm(adata)
        adata.X = adata.layers["log_tpm"]
        seen = f" {BULK_MODEL} was pretrained on counts of this study too, without labels."
        remark += seen if file in BULK_STUDIES else ""
    return Cohort(
        file,
        title,
        adata,
        "log TPM" if counts else "samples",
        {"target": "condition", "groups": "donor"},
        ("auroc", "balanced_accuracy"),
        remark,
    )


def samples(folder: Path) -> Cohort:
    """Infected against control samples, each study in turn left out."""
    parts = []
    for study in COUNT_STUDIES:
        if study.host != "human" or study.scale != "counts":
            continue
        adata = read_counts(folder, study)
        adata = adata[adata.obs["condition"].isin(["infected", "control"])].copy()
        cfm.pp.tpm(adata)
        values = pd.DataFrame.sparse.from_spmatrix(
            adata.layers["log_tpm"], index=adata.obs_names, columns=adata.var_names
        )
        parts.append((values, adata.obs[["study", "condition"]].astype(str)))
    measured = pd.concat([pd.Series(1, index=v.columns) for v, _ in parts]).groupby(level=0).size()
    genes = measured.index[measured >= _MEASURED * len(parts)]
    x = np.vstack([v.reindex(columns=genes).to_numpy(np.float32) for v, _ in parts])
    obs = pd.concat([o for _, o in parts])
    obs.index = obs["study"] + "|" + obs.index.astype(str)
    obs = obs.assign(number=np.arange(len(obs)))[~obs.index.duplicated()]
    adata = ad.AnnData(x[obs["number"]], obs=obs[["study", "condition"]])
    adata.var_names = genes
    adata = _with_both_classes(adata, "condition")
    n = adata.obs["study"].nunique()
    return Cohort(
        "samples",
        "Infected or control sample, studies left out",
        adata,
        "samples of many studies",
        {"target": "condition", "groups": "study", "n_folds": n},
        ("auroc", "balanced_accuracy"),
        f"{adata.n_obs} samples of {n} studies with counts and both classes; each study is a fold, "
        f"so that samples are ranked within their study. {BULK_MODEL} was pretrained on most of "
        "these studies, without labels, which flatters it.",
    )


def contrasts(folder: Path) -> list[Cohort]:
    """Contrasts of infections and of controls with controls; and of several viruses."""
    corpus = build_corpus(folder, load_model(MODEL).vocabulary.genes)
    obs = corpus.obs
    human, usable = obs["host"] == "human", obs["usable"].astype(bool)
    whole = (obs["kind"] == "infection") & (obs["source"] == "counts") & obs["whole"].astype(bool)
    infected = corpus[(human & ((whole & usable) | (obs["kind"] == "null"))).to_numpy()].copy()
    infected.obs["kind"] = infected.obs["kind"].astype(str)
    infected = _with_both_classes(infected, "kind")
    n = infected.obs["study"].nunique()
    signature = human & usable & (obs["kind"] == "infection") & (obs["source"] == "signature")
    viruses = corpus[signature.to_numpy()].copy()
    counted = viruses.obs.groupby("virus", observed=True)["study"].nunique()
    viruses = viruses[viruses.obs["virus"].isin(counted.index[counted >= 2])].copy()
    seen = (
        f"{MODEL} was pretrained, without labels, on these very studies, which flatters it; "
        "`python -m benchmarks.virus` leaves them out of pretraining too."
    )
    return [
        Cohort(
            "contrasts",
            "Infection or control-against-control contrast, studies left out",
            infected,
            "contrasts",
            {"target": "kind", "groups": "study", "n_folds": n},
            ("auroc", "balanced_accuracy"),
            f"{infected.n_obs} contrasts of {n} studies with both; each study is a fold. {seen}",
        ),
        Cohort(
            "viruses",
            "Which virus, studies left out",
            viruses,
            "contrasts",
            {"target": "virus", "groups": "study", "n_folds": 4, "seed": range(5)},
            ("balanced_accuracy", "macro_f1", "auroc"),
            f"{viruses.n_obs} signatures of {viruses.obs['virus'].nunique()} viruses with at least "
            f"two studies ({viruses.obs['study'].nunique()} in all); four-fold, five times. {seen}",
        ),
    ]


def _with_both_classes(adata: ad.AnnData, column: str) -> ad.AnnData:
    """Keep the studies that have both classes: in others there is nothing to rank."""
    both = adata.obs.groupby("study", observed=True)[column].transform("nunique") == 2
    return adata[both.to_numpy()].copy()


def cohorts(folder: Path) -> list[Cohort]:
    """Read all cohorts."""
    return [
        kirc(folder),
        donors(
            folder,
            "GSE30550_h3n2_challenge",
            "Influenza challenge, symptomatic or before, donors left out",
            "clear_label",
            "Blood, 4,147 genes of a microarray; 0 h against symptomatic at 45 h and later.",
        ),
        donors(
            folder,
            "REbola_USA",
            "rVSV-ZEBOV vaccination, before or after, donors left out",
            "condition in ('infected', 'control')",
            "Blood after vaccination with a live virus, most samples days later.",
        ),
        donors(
            folder,
            "GSE119117",
            "Hepatitis C, before or during infection, donors left out",
            "condition in ('infected', 'control')",
            "Blood; early and late acute infection together.",
        ),
        samples(folder),
        *contrasts(folder),
    ]


def run(cohort: Cohort) -> ad.AnnData:
    """Embed and probe a cohort; missing genes are left to the probe, which fills them in folds."""
    adata = cohort.adata
    keys = []
    for representation in REPRESENTATIONS:
        if representation.kind == cohort.kind:
            representation.write(adata, representation.key)
            keys.append(representation.key)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is missing .NaN.", UserWarning)
        cfm.tl.probe(adata, use_rep=keys or None, **cohort.arguments)
    return adata


def report_cohort(report: Report, cohort: Cohort, adata: ad.AnnData) -> None:
    """Add the tables of a cohort."""
    record = adata.uns["probe"]
    params = record["params"]
    report.text(
        f"**{cohort.title}.** {cohort.remark} {params['n_obs']} observations, "
        f"{params['n_groups']} groups."
    )
    results = record["results"]
    rows = []
    for (name, head), part in results.groupby(["representation", "head"], sort=False):
        row: dict[str, object] = {"representation": name, "head": head}
        for metric in cohort.metrics:
            one = part[part["metric"] == metric].iloc[0]
            row[metric] = one["score"]
            if metric == cohort.metrics[0]:
                row |= {"low": one["low"], "high": one["high"]}
        rows.append(row)
    report.table(cohort.name, pd.DataFrame(rows), f"{cohort.title}: scores (95 % interval)")
    differences = record["comparisons"]
    differences = differences[
        (differences["metric"] == cohort.metrics[0]) & (differences["baseline"] == "expression PCA")
    ]
    columns = ["representation", "head", "difference", "low", "high"]
    report.table(
        f"{cohort.name}_paired",
        differences[columns].reset_index(drop=True),
        f"{cohort.title}: {cohort.metrics[0]} less that of the components of plain expression",
    )


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--only", nargs="*", help="names of cohorts")
    args = parser.parse_args()
    settings.verbosity = 30  # no progress bars between the tables
    warnings.filterwarnings("ignore", ".* have no known length", UserWarning)
    folder = data_folder(args.data)
    report = Report("probe", "Embeddings against plain expression")
    report.text(
        "Nested cross-validation, groups (patients, donors, studies) never split; the same heads "
        "on every representation; intervals from a bootstrap over groups. AUROC, C-index and "
        "time-dependent AUROC compare observations of the same fold; a smaller Brier score "
        "(`brier_t`) is better. `expression` is all genes, `expression PCA` up to 50 components "
        "fitted in the training folds, `none` the trivial predictor."
    )
    for cohort in cohorts(folder):
        if args.only is None or cohort.name in args.only:
            report_cohort(report, cohort, run(cohort))
    report.finish(args.write)


if __name__ == "__main__":
    main()
