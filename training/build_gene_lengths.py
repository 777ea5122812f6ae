"""Build the packaged table of gene lengths from the one that BulkFormer is distributed with.

Reads ``bulk/gene_length.csv.gz`` below ``--data`` (KangBoming/BulkFormer, MIT licence: Ensembl
gene id, symbol, length in base pairs). Writes ``src/cfm/data/tables/gene_lengths.tsv.gz``, a line
per human Ensembl gene id in rising order:

``step`` (the number of the ENSG id less that of the line before: small numbers compress better),
``length`` (base pairs), ``symbol`` (only where ``human_genes.tsv.gz`` names another).

The output is the same byte for byte in every run.

Run as ``python training/build_gene_lengths.py --data DATA``.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
import pandas as pd

from cfm.data import map_identifiers

TABLE = Path(__file__).resolve().parents[1] / "src/cfm/data/tables/gene_lengths.tsv.gz"


def build(lengths: pd.DataFrame) -> pd.DataFrame:
    """Return the table (step, length, symbol) described in the module docstring."""
    number = lengths["ensembl_id"].str.removeprefix("ENSG").astype(int)
    lengths = lengths.assign(number=number).sort_values("number", kind="stable")
    by_id = map_identifiers(lengths["ensembl_id"], organism="human").symbol
    is_named = (lengths["symbol"] != lengths["ensembl_id"]).to_numpy()
    by_name = map_identifiers(np.where(is_named, lengths["symbol"], ""), organism="human").symbol
    return pd.DataFrame(
        {
            "step": np.diff(lengths["number"], prepend=0),
            "length": lengths["length"].to_numpy(),
            "symbol": np.where(by_name == by_id, "", by_name),
        }
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with bulk/")
    parser.add_argument("--output", type=Path, default=TABLE)
    arguments = parser.parse_args()
    source = arguments.data / "bulk" / "gene_length.csv.gz"
    table = build(pd.read_csv(source, keep_default_na=False))
    text = table.to_csv(sep="\t", index=False, lineterminator="\n")
    # mtime=0: the same table gives the same file
    arguments.output.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{len(table)} genes -> {arguments.output} ({arguments.output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
