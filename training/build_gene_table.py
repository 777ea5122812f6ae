"""Build the packaged gene identifier table from public mapping files.

Reads ``networks/gene_ids.tsv.gz`` (org.Hs.eg.db 3.16.0, Artistic-2.0: Entrez id, symbol, Ensembl
id, gene type and current HGNC symbol) and ``networks/symbol_updates.tsv.gz`` (HGNC: previous
symbol to current symbol, unambiguous ones only) below ``--data``. HGNC symbols that these lack
(mostly pseudogenes) are added from the ``var`` of ``virus_counts/*.h5ad``, where ``in_hgnc`` marks
them. Writes one small gzip table, ``src/cfm/data/tables/human_genes.tsv.gz``, with a line per
current symbol:

``symbol``, ``ensembl`` (numbers of its ENSG ids without prefix and leading zeros, joined by "|"),
``previous`` (other symbols that lead to it, joined by "|").

An Ensembl id that several symbols share is given to one of them, so that mapping is a function:
a named gene before a LOC placeholder, a protein-coding gene before any other type, a single gene
before a read-through gene (A1-B2 style names), then the lowest Entrez id. The output is the same
byte for byte in every run.

Run as ``python training/build_gene_table.py --data DATA``.
"""

from __future__ import annotations

import argparse
import gzip
import io
from collections import defaultdict
from pathlib import Path

import anndata as ad
import pandas as pd

TABLE = Path(__file__).resolve().parents[1] / "src/cfm/data/tables/human_genes.tsv.gz"
TYPE_RANK = {"protein-coding": 0, "ncRNA": 1, "snoRNA": 1, "snRNA": 1, "rRNA": 1, "scRNA": 1}


def read_tsv(path: Path) -> pd.DataFrame:
    """Read a TSV as plain strings (there are genes named NA-like, so nothing becomes NaN)."""
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def read_extra(folder: Path) -> dict[str, str]:
    """Return {HGNC symbol: its Ensembl ids joined by ";"} of every count file that says so."""
    extra: dict[str, str] = {}
    for path in sorted(folder.glob("*.h5ad")):
        var = ad.read_h5ad(path, backed="r").var
        if {"in_hgnc", "ensembl_id"} <= set(var.columns):
            known = var[var["in_hgnc"].astype(bool)]
            for symbol, identifiers in zip(known.index, known["ensembl_id"], strict=True):
                extra[symbol] = extra.get(symbol, "") or str(identifiers)
    return extra


def build(genes: pd.DataFrame, updates: pd.DataFrame, extra: dict[str, str]) -> pd.DataFrame:
    """Return the table (symbol, ensembl, previous) described in the module docstring."""
    genes = genes.assign(
        placeholder=genes["hgnc_symbol"].str.match(r"LOC\d+$"),
        rank=genes["gene_type"].map(TYPE_RANK).fillna(2).astype(int),
        readthrough=genes["gene_name"].str.contains("readthrough", case=False),
        entrez_number=genes["entrez"].astype(int),
    )
    order = ["ensembl_id", "placeholder", "rank", "readthrough", "entrez_number"]
    owner = genes.sort_values(order).drop_duplicates("ensembl_id")

    approved = set(genes["hgnc_symbol"]) | set(updates["hgnc_symbol"]) | set(extra)
    taken = {symbol.upper() for symbol in approved}
    ensembl: dict[str, list[int]] = defaultdict(list)
    for symbol, identifier in zip(owner["hgnc_symbol"], owner["ensembl_id"], strict=True):
        ensembl[symbol].append(int(identifier.removeprefix("ENSG")))
    owned = set(genes["ensembl_id"])
    for symbol, identifiers in extra.items():
        if symbol not in ensembl:
            for identifier in filter(None, identifiers.split(";")):
                if identifier not in owned:
                    ensembl[symbol].append(int(identifier.removeprefix("ENSG")))
                    owned.add(identifier)

    previous: dict[str, set[str]] = defaultdict(set)
    claimed: dict[str, set[str]] = defaultdict(set)
    pairs = [
        *zip(updates["previous_symbol_upper"], updates["hgnc_symbol"], strict=True),
        *zip(genes["symbol"].str.upper(), genes["hgnc_symbol"], strict=True),
    ]
    for old, current in pairs:
        if old not in taken:  # an approved symbol is never read as somebody's old name
            claimed[old].add(current)
    for old, owners in claimed.items():
        if len(owners) == 1:
            previous[owners.pop()].add(old)

    symbols = sorted(approved)
    return pd.DataFrame(
        {
            "symbol": symbols,
            "ensembl": ["|".join(map(str, sorted(ensembl[s]))) for s in symbols],
            "previous": ["|".join(sorted(previous[s])) for s in symbols],
        }
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with networks/")
    parser.add_argument("--output", type=Path, default=TABLE)
    arguments = parser.parse_args()
    networks = arguments.data / "networks"
    table = build(
        read_tsv(networks / "gene_ids.tsv.gz"),
        read_tsv(networks / "symbol_updates.tsv.gz"),
        read_extra(arguments.data / "virus_counts"),
    )
    buffer = io.StringIO()
    table.to_csv(buffer, sep="\t", index=False, lineterminator="\n")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    # mtime=0: the same table gives the same file
    arguments.output.write_bytes(gzip.compress(buffer.getvalue().encode(), 9, mtime=0))
    print(f"{len(table)} symbols -> {arguments.output} ({arguments.output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
