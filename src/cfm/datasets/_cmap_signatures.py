"""What 1,309 compounds do to the expression of human cells."""

from __future__ import annotations

import gzip
from importlib.resources import files

import numpy as np
import pandas as pd


def cmap_signatures() -> pd.DataFrame:
    """Up and down genes of 1,309 compounds: a consensus of the Connectivity Map build 2.

    The 6,100 instances of the Connectivity Map (a compound against vehicle, mostly 6 hours in
    MCF7, PC3 or HL60 cells, mostly 10 µM) were joined into one signature per compound: a gene at
    place p of the 100 strongest up or down genes of an instance weighs log(101 / p), and the 50
    genes with the largest and the 50 with the smallest mean weight over all instances of the
    compound are kept.

    These signatures are noisy. Most compounds have four or five instances, replicates share few
    genes, and many compounds do little to these cells. ``docs/benchmarks.md`` (section *Drug
    screen*) shows how far they recover mechanisms.

    Returns
    -------
    pandas.DataFrame
        A row per compound and gene, strongest first: ``compound`` (name as in the Connectivity
        Map, lower case for most), ``gene`` (HGNC symbol) as str, ``direction`` (1 or −1) as int64.
        Can be given to :func:`cfm.tl.screen_drugs` as it is.

    Notes
    -----
    Lamb J, Crawford ED, Peck D, et al. The Connectivity Map: using gene-expression signatures to
    connect small molecules, genes, and disease. Science 2006;313:1929-1935,
    doi:10.1126/science.1132939. Gene lists through the R package cogena (zhilongjia/cogena,
    LGPL-3), under whose licence this table is passed on; compound names joined with
    brianlle/sirota_lab_covid_drug_repositioning. Written by
    ``training/build_cmap_signatures.py``. No model that comes with cfm has seen it in training.

    Examples
    --------
    >>> import cfm
    >>> signatures = cfm.datasets.cmap_signatures()
    >>> signatures["compound"].nunique()
    1309
    """
    packed = (files("cfm.datasets") / "files" / "cmap_signatures.tsv.gz").read_bytes()
    compounds, genes, directions = [], [], []
    for line in gzip.decompress(packed).decode().splitlines()[1:]:
        compound, up, down = line.split("\t")
        for side, direction in ((up, 1), (down, -1)):
            names = side.split("|")
            genes += names
            compounds += [compound] * len(names)
            directions += [direction] * len(names)
    return pd.DataFrame(
        {
            "compound": np.array(compounds, dtype=object),
            "gene": np.array(genes, dtype=object),
            "direction": np.array(directions, dtype=np.int64),
        }
    )
