"""Build the table of drug targets that `cfm.datasets.drug_targets` reads.

Reads ``networks/drugcentral_targets.csv.gz`` below ``--data`` (human targets of DrugCentral without
the rows that come from DrugBank or KEGG) and keeps a row per drug and gene: whether the gene is a
mechanism-of-action target of the drug, and the kinds of action that are stated.

Run as ``python training/build_drug_targets.py --data DATA``.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import pandas as pd

OUTPUT = Path(__file__).resolve().parents[1] / "src/cfm/datasets/files/drug_targets.tsv.gz"


def build(data: Path) -> None:
    table = pd.read_csv(data / "networks" / "drugcentral_targets.csv.gz", keep_default_na=False)
    table["moa"] = (table["moa"].astype(str).astype(float) == 1).astype(int)
    table["action"] = table["action_type"].str.lower()
    rows = table.groupby(["drug", "gene"], as_index=False).agg(
        moa=("moa", "max"), action=("action", lambda x: "|".join(sorted(set(x) - {""})))
    )
    rows = rows.sort_values(["moa", "drug", "gene"], ascending=[False, True, True])
    text = rows.to_csv(sep="\t", index=False, header=["compound", "gene", "moa", "action"])
    OUTPUT.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{OUTPUT.name}: {len(rows)} rows, {OUTPUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that has networks/")
    build(parser.parse_args().data)
