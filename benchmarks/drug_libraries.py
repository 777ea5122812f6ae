"""Drugs in other libraries: the screen, evidence of targets, and what left-out compounds do.

``python -m benchmarks.drug_libraries`` (about twenty minutes on a core) measures whether the screen
finds a drug and its mechanism across cells and libraries, whether targets add to that, whether the
effect of a compound or in a cell type that was left out can be predicted, and the head of
``cfm.tl.probe_drugs`` on planted responses.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scvi import settings
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import cfm
from benchmarks._drug_data import HOST_DIRECTED, Compounds, load_compounds
from benchmarks._drug_scores import unit
from benchmarks._report import Report, add_arguments, data_folder
from benchmarks.compounds import (
    HEAD,
    RIDGE,
    UNLISTED,
    correlation,
    load_samples,
    small_model,
    with_model,
)
from cfm.metrics import auroc
from cfm.models.bulkformer._compounds import read_features
from cfm.stats._similarity import cut_to_lists
from cfm.tl._signatures import read_targets

#: Genes per side of all signatures, as in the lists of Tahoe-100M.
N_LISTED = 100
N_PERMUTATIONS = 100
#: Cell types or lines of a library that are left out in turn, the first in the alphabet.
N_CELLS = 2
TASKS = ("same drug", "mechanism")
TOOL, PLAIN = "screen_drugs", "plain cosine"
EVIDENCE = ("target_score", "proximity", "proximity_z", "action", "action_reversal")
#: Random compounds of the Connectivity Map whose signature searches for their targets.
N_QUERIES = 30


def load_libraries(data: Path) -> dict[str, ad.AnnData]:
    """Read signatures of compounds by cells: ``obs`` has ``compound`` and ``cell``."""
    blood = ad.read_h5ad(data / "perturbation" / "OP2023_pbmc_drug_rank_scores.h5ad")
    values = blood.to_df().astype(np.float32)
    names = (blood.obs["perturbation"].astype(str), blood.obs["cell_type"].astype(str))
    lists = pd.read_csv(data / "perturbation" / "tahoe_10lines_up_down.csv.gz")
    lists["weight"] = lists["direction"] * (1 + N_LISTED - lists["rank"]) / N_LISTED
    wide = lists.pivot_table(
        index=["perturbation", "cell_line"], columns="gene", values="weight", fill_value=0.0
    ).astype(np.float32)
    levels = (wide.index.get_level_values(i).astype(str) for i in (0, 1))
    return {
        "Open Problems": _library(values.to_numpy(), values.columns, *names),
        "Tahoe lists": _library(wide.to_numpy(), wide.columns, *levels),
    }


def _library(x: np.ndarray, genes: pd.Index, compound, cell) -> ad.AnnData:
    obs = pd.DataFrame({"compound": np.asarray(compound), "cell": np.asarray(cell)})
    obs["compound"] = obs["compound"].str.replace(r"\s*\([^)]*\)", "", regex=True)
    obs["compound"] = obs["compound"].str.strip().str.casefold()
    return ad.AnnData(
        x, obs=obs.set_axis(obs.index.astype(str)), var=pd.DataFrame(index=genes.astype(str))
    )


def mean_of_compounds(library: ad.AnnData) -> pd.DataFrame:
    """Return compounds by genes, the mean over cells."""
    return library.to_df().groupby(library.obs["compound"].to_numpy()).mean()


def scores(queries: pd.DataFrame, library: ad.AnnData) -> dict[str, pd.DataFrame]:
    """Score the compounds of a library as similar to each query, queries by compounds."""
    profiles = ad.AnnData(
        -queries.to_numpy(np.float32),
        obs=pd.DataFrame({"query": queries.index}, index=queries.index.astype(str)),
        var=pd.DataFrame(index=queries.columns),
    )
    listed = cut_to_lists(library.X, N_LISTED, N_LISTED)
    sets = ad.AnnData(listed, obs=library.obs, var=library.var)
    cfm.tl.screen_drugs(profiles, sets, groupby="query", model=None, n_permutations=N_PERMUTATIONS)
    found = profiles.uns["drug_screen"]["results"]
    tool = found.pivot(index="group", columns="compound", values="score").loc[queries.index]
    means = mean_of_compounds(sets)
    genes = means.columns.intersection(queries.columns)
    cosine = unit(queries[genes].to_numpy()) @ unit(means[genes].to_numpy()).T
    return {TOOL: tool, PLAIN: pd.DataFrame(cosine, queries.index, means.index)[tool.columns]}


def _found(table: pd.DataFrame, task: str) -> dict[str, float]:
    """Mean AUROC and recall among the first ten over queries with a hit and a miss."""
    same = _same(table.index, table.columns)
    hits = same if task == "same drug" else _mechanism(table.index, table.columns)
    areas, first = [], []
    for query, row in table.iterrows():
        candidates = np.ones(len(row), dtype=bool)
        if task != "same drug":
            candidates = ~same.loc[query].to_numpy()
        own, values = hits.loc[query].to_numpy()[candidates], row.to_numpy()[candidates]
        if 0 < own.sum() < len(own):
            areas.append(auroc(own, values))
            top = np.argsort(-values, kind="stable")[:10]
            first.append(own[top].sum() / min(10, own.sum()))
    if not areas:
        return {"queries": 0}
    error = np.std(areas) / np.sqrt(len(areas))
    return {"queries": len(areas), "AUROC": np.mean(areas), "±": error, "recall": np.mean(first)}


def _same(queries: pd.Index, compounds: pd.Index) -> pd.DataFrame:
    same = queries.to_numpy()[:, None] == compounds.str.casefold().to_numpy()[None]
    return pd.DataFrame(same, queries, compounds)


def _mechanism(queries: pd.Index, compounds: pd.Index) -> pd.DataFrame:
    """Whether two compounds share a target and action of DrugCentral."""
    table = cfm.datasets.drug_targets(moa_only=True)
    table = table[table["action"] != ""]
    key = table["compound"].str.casefold()
    wide = pd.crosstab(key, table["gene"] + " " + table["action"]) > 0
    a = wide.reindex(queries, fill_value=False).to_numpy(np.int64)
    b = wide.reindex(compounds.str.casefold(), fill_value=False).to_numpy(np.int64)
    return pd.DataFrame(a @ b.T > 0, queries, compounds)


def libraries(report: Report, data: Path) -> None:
    """The same drug and its mechanism, across cells and libraries."""
    loaded = load_libraries(data)
    cmap = cfm.datasets.cmap_signatures()
    value = np.where(cmap["direction"] == "up", 1.0, -1.0)
    wide = cmap.assign(value=value).pivot_table(
        index="compound", columns="gene", values="value", fill_value=0.0
    )
    names = np.asarray(wide.index)
    loaded["Connectivity Map"] = _library(
        wide.to_numpy(np.float32), wide.columns, names, np.full(len(names), "all")
    )
    rows = []
    for name, library in loaded.items():
        if name != "Connectivity Map":
            parts: dict[str, list[dict[str, float]]] = {}
            for cell in sorted(library.obs["cell"].unique())[:N_CELLS]:
                inside = (library.obs["cell"] == cell).to_numpy()
                queries = mean_of_compounds(library[inside])
                made = scores(queries, library[~inside].copy())
                for method, table in made.items():
                    for task in TASKS:
                        parts.setdefault((task, method), []).append(_found(table, task))
            for (task, method), each in parts.items():
                row = pd.DataFrame(each).mean().to_dict()
                rows.append({"task": task, "from": name, "in": "its other cells",
                             "method": method, **row})  # fmt: skip
        for other, target in loaded.items():
            if other == name or name == "Connectivity Map":
                continue
            queries = mean_of_compounds(library)
            asked = pd.Index(target.obs["compound"].unique())
            hits = _same(queries.index, asked) | _mechanism(queries.index, asked)
            for method, table in scores(queries[hits.any(axis=1)], target).items():
                for task in TASKS:
                    one = _found(table, task)
                    if one["queries"] >= 5:
                        rows.append({"task": task, "from": name, "in": other,
                                     "method": method, **one})  # fmt: skip
    table = pd.DataFrame(rows).sort_values(["task", "from", "in"], kind="stable")
    table["queries"] = table["queries"].round().astype(int)
    report.table(
        "libraries",
        table.rename(columns={"recall": "recall at 10"}),
        "Other libraries: a drug's profile finds the same drug (or others that share a target and "
        "action) in other cells and other libraries; mean AUROC over queries, standard error, and "
        "share of the hits among the first ten (of ten)",
    )
    report.text(
        "From 135 compounds in four blood cell types (Open Problems) and 109 in ten cancer lines "
        f"(Tahoe-100M), {N_LISTED} genes a side; `screen_drugs` with the profile turned round. "
        "“Its other cells” is the mean over the cells that were left out of the library."
    )


def target_evidence(report: Report, data: Path, compounds: Compounds) -> None:
    """What targets add: their place, proximity in Reactome FI, and direction of action."""
    network = pd.read_csv(data / "networks" / "reactome_fi.csv.gz")
    targets = cfm.datasets.drug_targets(moa_only=True)
    loaded = load_libraries(data)
    rng = np.random.default_rng(0)
    known = np.flatnonzero(compounds.known)
    chosen = np.sort(rng.choice(known, N_QUERIES, replace=False))
    queries = {
        "Connectivity Map": compounds.weights.iloc[chosen].set_axis(
            compounds.weights.index[chosen].str.casefold()
        )
    } | {name: mean_of_compounds(library) for name, library in loaded.items()}
    have = set(read_targets(targets)["key"])
    rows = []
    for name, profiles in queries.items():
        profiles = profiles[profiles.index.isin(have)]
        strength = profiles.abs()
        found = _annotated(-profiles, strength, targets, network)
        for column in EVIDENCE:
            wide = found.pivot(index="group", columns="compound", values=column)
            sign = -1.0 if column.startswith("proximity") else 1.0
            areas = [
                _area(sign * wide.loc[q], wide.columns.str.casefold() == q) for q in wide.index
            ]
            areas = np.array(areas)[np.isfinite(areas)]
            rows.append(
                {
                    "profiles": name, "evidence": column, "queries": len(areas),
                    "AUROC": areas.mean(), "±": areas.std() / np.sqrt(len(areas)),
                }
            )  # fmt: skip
    report.table(
        "own_targets",
        pd.DataFrame(rows),
        "Control: do the targets of a drug stand out in its own profile? AUROC of the drug among "
        "all with a mechanism in DrugCentral; the “host factors” are its strongest effects, the "
        "profile is turned round; chance 0.5",
    )
    _antivirals(report, data, targets, network)


def _annotated(
    profiles: pd.DataFrame,
    strength: pd.DataFrame,
    targets: pd.DataFrame,
    network: pd.DataFrame,
) -> pd.DataFrame:
    """Screen targets alone, and annotate; ``strength`` ranks the host factors."""
    adata = ad.AnnData(
        profiles.to_numpy(np.float32),
        obs=pd.DataFrame({"query": profiles.index}, index=profiles.index),
        var=pd.DataFrame(index=profiles.columns),
    )
    factors = strength.rename_axis(index="group", columns="gene").stack().rename("score")
    given = {"host_factors": factors.reset_index(), "n_permutations": N_PERMUTATIONS}
    cfm.tl.screen_drugs(adata, targets=targets, groupby="query", **given)
    cfm.tl.annotate_drugs(adata, targets, network, **given)
    return adata.uns["drug_screen"]["results"]


def _area(values: pd.Series, own: np.ndarray) -> float:
    known = values.notna().to_numpy()
    own = own[known]
    return auroc(own, values.to_numpy()[known]) if 0 < own.sum() < len(own) else np.nan


def _antivirals(report: Report, data: Path, targets: pd.DataFrame, network: pd.DataFrame) -> None:
    """Host-directed antivirals against hits of CRISPR screens."""
    fdr = pd.read_csv(data / "host_factors" / "crispr_screens_pos_fdr.csv.gz", index_col=0)
    screens = pd.read_csv(data / "host_factors" / "crispr_screens.csv", index_col=0)
    virus = screens["virus"].reindex(fdr.columns)
    strength = (-np.log10(fdr.clip(lower=1e-10))).T.groupby(virus.to_numpy()).mean()
    strength = strength.loc[:, ~strength.columns.duplicated()].fillna(0.0)
    found = _annotated(strength * 0.0, strength, targets, network)
    found["number of targets"] = found["n_targets"].astype(float)
    pairs = read_targets(targets)
    ends = pd.concat([network["gene1"], network["gene2"]]).value_counts()
    degree = pairs["gene"].map(ends).groupby(pairs["key"]).mean()
    found["mean degree of targets"] = found["compound"].str.casefold().map(degree)
    names = {name.casefold() for name in HOST_DIRECTED}
    own = found["compound"].str.casefold().isin(names)
    rows = []
    for column in (*EVIDENCE[:4], "number of targets", "mean degree of targets"):
        sign = -1.0 if column.startswith("proximity") or column == "action" else 1.0
        each = {
            str(group): _area(sign * part[column], own[part.index].to_numpy())
            for group, part in found.groupby("group")
        }
        n = int((own & found[column].notna()).sum() / len(each))
        rows.append({"evidence": column, "compounds": n, **each,
                     "mean": np.nanmean(list(each.values()))})  # fmt: skip
    report.table(
        "antivirals",
        pd.DataFrame(rows),
        "Compounds that stop coronaviruses in cells through the host (Dyall et al. 2014) among all "
        "with a mechanism, by evidence from the hits of CRISPR screens; AUROC by virus of the "
        "screens. `proximity` and `action` are turned round: close, and inhibiting, is first",
    )
    report.text(
        "The number and the mean degree of the targets are the baselines: they look at no virus. "
        "Direct antivirals act on viral proteins, and one has a mechanism with a human target. The "
        "flag for cationic amphiphilic compounds needs a table of pKa and log P, which is not "
        "among the data: it was not measured."
    )


def left_out(report: Report, data: Path, steps: int) -> None:
    """Effects of compounds in blood cells: a compound, or a cell type, is left out."""
    library = load_libraries(data)["Open Problems"]
    features = read_features(cfm.datasets.drug_targets())
    samples, baseline = load_samples(data, library.var_names)
    index = pd.MultiIndex.from_frame(library.obs[["compound", "cell"]])
    values = library.to_df().set_index(index)[baseline.var_names]
    names, cells = (index.get_level_values(i) for i in (0, 1))
    described = sorted(set(names) & set(features.index))
    features = features.loc[described]
    features = features.loc[:, (features > 0).sum() >= 2]
    has = names.isin(described)
    lists = cut_to_lists(values.to_numpy(), N_LISTED, N_LISTED)
    lists = pd.DataFrame(lists, index, values.columns.rename("gene"))[has]
    model = small_model(samples, 60)
    fold = dict(
        zip(described, np.random.default_rng(0).permutation(len(described)) % 5, strict=True)
    )
    of = np.array([fold.get(name, -1) for name in names])
    rows = []
    for kind, parts in (("compound", range(5)), ("cell type", sorted(set(cells)))):
        for part in parts:
            test = (of == part) if kind == "compound" else (cells == part) & has
            training = (of != part) if kind == "compound" else cells != part
            known = values[training]
            mean = known.to_numpy().mean(axis=0)
            made = {"mean": np.tile(mean, (test.sum(), 1))}
            if kind == "compound":
                of_cell = known.groupby(level=1).mean().loc[cells[test]].to_numpy()
                merged = (known - known.groupby(level=1).transform("mean")).groupby(level=0).mean()
                merged = merged[merged.index.isin(described)]
                x = features.loc[merged.index].to_numpy()
                centred = x - x.mean(axis=0)
                gram = centred @ centred.T
                weights = np.linalg.solve(
                    gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)),
                    merged.to_numpy(),
                )
                asked = features.loc[names[test]].to_numpy() - x.mean(axis=0)
                made["mean of the cell type"] = of_cell
                made["mean of the cell type + ridge on targets"] = (
                    of_cell + asked @ centred.T @ weights
                )
                inside = test[has]
                learned, _ = with_model(
                    model, baseline, lists, features, ~inside, inside, int(part), steps
                )
                for name in (HEAD, UNLISTED):
                    made[name] = learned[name].loc[names[test]].fillna(0.0).to_numpy()
            else:
                own = known.groupby(level=0).mean().reindex(names[test]).to_numpy()
                own = np.where(np.isfinite(own), own, mean)
                made["mean of the compound"] = own
                made["mean of compound and of all"] = (own + mean) / 2
            truth = values[test].to_numpy()
            for method, predicted in made.items():
                for name, y, p in zip(names[test], truth, predicted, strict=True):
                    rows.append(
                        {"left out": kind, "method": method, "compound": name,
                         "correlation": correlation(y, p),
                         "centred": correlation(y - mean, p - mean),
                         "RMSE": np.sqrt(((y - p) ** 2).mean())}
                    )  # fmt: skip
    found = pd.DataFrame(rows).groupby(["left out", "method", "compound"]).mean()
    table = found.groupby(level=[0, 1]).mean()
    table["± of centred"] = found["centred"].groupby(level=[0, 1]).sem()
    table.loc[table.index.get_level_values(1).isin([HEAD, UNLISTED]), "RMSE"] = np.nan
    report.table(
        "left_out",
        table.reset_index().sort_values(["left out", "centred"], ascending=[True, False]),
        f"Effects in blood cells (Open Problems) of {len(described)} compounds with targets in "
        "DrugCentral: a compound, or a cell type, is left out; correlation over genes, and of what "
        "differs from the mean of all training signatures",
    )
    report.text(
        f"Signed rank scores of {values.shape[1]:,} genes. The head of BulkFormer learns lists of "
        f"{N_LISTED} genes a side and has no scale, so it has no RMSE; it knows no cell type "
        "(expression of the four is not among the data)."
    )


def planted(seed: int, interaction: float) -> tuple[ad.AnnData, pd.DataFrame]:
    """Lines by drugs with effects of both, of their product (or not), and noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 200)) + 0.3 * rng.normal(size=(80, 200))
    d = rng.normal(size=(30, 10))
    line, drug = x @ rng.normal(size=200), d @ rng.normal(size=10)
    product = x @ rng.normal(size=(200, 10)) @ d.T
    y = (line / line.std())[:, None] + 2 * (drug / drug.std())[None]
    y = y + interaction * product / product.std() + rng.normal(size=y.shape)
    names = [f"drug{i}" for i in range(30)]
    adata = ad.AnnData(
        x.astype(np.float32), obs=pd.DataFrame(index=[f"line{i}" for i in range(80)])
    )
    adata.obsm["response"] = pd.DataFrame(y, index=adata.obs_names, columns=names)
    return adata, pd.DataFrame(d, index=names)


def response(report: Report) -> None:
    """The head of ``cfm.tl.probe_drugs`` on planted responses, and its transfer to cells."""
    rows = []
    for label, interaction in (("lines and drugs interact", 1.0), ("no interaction", 0.0)):
        for seed in range(3):
            adata, features = planted(seed, interaction)
            cfm.tl.probe_drugs(adata, "response", features, n_folds=4)
            found = adata.uns["probe_drugs"]["results"]
            rows.append(found.assign(planted=label)[found["representation"] != "expression"])
    keys = ["planted", "left_out", "head"]
    table = pd.concat(rows).pivot_table(index=keys, columns="metric", values="score", sort=False)
    report.table(
        "response",
        table.reset_index(),
        "Planted responses of 80 lines to 30 drugs (noise as large as each effect but that of the "
        "drug, which is twice as large): cfm.tl.probe_drugs, mean of three data sets",
    )
    each = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        weights = rng.normal(size=(1, 50)) / np.sqrt(50)
        bulk, cells = rng.normal(size=(150, 50)), rng.normal(size=(300, 50))
        y, truth = (bulk @ weights.T).ravel(), (cells @ weights.T).ravel()
        head = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 3, 9)))
        head.fit(bulk, y + rng.normal(0, 0.5, 150))
        measured = 0.5 * cells + rng.normal(0, 2, (1, 50)) + rng.normal(0, 0.5, cells.shape)
        resistant = measured + 0.5 * weights / np.linalg.norm(weights)
        aligned = [m - m.mean(axis=0) + bulk.mean(axis=0) for m in (measured, resistant)]
        for name, z in (("as measured", measured), ("means aligned", aligned[0])):
            made = head.predict(z)
            other = head.predict(resistant if name == "as measured" else aligned[1])
            each.append(
                {"cells": name, "correlation": np.corrcoef(made, truth)[0, 1],
                 "mean error": np.abs(made - truth).mean(),
                 "difference to a resistant sample": (other - made).mean()}
            )  # fmt: skip
    report.table(
        "cells",
        pd.DataFrame(each).groupby("cells", sort=False).mean().reset_index(),
        "Planted transfer of a ridge head from 150 bulk lines to 300 cells of another platform "
        "(other scale and means), mean of ten; all cells of the resistant sample are shifted by "
        "half a standard deviation along the response",
    )
    report.text(
        "Alignment of means does not change the order of cells, takes away the platform's shift, "
        "and with it any true difference between samples. No matrix of lines by drugs is among "
        "the data (`cfm.datasets.gdsc` downloads one): these are planted numbers only."
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=200, help="training steps of the head")
    arguments = parser.parse_args(argv)
    settings.verbosity = 40
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    data = data_folder(arguments.data)
    report = Report("drug_libraries", "Drugs in other libraries")
    libraries(report, data)
    target_evidence(report, data, load_compounds(data))
    left_out(report, data, arguments.steps)
    response(report)
    report.finish(arguments.write)


if __name__ == "__main__":
    main()
