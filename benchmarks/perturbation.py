"""Perturbed cells that were held out, by baselines, latent arithmetic and Lingshu-Cell.

``python -m benchmarks.perturbation --data DATA [--only interferon targets halves] [--write]``

Simulated cells are kept in ``--cells``, so that a second run only scores. The published scGen needs
an environment of its own, whose interpreter is given by ``--scgen-python``.
"""

from __future__ import annotations

import argparse
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
from benchmarks._perturbation_intervals import METRICS, Bootstrap
from benchmarks._perturbation_rivals import BASELINES, METHODS, OURS, VARIANTS, published_scgen
from benchmarks._perturbation_tasks import Task
from benchmarks._report import REPOSITORY, Report, add_arguments, data_folder

CELLS = REPOSITORY / "benchmarks" / "models" / "perturbation"
SCGEN = "scGen"
CEILING = "ceiling"
SETTINGS: dict[str, Callable[[Path], Iterator[Task]]] = {
    "interferon": tasks.cell_types,
    "targets": tasks.targets,
    "halves": tasks.halves,
}
TITLES = {
    "interferon": "Interferon response of a cell type that was never seen stimulated",
    "targets": "Knock-outs of targets that were never seen",
    "halves": "Knock-outs that were seen, judged by other cells",
}
#: What cannot answer: nothing decodes a batch, nor sums to a perturbation, that was never seen.
CANNOT = {"targets": ("additive", "scVI, condition as batch", SCGEN), "halves": (SCGEN,)}
#: A target of the screen has an effect that can be predicted if its halves agree this well.
CLEAR = 0.5


def cells_of(
    name: str, setting: str, task: Task, folder: Path, seed: int, scgen: str | None
) -> ad.AnnData:
    """Return simulated cells, log expression, kept in the folder."""
    slug = "".join(c if c.isalnum() else "_" for c in f"{setting}-{task.name}-{name}-seed{seed}")
    path = folder / f"{slug}.h5ad"
    if not path.is_file():
        method = published_scgen(str(scgen)) if name == SCGEN else METHODS[name]
        start = time.perf_counter()
        made = method(task, seed)
        made.uns["seconds"] = time.perf_counter() - start
        folder.mkdir(parents=True, exist_ok=True)
        made.write_h5ad(path, compression="gzip")
    return ad.read_h5ad(path)


def score(task: Task, cells: dict[str, ad.AnnData]) -> pd.DataFrame:
    """Judge all methods by the test cells of a task."""
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
            baselines=(),
        )


def run(
    setting: str, folder: Path, names: list[str], cells: Path, seeds: int, scgen: str | None, n: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate and score all tasks of a setting; return scores, and bootstrapped ones."""
    parts, boots = [], []
    without = CANNOT.get(setting, ()) or (("scGen-style",) if SCGEN in names else ())
    names = [m for m in names if m not in without]
    for task in SETTINGS[setting](folder):
        made: dict[str, list[ad.AnnData]] = {}
        for name in names:
            n_seeds = 1 if name in BASELINES else seeds
            made[name] = [cells_of(name, setting, task, cells, s, scgen) for s in range(n_seeds)]
            seconds = [round(m.uns["seconds"]) for m in made[name]]
            print(f"{setting} {task.name}: {name} {seconds} s", flush=True)
        flat = {f"{name}|{s}": one for name, runs in made.items() for s, one in enumerate(runs)}
        result = score(task, flat)
        result[["method", "seed"]] = [(*m.split("|"), "0")[:2] for m in result["method"]]
        result.insert(0, "task", task.name)
        result["unit"] = task.name if setting == "interferon" else result["perturbation"]
        parts.append(result)
        bootstrap = Bootstrap(task, made, n)
        for perturbation in task.asked:
            for metric, scores in bootstrap.scores(perturbation).items():
                unit = task.name if setting == "interferon" else perturbation
                for name, values in scores.items():
                    boots.append({"unit": unit, "metric": metric, "method": name, "value": values})
        shown = result[result["metric"].isin(METRICS)]
        print(shown.pivot_table(index="method", columns=["metric"], values="value").round(3))
    return pd.concat(parts), pd.DataFrame(boots)


def differences(boots: pd.DataFrame, rivals: list[str], units: list[str]) -> pd.DataFrame:
    """Compare Lingshu-Cell with the best rival: by unit over cells, together over both.

    For the mean over units these are drawn again too, and the cells within them.
    """
    rng = np.random.default_rng(0)
    rows = []
    for metric in METRICS:
        part = boots[(boots["metric"] == metric) & boots["unit"].isin(units)]
        table = part.pivot(index="unit", columns="method", values="value").loc[units]
        first = table.map(lambda v: v[0]).mean()[rivals]
        best = first.idxmax() if metric == "delta_pearson" else first.idxmin()
        each = np.stack([np.stack(table[OURS]), np.stack(table[best])]).astype(float)
        difference = each[0] - each[1]
        for i, unit in enumerate(units):
            low, high = np.quantile(difference[i, 1:], [0.025, 0.975])
            rows.append((metric, unit, best, difference[i, 0], low, high))
        n = difference.shape[1] - 1
        drawn = rng.integers(len(units), size=(n, len(units)))
        means = difference[drawn, 1 + np.arange(n)[:, None]].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        rows.append((metric, "mean", best, difference[:, 0].mean(), low, high))
    columns = ["metric", "held out", "best rival", "difference", "low", "high"]
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
    report.value(f"{setting}_all", result.drop(columns="group").to_dict("records"))
    if setting == "interferon":
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
    rivals = [m for m in names if m not in VARIANTS]
    if OURS in names and units:
        paired = differences(boots, rivals, units)
        if setting != "interferon":
            report.value(f"{setting}_paired_each", paired.to_dict("records"))
            paired = paired[paired["held out"] == "mean"]
        report.table(
            f"{setting}_paired",
            paired,
            f"{title}: {OURS} less the best of the others on the mean (95 % bootstrap interval; "
            "a smaller e_distance is better)",
        )


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), help="settings")
    parser.add_argument("--methods", nargs="*", choices=[*METHODS, SCGEN], help="methods")
    parser.add_argument("--cells", type=Path, default=CELLS, help="where simulated cells are kept")
    parser.add_argument("--seeds", type=int, default=2, help="of what is trained")
    parser.add_argument("--n-boot", type=int, default=1000)
    parser.add_argument("--scgen-python", help="interpreter of an environment with scgen 2.1.0")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings.verbosity = 30  # no progress bars between the tables
    folder = data_folder(args.data)
    names = args.methods or [*METHODS, *([SCGEN] if args.scgen_python else [])]
    report = Report("perturbation", "Perturbed cells that were held out")
    report.text(
        "Every method sees the training cells of a split alone and starts from its controls; "
        ":func:`cfm.tl.evaluate_perturbation` judges all of them by the held-out cells. "
        "`delta_pearson`: correlation over genes of the observed and the predicted change of mean "
        "log1p counts per 10,000; `e_distance`: energy distance (unbiased, Euclidean) in 50 "
        "principal components of the real cells; `mmd`: squared, five Gaussian kernels; "
        "`direction_accuracy`: of the 50 genes that change most; `discrimination_score`: whether "
        "a prediction is nearer to its own perturbation than to the others. `ceiling`: random "
        "halves of the observed cells against each other, so from half as many cells as judge the "
        f"methods. What is trained was trained with {args.seeds} seeds, whose scores are averaged."
    )
    for setting in args.only or list(SETTINGS):
        result, boots = run(
            setting, folder, names, args.cells, args.seeds, args.scgen_python, args.n_boot
        )
        report_setting(report, setting, result, boots, names)
    report.finish(args.write)


if __name__ == "__main__":
    main()
