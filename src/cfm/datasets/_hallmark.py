"""Gene sets of well-defined biological states."""

from __future__ import annotations

import gzip
from importlib.resources import files


def hallmark() -> dict[str, list[str]]:
    """Hallmark gene sets of MSigDB: 50 coherent programmes such as the interferon response.

    Returns
    -------
    dict
        Genes (HGNC symbols, sorted) by name of the set, ``"HALLMARK_INTERFERON_ALPHA_RESPONSE"``
        for instance; of the form that gseapy and :func:`cfm.tl.gene_programs` take.

    Notes
    -----
    Liberzon A, Birger C, Thorvaldsdóttir H, et al. The Molecular Signatures Database hallmark gene
    set collection. Cell Syst 2015;1:417-425, doi:10.1016/j.cels.2015.12.004. MSigDB 7.5.1, CC BY
    4.0; symbols brought up to date. Written by ``training/build_hallmark.py``.

    Examples
    --------
    >>> import cfm
    >>> len(cfm.datasets.hallmark())
    50
    """
    packed = (files("cfm.datasets") / "files" / "hallmark.gmt.gz").read_bytes()
    lines = (line.split("\t") for line in gzip.decompress(packed).decode().splitlines())
    return {name: genes for name, _, *genes in lines}
