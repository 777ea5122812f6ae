"""Perturbed cells that were held out, by baselines, latent arithmetic and our models.

``python -m benchmarks.perturbation --data DATA [--only interferon patients] [--write]``

About 15 minutes of one core, most of it for scGen; scVI and the network of Lingshu-Cell, which take
as long each, run if ``--methods`` names them. Simulated cells are kept in ``--cells``, so that a
second run only scores. The published scGen needs an environment of its own, whose interpreter is
given by ``--scgen-python``.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scvi import settings

import cfm
from benchmarks import _perturbation_tasks as tasks
from benchmarks._lingshu_recipe import GROUPS, PERTURBED
from benchmarks._perturbation_intervals import METRICS, Bootstrap
from benchmarks._perturbation_rivals import (
    BASELINES,
    COUNT_MODEL,
    METHODS,
    N_DRAWN,
    VARIANTS,
    published_scgen,
)
from benchmarks._perturbation_tasks import Task
from benchmarks._report import REPOSITORY, Report, add_arguments, data_folder
from benchmarks._scvi_cells import SCVI_STEPS

CELLS = REPOSITORY / "benchmarks" / "models" / "perturbation"
SCGEN = "scGen"
CEILING = "ceiling"
SETTINGS: dict[str, Callable[[Path], Iterator[Task]]] = {
    "interferon": tasks.cell_types,
    "patients": tasks.patients,
    "targets": tasks.targets,
    "halves": tasks.halves,
}
TITLES = {
    "interferon": "Interferon response of a cell type that was never seen stimulated",
    "patients": "Panobinostat in slices of a patient who was never seen treated",
    "targets": "Knock-outs of targets that were never seen",
    "halves": "Knock-outs that were seen, judged by other cells",
}
_APART = (
    "Half of these controls are held out too, and what the effect is measured against (means over "
    f"{tasks.N_DRAWS} random halves, each with a seed of its own)."
)
REMARKS = {
    "interferon": f"Kang 2018: stimulated cells of four types are seen, of the fifth its controls. "
    f"{_APART} The count model was designed with these scores in sight, the other methods were not "
    "tuned on them. `Lingshu-Cell, prior genes` is the same network, given the genes that respond "
    "in the other types at the counts they have there: it loses to the network without, to the "
    "count model and to the mean shift.",
    "patients": "Zhao 2021, 300 genes, 500 cells of each slice without labels: treated slices of "
    f"four patients are seen, of the fifth the control. {_APART} Which predictors the count model "
    "averages was settled with these scores in sight.",
    "targets": f"Papalexi 2021, at most {tasks.MOST_CELLS} cells of each of 25 targets, held out "
    f"in {tasks.N_FOLDS} folds; targets are described by random walks in the Reactome functional "
    "interaction network, the same features for all methods that take any. Half of the controls "
    "are held out as well and what effects are measured against. That measured effects are shrunk "
    "was settled with these scores in sight.",
    "halves": "Papalexi 2021: half of the cells of each target and of the controls train, the "
    "other half judges. The effect in the first half is what all baselines say.",
}
#: What takes seconds a task, and is all that is run in some settings.
QUICK = (*BASELINES, COUNT_MODEL)
ONLY = dict.fromkeys(("targets", "halves"), QUICK)
#: What takes a minute or two of one core a task: on the first of the draws.
SLOW = (SCGEN, "scGen-style", "scVI arithmetic", *PERTURBED)
#: Metrics of the predicted mean.
OF_MEANS = ("delta_pearson", "direction_accuracy", "discrimination_score")
#: A target of the screen has an effect that can be predicted if its halves agree this well.
CLEAR = 0.5


def cells_of(
    name: str, setting: str, task: Task, folder: Path, seed: int, scgen: str | None
) -> ad.AnnData:
    """Return simulated cells, log expression, kept in the folder."""
    path = _path(folder, setting, task, name, seed)
    if not path.is_file():
        method = published_scgen(str(scgen)) if name == SCGEN else METHODS[name]
        start = time.perf_counter()
        made = method(task, task.seed + seed)
        made.uns["seconds"] = time.perf_counter() - start
        folder.mkdir(parents=True, exist_ok=True)
        made.write_h5ad(path, compression="gzip")
    return ad.read_h5ad(path)


def _path(folder: Path, setting: str, task: Task, name: str, seed: int) -> Path:
    words = f"{setting}-{task.name}-{name}-seed{seed}"
    return folder / f"{''.join(c if c.isalnum() else '_' for c in words)}.h5ad"


def score(task: Task, cells: dict[str, ad.AnnData]) -> pd.DataFrame:
    """Judge all methods by the test cells of a task: cells, and the predicted means."""
    keys = ["group", "perturbation", "metric", "method"]
    drawn = _evaluate(task, cells).set_index(keys)
    stated = {name: _shifted(task, one) for name, one in cells.items() if "effects" in one.uns}
    if stated:
        told = _evaluate(task, stated).set_index(keys)
        own = told.index.get_level_values("metric").isin(OF_MEANS)
        own &= told.index.get_level_values("method").isin(list(stated))
        drawn.loc[told.index[own], "value"] = told.loc[own, "value"]
    return drawn.reset_index()


def _shifted(task: Task, cells: ad.AnnData) -> ad.AnnData:
    """Return controls that are moved by exactly the mean that a method predicts."""
    out = cells.copy()
    rows = task.real.obs_names.get_indexer(cells.obs["simulated_from"].astype(str))
    shifts = np.stack([cells.uns["effects"][p] for p in cells.obs[task.key].astype(str)])
    out.X = np.asarray(task.real.X)[rows] + shifts
    return out


def _evaluate(task: Task, cells: dict[str, ad.AnnData]) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*left out", UserWarning)
        return cfm.tl.evaluate_perturbation(
            task.real,
            cells,
            key=task.key,
            control=task.control,
            groupby=task.groupby,
            split_key="split",
            units="log",
            baselines=("ceiling",),
        )


def run(
    setting: str, folder: Path, names: list[str], args: argparse.Namespace
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate and score all tasks of a setting; return scores, and bootstrapped ones."""
    parts, boots = [], []
    todo = list(SETTINGS[setting](folder))
    apart = {task.seed for task in todo}  # where tasks have seeds, each is run once
    seeds = {name: 1 if name in BASELINES or len(apart) > 1 else args.seeds for name in names}
    if args.kept:
        names = [
            name
            for name in names
            if name in BASELINES
            or all(
                _path(args.cells, setting, task, name, seed).is_file()
                for task in todo
                if not (task.seed and name in SLOW)
                for seed in range(seeds[name])
            )
        ]
    names = [n for n in names if n in ONLY.get(setting, names)]
    for task in todo:
        made: dict[str, list[ad.AnnData]] = {}
        for name in names:
            if task.seed and name in SLOW:
                continue
            made[name] = [
                cells_of(name, setting, task, args.cells, seed, args.scgen_python)
                for seed in range(seeds[name])
            ]
            seconds = [round(m.uns["seconds"]) for m in made[name]]
            print(f"{setting} {task.name}: {name} {seconds} s", flush=True)
        flat = {f"{name}|{s}": one for name, runs in made.items() for s, one in enumerate(runs)}
        result = score(task, flat)
        result[["method", "seed"]] = [(*m.split("|"), "0")[:2] for m in result["method"]]
        result.insert(0, "task", task.name)
        held_out = _held_out(task)
        result["unit"] = held_out or result["perturbation"]
        parts.append(result)
        bootstrap = Bootstrap(task, made, args.n_boot)
        for perturbation in task.asked:
            unit = held_out or perturbation
            for metric, scores in bootstrap.scores(perturbation).items():
                for name, values in scores.items():
                    boots.append({"unit": unit, "metric": metric, "method": name, "value": values})
        shown = result[result["metric"].isin(METRICS)]
        print(shown.pivot_table(index="method", columns=["metric"], values="value").round(3))
    values = pd.DataFrame(boots).groupby(["unit", "metric", "method"])["value"]
    return pd.concat(parts), values.apply(lambda v: np.mean(list(v), axis=0)).reset_index()


def _held_out(task: Task) -> str | None:
    """Return the cell type or the patient that is held out, if one is."""
    return task.group if task.groupby in GROUPS else None


def differences(
    boots: pd.DataFrame, ours: str, rivals: list[str], units: list[str]
) -> pd.DataFrame:
    """Compare a method with the best rival: by unit over cells, together over both.

    For the mean over units these are drawn again too, and the cells within them.
    """
    rng = np.random.default_rng(0)
    rows = []
    for metric in METRICS:
        part = boots[(boots["metric"] == metric) & boots["unit"].isin(units)]
        table = part.pivot(index="unit", columns="method", values="value").loc[units]
        first = table.map(lambda v: v[0]).mean()[rivals]
        best = first.idxmax() if metric == "delta_pearson" else first.idxmin()
        each = np.stack([np.stack(table[ours]), np.stack(table[best])]).astype(float)
        difference = each[0] - each[1]
        for i, unit in enumerate(units):
            low, high = np.quantile(difference[i, 1:], [0.025, 0.975])
            rows.append((metric, ours, unit, best, difference[i, 0], low, high))
        n = difference.shape[1] - 1
        drawn = rng.integers(len(units), size=(n, len(units)))
        means = difference[drawn, 1 + np.arange(n)[:, None]].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        rows.append((metric, ours, "mean", best, difference[:, 0].mean(), low, high))
    columns = ["metric", "method", "held out", "best rival", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def wide(result: pd.DataFrame, metric: str, order: list[str]) -> pd.DataFrame:
    """Return methods by what was held out, and their mean."""
    part = result[result["metric"] == metric]
    table = part.pivot_table(index="method", columns="unit", values="value", aggfunc="mean")
    table["mean"] = table.mean(axis=1)
    return table.loc[[m for m in order if m in table.index]].reset_index()


def summary(result: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """Return methods by metrics, means over units and seeds."""
    table = result.pivot_table(index="method", columns="metric", values="value", sort=False)
    return table.loc[[m for m in order if m in table.index]].reset_index()


def report_setting(
    report: Report, setting: str, result: pd.DataFrame, boots: pd.DataFrame, names: list[str]
) -> None:
    """Add the tables of a setting."""
    order = [*names, CEILING]
    units = sorted(result["unit"].unique())
    title = TITLES[setting]
    report.text(f"**{title}.** {REMARKS[setting]}")
    columns = ["unit", "method", "metric"]
    means = result.groupby(columns, sort=False)["value"].mean().unstack("metric").reset_index()
    report.value(f"{setting}_all", json.loads(means.to_json(orient="records", double_precision=5)))
    whole = setting in ("interferon", "patients")
    if whole:
        for metric in METRICS:
            table = wide(result, metric, order)
            report.table(f"{setting}_{metric}", table, f"{title}: {metric}")
    else:
        ceiling = result[(result["method"] == CEILING) & (result["metric"] == "delta_pearson")]
        clear = sorted(ceiling.loc[ceiling["value"] >= CLEAR, "unit"])
        report.text(
            f"Halves of the cells agree to a delta-Pearson of at least {CLEAR} for "
            f"{len(clear)} of {len(units)} targets: {', '.join(clear)}."
        )
        shown = result[result["unit"].isin(clear)]
        report.table(f"{setting}_clear", summary(shown, order), f"{title}: means, these targets")
        units = clear
    report.table(setting, summary(result, order), f"{title}: means over all")
    names = [m for m in names if m in set(result["method"])]
    rivals = [m for m in names if m not in VARIANTS]
    paired = [differences(boots, ours, rivals, units) for ours in VARIANTS if ours in names]
    if not paired or not units:
        return
    both = pd.concat(paired)
    report.value(f"{setting}_paired_all", both.to_dict("records"))
    shown = both[(both["held out"] == "mean") | (both["method"] == paired[0]["method"].iloc[0])]
    if not whole:
        shown = both[both["held out"] == "mean"]
    report.table(
        f"{setting}_paired",
        shown.reset_index(drop=True),
        f"{title}: our models less the other method that is best on the mean (95 % bootstrap "
        "interval over observed cells, for the mean over what was held out too; less e_distance is "
        "better)",
    )


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), help="settings")
    parser.add_argument("--methods", nargs="*", choices=[*METHODS, SCGEN], help="methods")
    parser.add_argument("--cells", type=Path, default=CELLS, help="where simulated cells are kept")
    parser.add_argument("--seeds", type=int, default=2, help="where tasks have none")
    parser.add_argument("--kept", action="store_true", help="train nothing: only cells kept")
    parser.add_argument("--n-boot", type=int, default=1000)
    parser.add_argument("--scgen-python", help="interpreter of an environment with scgen 2.1.0")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings.verbosity = 30  # no progress bars between the tables
    folder = data_folder(args.data)
    names = args.methods or [*QUICK, SCGEN if args.scgen_python else "scGen-style"]
    report = Report("perturbation", "Perturbed cells that were held out")
    report.text(
        "Every method sees the training cells of a split alone and starts from its controls; "
        "`cfm.tl.evaluate_perturbation` judges all by the held-out cells. `delta_pearson`: "
        "correlation over genes of the observed and the predicted change of mean log1p counts per "
        "10,000; `e_distance`: energy distance (unbiased, Euclidean) in 50 principal components of "
        "the real cells; `mmd`: squared, five Gaussian kernels; `direction_accuracy`: of the 50 "
        "genes that change most; `discrimination_score`: whether a prediction is nearer to its own "
        "perturbation than to the others. `ceiling`: random halves of the observed cells against "
        "each other, so from half as many cells as judge the methods, which can lie above it. "
        "Baselines shift log expression, which keeps means; as counts they score lower. "
        "Correlation, direction and discrimination are those of the predicted mean: of "
        f"`predict_effects` for the count model, of {N_DRAWN} draws for scVI, of the cells for the "
        "others; distances are those of cells, one from each control. Where tasks have no seed of "
        f"their own, `--seeds {args.seeds}`. Latent arithmetic and networks are trained on the "
        f"first draw, scVI and scGen for at most {SCVI_STEPS:,} steps, the network of "
        f"Lingshu-Cell, beside its count model, for {PERTURBED['Lingshu-Cell'].steps}. "
        "Methods that are missing from a table cannot answer there, or were not run."
    )
    for setting in args.only or list(SETTINGS):
        result, boots = run(setting, folder, names, args)
        report_setting(report, setting, result, boots, names)
    report.finish(args.write)


if __name__ == "__main__":
    main()
