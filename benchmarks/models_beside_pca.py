"""The page *Models beside PCA*: bundled models beside the best simple method of each task.

``python -m benchmarks.models_beside_pca`` prints the table from the numbers in
``benchmarks/results``; ``--write`` puts it into ``docs/guide/models_beside_pca.md``. It computes
nothing anew.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from benchmarks._perturbation_tasks import N_DRAWS
from benchmarks._report import REPOSITORY, print_or_write
from benchmarks.costs import TRAINING, USE
from benchmarks.pseudo_donors import AGAIN, LESS, NOTHING, OTHER, OURS, SAME, SEEN
from benchmarks.trust import results

PAGE = REPOSITORY / "docs" / "guide" / "models_beside_pca.md"
#: Width of an interval, in decimals.
_DIGITS = 3
#: The share of hidden genes whose rows are shown.
_HIDDEN = 0.15


#: Of models without a random part.
_NO_SEED = "no seed"


def row(
    model: str, task: str, rival: str, ours: float, pair: dict[str, Any], again: str = _NO_SEED
) -> dict[str, Any]:
    """Return a row: our score, the difference to the rival with its interval, and who is ahead.

    ``again`` says what a second seed gives.
    """
    low, high = pair["low"], pair["high"]
    verdict = "ahead" if low > 0 else "**behind**" if high < 0 else "level"
    return {
        "model": model,
        "left out": task,
        "ours": f"{ours:.{_DIGITS}f}",
        "second seed": again,
        "best beside it": rival,
        "difference": f"{pair['difference']:+.{_DIGITS}f} ({low:.{_DIGITS}f} – {high:.{_DIGITS}f})",
        "result": verdict,
    }


def embeddings() -> list[dict[str, Any]]:
    """Rows of the embedding of bulk samples: the stronger of both kinds of components."""
    found = results("beside_pca")
    out = []
    for scores in found["scores"]:
        pairs = [
            p
            for p in found["paired"]
            if p["cohort"] == scores["cohort"] and p["baseline"].startswith("PCA")
        ]
        pair = min(pairs, key=lambda p: p["difference"])
        task = f"{scores['cohort']} ({scores['score']})"
        out.append(
            row(
                "`bulkformer-mini`, `embed`",
                task,
                pair["baseline"],
                scores["BulkFormer mini"],
                pair,
            )
        )
    return out


def imputations() -> list[dict[str, Any]]:
    """Rows of imputation."""
    found = results("imputation")
    ours = {r["data"]: r["centred"] for r in found["scores"] if r["method"] == "BulkFormer mini"}
    return [
        row(
            "`bulkformer-mini`, `impute`",
            f"{pair['data']} (centred correlation)",
            pair["best baseline"],
            ours[pair["data"]],
            pair | {"difference": pair["diff"]},
        )
        for pair in found["paired"]
        if pair["hidden"] == _HIDDEN
    ]


def codes() -> list[dict[str, Any]]:
    """Rows of codes of cells beside k-means on principal components with as many groups."""
    asked = {
        ("Zheng 2017", "cellvq-mini (bundled)"): "types of another laboratory",
        ("donor 107", "donor 101, without labels"): "types of donor 107, codes of donor 101",
        ("donor 101", "donor 107, without labels"): "types of donor 101, codes of donor 107",
    }
    out = []
    pairs = results("cell_codes")["paired"]
    for found in pairs:
        key = (found["cells"], found["model"])
        task = asked.get(key)
        if task is None or found["seed"]:
            continue
        second = [p for p in pairs if (p["cells"], p["model"]) == key and p["seed"] == 1]
        for score in ("NMI", "ARI"):
            again = [f"{p[f'{score} of codes']:.{_DIGITS}f}" for p in second]
            pair = {part: found[f"{score} {part}"] for part in ("difference", "low", "high")}
            out.append(
                row(
                    "`cellvq-mini`, `cell_codes`",
                    f"{task} ({score})",
                    "k-means, as many groups",
                    found[f"{score} of codes"],
                    pair,
                    *(again or ["one model"]),
                )
            )
    return out


def donors() -> list[dict[str, Any]]:
    """Rows of donors: moments and network, as `pulsar-mini` returns them."""
    means = results("pseudo_donors")["means"]
    out = []
    for seen, where in ((SAME, "known laboratory"), (OTHER, "new laboratory")):
        ours = next(m["AUROC"] for m in means if (m["method"], m[SEEN]) == (OURS, seen))
        key = f"{LESS} {seen}"
        rivals = [m for m in means if m.get(key) is not None and m[SEEN] in (seen, NOTHING)]
        rivals = [m for m in rivals if "PULSAR" not in m["method"]]
        rival = min(rivals, key=lambda m: m[key])
        pair = {
            "difference": rival[key],
            "low": rival[f"low, {seen}"],
            "high": rival[f"high, {seen}"],
        }
        again = next(m["AUROC"] for m in means if (m["method"], m[SEEN]) == (AGAIN, seen))
        out.append(
            row(
                "`pulsar-mini`, `embed_donors`",
                f"pseudo-donors, {where} (mean AUROC)",
                rival["method"],
                ours,
                pair,
                f"{again:.{_DIGITS}f}",
            )
        )
    return out


def perturbations() -> list[dict[str, Any]]:
    """Rows of the count model: means over what was held out."""
    found = results("perturbation")
    tasks = {
        "interferon": "interferon, a cell type",
        "patients": "panobinostat, a patient",
        "targets": "Papalexi, a gene with a clear effect",
    }
    out = []
    for name, task in tasks.items():
        (pair,) = (
            p
            for p in found[f"{name}_paired"]
            if (p["method"], p["metric"], p["held out"]) == ("Count model", "delta_pearson", "mean")
        )
        scores = found["targets_clear" if name == "targets" else name]
        ours = next(s["delta_pearson"] for s in scores if s["method"] == "Count model")
        out.append(
            row(
                "count model",
                f"{task} (Δ Pearson)",
                pair["best rival"],
                ours,
                pair,
                f"mean of {N_DRAWS}",
            )
        )
    return out


def costs(rows: pd.DataFrame) -> pd.DataFrame:
    """Add what training and use cost: of the model, and of a simple method of the same task."""
    found = pd.DataFrame(results("costs")["costs"])
    pairs = {task: part[[TRAINING, USE]].to_numpy() for task, part in found.groupby("task")}
    tool = rows["model"].str.split(", ").str[-1].str.strip("`")
    tool = tool.replace("count model", "simulate_perturbation")
    for place, name in enumerate((TRAINING, USE)):
        both = [pairs[f"`tl.{key}`"][:, place] for key in tool]
        rows[name] = [f"{ours:.3g} ({simple:.2g})".replace("nan", "–") for ours, simple in both]
    return rows


def table() -> pd.DataFrame:
    """Return the whole table."""
    rows = [*embeddings(), *imputations(), *codes(), *donors(), *perturbations()]
    return costs(pd.DataFrame(rows))


if __name__ == "__main__":
    print_or_write(PAGE, "models_beside_pca", table(), __doc__ or "")
