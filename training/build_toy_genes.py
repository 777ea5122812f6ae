"""Build the gene table that the simulated data sets of `cfm.datasets` use.

Takes real symbols so that identifiers, gene sets and models work on simulated data, but no
measured effects: what is planted is invented. Reads below ``--data``

- ``host_factors/isg_list.txt``: symbols of interferon-stimulated genes (package qusage 2.32.0);
- ``networks/hallmark.gmt``: MSigDB hallmark 7.5.1 (Liberzon et al. 2015, CC BY 4.0), from which
  the members of the planted programmes and most other genes come;
- ``virus_counts/GSE147507.h5ad``: mean log2 counts per million of mock-infected cells
  (Blanco-Melo et al. 2020), for a realistic spread of abundances;

and writes ``src/cfm/datasets/files/toy_genes.tsv`` with ``symbol``, ``log2_cpm``, ``programme``
(empty, "interferon" or "virus_A" to "virus_D"), ``log2_fc`` (planted effect at full strength) and
``cell_type`` (of which it is a marker in the simulated cells). The output is the same byte for
byte in every run.

Run as ``python training/build_toy_genes.py --data DATA``.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

OUTPUT = Path(__file__).resolve().parents[1] / "src/cfm/datasets/files/toy_genes.tsv"
N_GENES = 3000
INTERFERON = ("HALLMARK_INTERFERON_ALPHA_RESPONSE", "HALLMARK_INTERFERON_GAMMA_RESPONSE")
# What each invented virus turns up (50 genes) and down (30 genes).
PROGRAMMES = {
    "virus_A": ("HALLMARK_UNFOLDED_PROTEIN_RESPONSE", "HALLMARK_OXIDATIVE_PHOSPHORYLATION"),
    "virus_B": ("HALLMARK_TNFA_SIGNALING_VIA_NFKB", "HALLMARK_CHOLESTEROL_HOMEOSTASIS"),
    "virus_C": ("HALLMARK_E2F_TARGETS", "HALLMARK_FATTY_ACID_METABOLISM"),
    "virus_D": ("HALLMARK_HYPOXIA", "HALLMARK_MYC_TARGETS_V1"),
}
N_UP, N_DOWN, N_INTERFERON = 50, 30, 80
# The strongest interferon-stimulated genes of most infections; they lead the programme.
LEADERS = ("IFI27", "IFI44L", "ISG15", "MX1", "IFIT1", "RSAD2", "IFIT2", "IFIT3", "OAS1", "CXCL10")
MARKERS = {
    "B cell": "MS4A1 CD79A CD79B CD19 BANK1 TCL1A PAX5 IGHM CD22 BLK",
    "Monocyte": "LYZ CD14 S100A8 S100A9 FCN1 VCAN CST3 TYROBP LST1 CSF1R",
    "NK cell": "NKG7 GNLY KLRD1 PRF1 GZMB NCAM1 KLRF1 FGFBP2 SPON2 KLRB1",
    "T cell": "CD3D CD3E CD3G IL7R CD2 TRAC CD5 LEF1 TCF7 CD28",
}
HOUSEKEEPING = "ACTB GAPDH B2M EEF1A1 RPLP0 TUBB HPRT1 PPIA UBC YWHAZ"


def order(symbols: set[str]) -> list[str]:
    """An arbitrary order that does not depend on the alphabet nor on the run."""
    return sorted(symbols, key=lambda symbol: hashlib.md5(symbol.encode()).hexdigest())


def build(data: Path) -> None:
    listed = set((data / "host_factors/isg_list.txt").read_text().split())
    sets = {}
    for line in (data / "networks/hallmark.gmt").read_text().splitlines():
        name, _, *members = line.split("\t")
        sets[name] = set(members)
    full = ad.read_h5ad(data / "virus_counts/GSE147507.h5ad")
    mock = full[(full.obs["virus"] == "none").to_numpy()].X.toarray()
    cpm = mock / mock.sum(axis=1, keepdims=True) * 1e6
    level = pd.Series(np.log2(cpm.mean(axis=0) + 0.25), index=full.var_names)
    current = {
        name for name, known in zip(full.var_names, full.var["in_hgnc"], strict=True) if known
    }

    alpha, gamma = (sets[name] for name in INTERFERON)
    stimulated = (listed | alpha | gamma) & current
    core = [*LEADERS, *(g for g in order(listed & alpha & current) if g not in LEADERS)]
    rest = [g for g in order(alpha & current) if g not in core]
    programme = dict.fromkeys((core + rest)[:N_INTERFERON], "interferon")
    rng = np.random.default_rng(0)
    effect = {
        g: rng.uniform(3.0, 4.5) if g in LEADERS else rng.uniform(1.2, 3.0) for g in programme
    }
    markers = {g: name for name, genes in MARKERS.items() for g in genes.split()}
    for virus, (up, down) in PROGRAMMES.items():
        for name, size, sign in ((up, N_UP, 1), (down, N_DOWN, -1)):
            free = (sets[name] & current) - stimulated - programme.keys() - markers.keys()
            # Genes that are hardly expressed cannot show an effect.
            for gene in [g for g in order(free) if level[g] > 3][:size]:
                programme[gene] = virus
                effect[gene] = sign * rng.uniform(1.0, 3.0)

    chosen = list(programme)
    fixed = listed | set(markers) | set(HOUSEKEEPING.split())
    for group in (fixed & current, set.union(*sets.values()) & current):
        chosen += [g for g in order(group) if g not in set(chosen)]
    table = pd.DataFrame({"symbol": sorted(chosen[:N_GENES])})
    table["log2_cpm"] = [f"{level[g]:.1f}" for g in table["symbol"]]
    table["programme"] = [programme.get(g, "") for g in table["symbol"]]
    table["log2_fc"] = [f"{effect[g]:.2f}" if g in effect else "0" for g in table["symbol"]]
    table["cell_type"] = [markers.get(g, "") for g in table["symbol"]]
    table.to_csv(OUTPUT, sep="\t", index=False, lineterminator="\n")
    print(f"{OUTPUT.name}: {len(table)} genes, {OUTPUT.stat().st_size / 1e3:.0f} kB")
    print(table["programme"].value_counts().to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data")
    build(parser.parse_args().data)
