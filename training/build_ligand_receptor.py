"""Build the table of ligand-receptor pairs that `cfm.datasets.ligand_receptor` reads.

Reads ``networks/liana_consensus.csv.gz`` below ``--data`` (the consensus resource of liana, from
OmniPath) and keeps the names of ligand and receptor, the genes of a complex joined by ``_``, a row
per pair. Previous symbols become current ones where ``networks/symbol_updates.tsv.gz`` says so, as
in the other tables.

Run as ``python training/build_ligand_receptor.py --data DATA``.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import pandas as pd

OUTPUT = Path(__file__).resolve().parents[1] / "src/cfm/datasets/files/ligand_receptor.csv.gz"


def build(data: Path) -> None:
    folder = data / "networks"
    table = pd.read_csv(folder / "liana_consensus.csv.gz", keep_default_na=False)
    updates = pd.read_csv(folder / "symbol_updates.tsv.gz", sep="\t", keep_default_na=False)
    current = dict(zip(updates.iloc[:, 0], updates.iloc[:, 1], strict=True))

    def renamed(name: str) -> str:
        return "_".join(current.get(gene.upper(), gene) for gene in name.split("_"))

    pairs = pd.DataFrame(
        {
            "ligand": table["source_genesymbol"].map(renamed),
            "receptor": table["target_genesymbol"].map(renamed),
        }
    )
    changed = int(
        (
            (pairs["ligand"] != table["source_genesymbol"])
            | (pairs["receptor"] != table["target_genesymbol"])
        ).sum()
    )
    pairs = pairs.drop_duplicates().sort_values(["ligand", "receptor"])
    text = pairs.to_csv(index=False)
    OUTPUT.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    size = OUTPUT.stat().st_size / 1e3
    print(f"{OUTPUT.name}: {len(pairs)} pairs, {changed} with a new symbol, {size:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that has networks/")
    build(parser.parse_args().data)
