"""Drug response of cancer cell lines, in the files of DeepCDR."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pooch

from cfm._arguments import checks_arguments

_URL = "https://raw.githubusercontent.com/kimmo1019/DeepCDR/master/data"
_FILES = (
    "CCLE/genomic_expression_561celllines_697genes_demap_features.csv",
    "CCLE/GDSC_IC50.csv",
    "GDSC/1.Drug_listMon Jun 24 09_00_55 2019.csv",
)


@checks_arguments()
def gdsc(folder: str | Path | None = None) -> ad.AnnData:
    """Drug response of GDSC with expression of CCLE, as prepared for DeepCDR (Liu et al. 2020).

    Parameters
    ----------
    folder
        Where the files are, or downloads are kept; ``pooch.os_cache("cfm")`` if ``None``.
        **Downloads are not verified**: no checksum is known. The download itself was never run
        here; names and form of the files are those that DeepCDR's code reads.

    Returns
    -------
    AnnData, cell lines (DepMap ids) × the 697 genes that DeepCDR chose, log2(TPM + 1): too few for
    an embedding, enough for a regression. ``obsm["ln_ic50"]``: DataFrame, lines
    by drugs, ``NaN`` = not tested; ``uns["drugs"]``: ``name``, ``targets``, ``pathway`` by GDSC id.

    Examples
    --------
    >>> import cfm
    >>> lines = cfm.datasets.gdsc()  # doctest: +SKIP
    """
    root = Path(pooch.os_cache("cfm") if folder is None else folder).expanduser()
    tables = []
    for file in _FILES:
        url, path = f"{_URL}/{file.replace(' ', '%20')}", root / file
        pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent)
        tables.append(pd.read_csv(path, index_col=0))
    expression, response = tables[0], tables[1].T.rename(columns=lambda x: str(x).split(":")[-1])
    shared = expression.index.intersection(response.index)
    adata = ad.AnnData(expression.loc[shared].astype(np.float32))
    adata.obsm["ln_ic50"] = response.loc[shared].astype(np.float64)
    drugs = tables[2].rename(index=str).fillna("").astype(str)
    names = {"Name": "name", "Targets": "targets", "Target pathway": "pathway"}
    known = drugs.loc[drugs.index.intersection(response.columns), list(names)]
    adata.uns["drugs"] = known.rename(columns=names)
    return adata
