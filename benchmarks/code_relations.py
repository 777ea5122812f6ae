"""Relations between groups of cells: a learned graph attention beside ligands and receptors.

``python -m benchmarks.code_relations``. As in CellVQ-Graph, a graph transformer layer is trained on
each data set to reconstruct expression of a cell from other cells; its attention is summed by pairs
of groups. Links are planted by :func:`cfm.datasets.toy_communication`.
"""

from __future__ import annotations

import argparse
from itertools import product

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors
from torch import nn

import cfm
from benchmarks._communication import all_edges, own_links
from benchmarks._report import Report, add_arguments

#: Neighbours of a cell and components, as in the released configuration; width of the layer.
N_NEIGHBOURS, N_COMPONENTS, WIDTH, N_STEPS = 15, 50, 32, 200
GROUP, OURS = "cell_type", "ligands and receptors, strongest pair"


def attention(x: np.ndarray, partners: np.ndarray, *, seed: int, n_steps: int) -> np.ndarray:
    """Return the attention ``(n_cells, k)`` of cells to their partners, after training.

    Parameters
    ----------
    x
        ``(n_cells, n)`` scaled expression.
    partners
        ``(n_cells, k)`` int, cells that a cell may attend to, without itself.
    seed, n_steps
        Of the weights; 0 steps leave them random.
    """
    torch.manual_seed(seed)
    data, near = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(partners)
    query, key, value = (nn.Linear(x.shape[1], WIDTH) for _ in range(3))
    decoder = nn.Linear(WIDTH, x.shape[1])
    parts = nn.ModuleList([query, key, value, decoder])
    optimiser = torch.optim.AdamW(parts.parameters(), lr=5e-3)

    def weights() -> torch.Tensor:
        logits = (query(data)[:, None] * key(data)[near]).sum(-1) / WIDTH**0.5
        return logits.softmax(dim=1)

    for _ in range(n_steps):
        made = decoder((weights()[..., None] * value(data)[near]).sum(1))
        loss = (made - data).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        found: np.ndarray = weights().numpy()
    return found


def by_groups(weight: np.ndarray, partners: np.ndarray, group: np.ndarray) -> pd.DataFrame:
    """Return the mean attention that a receiver pays a sender, senders in rows, over chance."""
    senders = pd.DataFrame(
        {
            "sender": group[partners].ravel(),
            "receiver": np.repeat(group, partners.shape[1]),
            "weight": weight.ravel() * partners.shape[1],
        }
    )
    return senders.pivot_table(index="sender", columns="receiver", values="weight", aggfunc="mean")


def score(adata: ad.AnnData, seed: int, *, n_steps: int = N_STEPS) -> dict[str, float]:
    """Return the area under the precision–recall curve of planted pairs of groups, by method."""
    links = adata.uns["truth"]["links"]
    group = adata.obs[GROUP].to_numpy(dtype=str)
    pairs = list(product(sorted(set(group)), repeat=2))
    planted = set(zip(links["sender"], links["receiver"], strict=True))
    truth = np.array([pair in planted for pair in pairs])
    plain = adata.copy()
    sc.pp.normalize_total(plain, target_sum=1e4)
    sc.pp.log1p(plain)
    sc.pp.scale(plain, max_value=10)
    sc.pp.pca(plain, n_comps=N_COMPONENTS)
    near = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(plain.obsm["X_pca"])
    neighbours = near.kneighbors(return_distance=False)
    rng = np.random.default_rng(seed)
    others = rng.integers(1, len(group), neighbours.shape)
    anyone = (np.arange(len(group))[:, None] + others) % len(group)
    found = {}
    for name, partners in (("neighbours", neighbours), ("random cells", anyone)):
        for steps, trained in ((n_steps, "trained"), (0, "random weights")):
            weight = attention(plain.X, partners, seed=seed, n_steps=steps)
            table = by_groups(weight, partners, group)
            value = [table.get(b, pd.Series(dtype=float)).get(a, 0.0) for a, b in pairs]
            found[f"attention to {name}, {trained}"] = np.nan_to_num(value)
    edges = own_links(all_edges(adata, GROUP))
    strongest = edges.groupby(["source", "target"])["weight"].max()
    lowest = strongest.min()
    found[OURS] = np.array([strongest.get(pair, lowest) for pair in pairs])
    return {n: average_precision_score(truth, v) for n, v in found.items()} | {
        "random": float(truth.mean())
    }


def main() -> None:
    """Score and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, data=False)
    parser.add_argument("--repeats", type=int, default=5, help="data sets")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [score(cfm.datasets.toy_communication(seed), seed) for seed in range(args.repeats)]
    table = pd.DataFrame(rows).agg(["mean", "min", "max"]).T.rename_axis("method").reset_index()
    report = Report("code_relations", "Which groups of cells signal to which")
    report.text(
        f"{args.repeats} simulated data sets of 600 cells, five types and twelve planted links; "
        "area under the precision–recall curve of the planted (sender, receiver) among the 25 "
        f"pairs of types. Attention is that of a layer trained on the data set for {N_STEPS} steps "
        f"to reconstruct a cell from {N_NEIGHBOURS} others: its neighbours by {N_COMPONENTS} "
        "principal components, as in the released configuration of CellVQ-Graph, or random cells. "
        "Ours is the largest communication weight of `cfm.tl.knowledge_graph` between two types."
    )
    report.table("scores", table, "Area under the precision–recall curve")
    report.finish(args.write)


if __name__ == "__main__":
    main()
