"""Build the consensus signatures that `cfm.datasets.cmap_signatures` reads.

Reads ``signed_sets/cmap_up_down.csv.gz`` and ``cmap_instances.csv.gz`` below ``--data`` (the 100
genes that rise and fall most in each instance of the Connectivity Map build 2, strongest first).
The gene at place p of a list weighs log(101 / p), a gene that is not in it 0; weights, negative
for falling genes, are averaged over the instances of a compound (cell lines and doses alike), and
the 50 genes with the largest and the 50 with the smallest mean are kept. Early places agree more
between replicates than late ones; with these weights the two halves of a compound's instances
find each other a little better than with plain votes.

Run as ``python training/build_cmap_signatures.py --data DATA``.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
import pandas as pd

OUTPUT = Path(__file__).resolve().parents[1] / "src/cfm/datasets/files/cmap_signatures.tsv.gz"
N_GENES = 50
LIST_LENGTH = 100


def consensus(folder: Path, instances: pd.Index | None = None) -> pd.DataFrame:
    """Return mean weights, compounds by genes; of some instances only, if given."""
    table = pd.read_csv(folder / "cmap_up_down.csv.gz", usecols=["instance", "direction", "gene"])
    names = pd.read_csv(folder / "cmap_instances.csv.gz").set_index("instance")["drug"]
    place = table.groupby(["instance", "direction"]).cumcount() + 1
    table["weight"] = table["direction"] * np.log((LIST_LENGTH + 1) / place)
    if instances is not None:
        names = names[names.index.isin(instances)]
        table = table[table["instance"].isin(instances)]
    table["compound"] = names.reindex(table["instance"]).to_numpy()
    total = table.pivot_table(
        index="compound", columns="gene", values="weight", aggfunc="sum", fill_value=0.0
    )
    return total.div(names.value_counts().reindex(total.index), axis=0)


def strongest(weights: pd.DataFrame, n_genes: int = N_GENES) -> dict[str, tuple[list, list]]:
    """Return the up and down genes of each compound, strongest first, ties by name."""
    genes = weights.columns.to_numpy(dtype=object)
    sides = {}
    for compound, row in zip(weights.index, weights.to_numpy(), strict=True):
        order = np.lexsort((genes.astype(str), -np.abs(row)))
        sides[str(compound)] = tuple(
            genes[order][(row[order] * sign > 0)][:n_genes].tolist() for sign in (1, -1)
        )
    return sides


def build(data: Path) -> None:
    sides = strongest(consensus(data / "signed_sets"))
    lines = [f"{name}\t{'|'.join(up)}\t{'|'.join(down)}" for name, (up, down) in sides.items()]
    text = "\n".join(["compound\tup\tdown", *lines]) + "\n"
    OUTPUT.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{OUTPUT.name}: {len(lines)} compounds, {OUTPUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that has signed_sets/")
    build(parser.parse_args().data)
