"""The knowledge graph: planted links and markers, liana's ranking, and what networks know.

``python -m benchmarks.knowledge_graph`` trains CellVQ on simulated cells (kept in ``--models``, so
that a second run only scores), and takes liana along where it is installed.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import anndata as ad
import pandas as pd
import torch
from scipy.stats import spearmanr
from scvi import settings as scvi_settings

import cfm
from benchmarks._communication import (
    LIANA,
    TRIPLE,
    UniformAttention,
    all_edges,
    coexpressed,
    gene_scores,
    has_liana,
    interval,
    known_pairs,
    liana_links,
    link_precision,
    majority,
    marker_precision,
    own_links,
    share_known,
)
from benchmarks._report import REPOSITORY, Report, add_arguments, data_folder
from cfm.models import CellVQ

MODELS = REPOSITORY / "benchmarks" / "models"
#: Seeds of the simulated cells that are scored; what the tool does was settled on seeds 0 to 5.
FIRST_SEED = 10
OURS, SCORE, P_VALUE = "cfm, weight", "cfm, score alone", "cfm, p-value alone"
ATTENTION, UNIFORM = "attention of CellVQ", "attention that is uniform"
PLAIN = "expression (default)"
N_RELATIONS = 100
TOOL = "cfm.tl._knowledge_graph._tool"


def trained(name: str, adata: ad.AnnData, folder: Path, max_steps: int, seed: int) -> CellVQ:
    """Return a CellVQ trained on the cells: from the folder, or trained and put there."""
    path = folder / f"cellvq-{name}-steps{max_steps}"
    if not path.is_dir():
        CellVQ.setup_anndata(adata)
        model = CellVQ(adata, size="mini", seed=seed)
        model.train(max_steps=max_steps, seed=seed, enable_progress_bar=False)
        model.save(path)
    return CellVQ.from_pretrained(path, device="cpu")


def score_links(
    adata: ad.AnnData, codes: str, names: dict[str, str] | None, pairs: pd.DataFrame
) -> dict[str, float]:
    """Score the rankings of links; ``names`` says which type a code stands for."""
    truth = adata.uns["truth"]["links"]
    types = adata.obs["cell_type"].cat.categories
    panel = set(adata.var_names)
    n_pairs = sum(set("_".join(p).split("_")) <= panel for p in pairs.itertuples(index=False))
    links = own_links(all_edges(adata, codes))
    rankings = {OURS: (links, links["weight"]), SCORE: (links, links["score"])}
    rankings[P_VALUE] = (links, -links["p_value"])
    if has_liana():
        theirs = liana_links(adata, codes, pairs)
        for name, (column, larger) in LIANA.items():
            rankings[name] = (theirs, theirs[column] if larger else -theirs[column])
    out = {}
    for name, (table, value) in rankings.items():
        if names is not None:
            table = table.assign(
                source=table["source"].map(names), target=table["target"].map(names)
            )
        out[name] = link_precision(truth, len(types), n_pairs, table, value.fillna(value.min()))
    return out | {"random (prevalence)": len(truth) / (len(types) ** 2 * n_pairs)}


def score_markers(adata: ad.AnnData, model: CellVQ | None) -> dict[str, float]:
    """Score what recovers planted markers, with the true types as codes."""
    out = {}
    for name, one in ((ATTENTION, model), (UNIFORM, UniformAttention())):
        if one is None:
            continue
        found = gene_scores(adata, one, "cell_type")
        out[name] = marker_precision(adata, found, "attention_lift")
        out[f"{name} + expression"] = marker_precision(adata, found, "weight")
    with mock.patch(f"{TOOL}.MIN_SHARE", 0.0):
        plain = all_edges(adata, "cell_type", communication=None)
    out[PLAIN] = marker_precision(adata, plain, "weight")
    prevalence = (adata.var["marker_of"] != "").mean() / adata.obs["cell_type"].nunique()
    return out | {"random (prevalence)": float(prevalence)}


def planted(report: Report, args: argparse.Namespace) -> None:
    """Recover planted links and markers."""
    pairs = cfm.datasets.ligand_receptor()
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
        for n_cells in (200, 600):
            adata = cfm.datasets.toy_communication(seed, n_cells=n_cells)
            for name, value in score_links(adata, "cell_type", None, pairs).items():
                rows.append(("links", f"types, {n_cells} cells", name, seed, value))
            model = None
            if n_cells == 600 and seed < FIRST_SEED + args.trained:
                model = trained(f"communication{seed}", adata, args.models, args.max_steps, seed)
            for name, value in score_markers(adata, model).items():
                rows.append(("markers", f"types, {n_cells} cells", name, seed, value))
            if model is None:
                continue
            codes = model.get_cell_codes(adata).code.astype(str)
            adata.obs["code"] = pd.Categorical(codes)
            n_codes = int((adata.obs["code"].value_counts() >= 10).sum())
            report.value(f"n_codes_{seed}", n_codes)
            if n_codes < 2:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # codes with few cells
                found = score_links(
                    adata, "code", majority(adata.obs["code"], adata.obs["cell_type"]), pairs
                )
            for name, value in found.items():
                rows.append(("links", "CellVQ codes, 600 cells", name, seed, value))
        print(f"seed {seed}", flush=True)
    table = pd.DataFrame(rows, columns=["what", "codes", "method", "seed", "auprc"])
    for what, caption in (
        ("links", "Planted ligand-receptor links, area under the precision-recall curve"),
        ("markers", "Planted markers, area under the precision-recall curve"),
    ):
        part = table[table["what"] == what].groupby(["codes", "method"], sort=False)["auprc"]
        shown = pd.DataFrame(
            [
                dict(zip(("codes", "method"), key, strict=True))
                | dict(
                    zip(("AUPRC", "low", "high"), interval(values.to_numpy()), strict=True),
                    seeds=len(values),
                )
                for key, values in part
            ]
        )
        report.table(what, shown.sort_values("codes", kind="stable"), caption)
    report.text(summary(table))


def summary(table: pd.DataFrame) -> str:
    """Say what recovers the planted links and markers."""

    def of(what: str, codes: str) -> pd.DataFrame:
        part = table[(table["what"] == what) & (table["codes"] == codes)]
        return part.pivot(index="seed", columns="method", values="auprc")

    said = []
    for codes in ("types, 200 cells", "types, 600 cells"):
        links = of("links", codes)
        theirs = links[[name for name in links if name.startswith("liana")]].mean()
        if len(theirs):
            best = theirs.idxmax()
            mean, low, high = interval((links[OURS] - links[best]).to_numpy())
            said.append(
                f"Links with {codes}: {links[OURS].mean():.2f} by our weight, {theirs[best]:.2f} "
                f"by the best of liana's ({best.removeprefix('liana, ')}, chosen afterwards); "
                f"paired difference {mean:.2f} ({low:.2f} to {high:.2f})."
            )
    markers = of("markers", "types, 600 cells")
    mean, low, high = interval((markers[PLAIN] - markers[f"{UNIFORM} + expression"]).to_numpy())
    said.append(
        f"Markers: expression by itself is ahead of its sum with attention by {mean:.3f} "
        f"({low:.3f} to {high:.3f}), which is why it is the default."
    )
    if ATTENTION in markers:
        both = markers[[ATTENTION, UNIFORM]].dropna()
        pairs = ", ".join(f"{a:.3f} and {u:.3f}" for a, u in both.to_numpy())
        said.append(
            "Attention of a trained model and uniform attention on the same cells: "
            f"{pairs}. What is called importance by attention is which cells express a gene."
        )
    return " ".join(said)


def real_links(report: Report, adata: ad.AnnData) -> None:
    """Compare rankings of the links between cell types of blood."""
    if not has_liana():
        report.text("liana is not installed: no comparison with it.")
        return
    pairs = cfm.datasets.ligand_receptor()
    ours = own_links(all_edges(adata, "cell_type"))
    both = ours.merge(liana_links(adata, "cell_type", pairs), on=TRIPLE)
    rows = []
    for name, (column, larger) in LIANA.items():
        theirs = both[column] if larger else -both[column]
        row: dict[str, Any] = {"liana's ranking": name.removeprefix("liana, ")}
        for mine, values in (("weight", both["weight"]), ("score", both["score"])):
            row[f"Spearman with our {mine}"] = float(spearmanr(values, theirs).statistic)
        top = [set(v.sort_values(ascending=False).index[:50]) for v in (both["weight"], theirs)]
        row["top 50 shared"] = len(top[0] & top[1]) / 50
        rows.append(row)
    report.text(
        f"Kang 2018, five cell types, the bundled pairs: {len(ours)} links pass our filter of "
        f"expressing cells, {len(both)} of them liana's too. By chance "
        f"{50 / len(both):.2f} of the 50 first would be shared."
    )
    report.table("agreement", pd.DataFrame(rows), "Agreement with liana on Kang 2018")


def relations(report: Report, adata: ad.AnnData, folder: Path, args: argparse.Namespace) -> None:
    """Ask networks about pairs of genes."""
    if args.model in cfm.hub.list_checkpoints().index:
        model = CellVQ.from_pretrained(args.model, device="cpu")
        seen = " (which has seen these cells)" if args.model == "cellvq-mini" else ""
        name = args.model + seen
    else:
        model = trained("kang", adata, args.models, args.max_steps, 0)
        name = f"CellVQ trained on these cells for {args.max_steps} steps"
    networks = {
        "tf": pd.read_csv(folder / "networks" / "dorothea_ABC.csv.gz").rename(
            columns={"tf": "source"}
        ),
        "protein": pd.read_csv(folder / "networks" / "reactome_fi.csv.gz"),
    }
    columns = {"tf": ("source", "target"), "protein": ("gene1", "gene2")}
    settings = {"codes": "cell_type", "communication": None, "knowledge": networks, "copy": True}
    untrained = CellVQ(vocabulary=model.vocabulary.genes.tolist(), size="mini")
    untrained.module.eval()
    found, records = {}, {}
    for who, one in (("attention", model), ("untrained model", untrained)):
        with mock.patch(f"{TOOL}.N_RELATIONS", N_RELATIONS):
            made = cfm.tl.knowledge_graph(adata, one, **settings)
        records[who] = made.uns["knowledge_graph"]["params"]["support"]
        edges = made.uns["knowledge_graph"]["edges"]
        edges = edges[edges["kind"] == "relation"]
        found[who] = pd.DataFrame(
            {
                "code": edges["code"].str.removeprefix("code:"),
                "a": edges["source"].str.removeprefix("gene:"),
                "b": edges["target"].str.removeprefix("gene:"),
            }
        )
    per_code = found["attention"]["code"].value_counts().to_dict()
    other = coexpressed(adata, "cell_type", per_code, min_share=0.1)
    rows = []
    for key, label in (("tf", "DoRothEA A-C"), ("protein", "Reactome FI")):
        known = known_pairs(networks[key], columns[key])
        test, blind = (records[who][key] for who in found)
        rows.append(
            {
                "network": label,
                "attention": share_known(found["attention"], known),
                "untrained model": share_known(found["untrained model"], known),
                "co-expression": share_known(other, known),
                "like expression": test["expected"] / test["n_edges"],
                "p (attention)": test["p_value"],
                "p (untrained)": blind["p_value"],
                "pairs": test["n_edges"],
            }
        )
    report.text(
        f"Relations between genes in the five cell types of Kang 2018, attention of {name}, "
        f"{N_RELATIONS} pairs per type: the share that a network knows, beside as many pairs of "
        "the largest correlation of log expression among the same genes, the attention of a model "
        "with random weights, and pairs of permuted genes of like expression, on which the "
        "p-values rest. Without regard to expression genes that many cells express would look "
        "supported: networks know more of them."
    )
    report.table("relations", pd.DataFrame(rows), "Pairs of genes known to networks", 4)


def introduction(args: argparse.Namespace) -> str:
    """Say what is measured, and how."""
    theirs = "beside liana" if has_liana() else "liana is not installed, so without it"
    return (
        f"Cells of `toy_communication`, {args.seeds} seeds that were not used for any choice, "
        f"{theirs}. Links are ranked among all pairs of types and all measured pairs of genes. "
        "CellVQ codes are those of a model trained on the same cells without labels, which are "
        "clusters of these cells; a code stands for its most frequent type, and a link of two "
        "types is the best of their codes. "
        "Eight of the pairs that are no links are on in every type, which a ranking by magnitude "
        "puts first by design. Markers are all genes raised in one type. Uniform attention looks "
        "at every expressed gene alike, so what the attention of a model adds is its distance from "
        "that."
    )


def main() -> None:
    """Run all parts and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--models", type=Path, default=MODELS, help="where models are kept")
    parser.add_argument("--model", default="cellvq-mini", help="checkpoint for real cells")
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=8, help="simulated data sets")
    parser.add_argument("--trained", type=int, default=2, help="of them with a trained model")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi_settings.verbosity = logging.ERROR
    torch.set_num_threads(1)
    folder = data_folder(args.data)
    kang = ad.read_h5ad(folder / "single_cell" / "kang_ifnb_muscat.h5ad")
    kang.obs_names_make_unique()
    report = Report("knowledge_graph", "Knowledge graph")
    report.text(introduction(args))
    planted(report, args)
    real_links(report, kang)
    relations(report, kang, folder, args)
    report.finish(args.write)


if __name__ == "__main__":
    main()
