"""Build the bundled real data set that `cfm.datasets.blanco_melo` reads.

Reads ``virus_counts/GSE147507.h5ad`` below ``--data`` (raw counts of GEO series GSE147507, first
release), keeps the genes with at least ten reads in all samples together and the columns that
describe the experiment, and writes ``src/cfm/datasets/files/blanco_melo.h5ad`` as small as HDF5
allows. The content is the same in every run.

Run as ``python training/build_blanco_melo.py --data DATA``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import h5py
import numpy as np

OUTPUT = Path(__file__).resolve().parents[1] / "src/cfm/datasets/files/blanco_melo.h5ad"
COLUMNS = ["study", "series", "sample", "virus", "condition", "tissue", "time_h", "moi", "gsm"]
MIN_COUNTS = 10
CITATION = (
    "Blanco-Melo D, Nilsson-Payant BE, Liu WC, et al. Imbalanced Host Response to SARS-CoV-2 "
    "Drives Development of COVID-19. Cell 2020;181(5):1036-1045.e9. "
    "doi:10.1016/j.cell.2020.04.026"
)
LICENCE = (
    "Public deposit in NCBI GEO (GSE147507, first release). NCBI places no restrictions on the use "
    "of GEO data; submitters may claim rights, and these state no licence. Counts through "
    "BenaroyaResearch/SPresnell_GSE147507 (licence not stated), sample table "
    "through anna546stella/COVID_Hackathon (MIT)."
)


def build(source: Path) -> None:
    full = ad.read_h5ad(source)
    keep = np.asarray(full.X.sum(axis=0)).ravel() >= MIN_COUNTS
    counts = full.X[:, keep].toarray()
    small = counts.astype(np.int32)
    assert (small == counts).all(), "counts are whole numbers"
    adata = ad.AnnData(obs=full.obs[COLUMNS].copy(), var=full.var.loc[keep, []].copy())
    adata.uns = {
        "source": "NCBI GEO GSE147507, first release, series 1 to 4",
        "citation": CITATION,
        "licence": LICENCE,
        "organism": "Homo sapiens",
        "units": "counts",
        "note": f"genes with at least {MIN_COUNTS} reads in the 20 samples together; HGNC symbols",
    }
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(OUTPUT, compression="gzip", compression_opts=9)
    # One chunk and the shuffle filter halve what write_h5ad needs for X.
    with h5py.File(OUTPUT, "a") as file:
        if "X" in file:
            del file["X"]
        options = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
        ad.io.write_elem(file, "X", small, dataset_kwargs={**options, "chunks": small.shape})
    print(f"{OUTPUT.name}: {small.shape}, {OUTPUT.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that has virus_counts/")
    build(parser.parse_args().data / "virus_counts/GSE147507.h5ad")
