"""Drug response of cancer cell lines, in the files of DeepCDR."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pooch

from cfm._arguments import checks_arguments

_FILES = (
    "CCLE/genomic_expression_561celllines_697genes_demap_features.csv",
    "CCLE/GDSC_IC50.csv",
    "GDSC/1.Drug_listMon Jun 24 09_00_55 2019.csv",
)


@checks_arguments()
def gdsc(
    folder: str | Path | None = None,
    *,
    base_url: str = "https://raw.githubusercontent.com/kimmo1019/DeepCDR/master/data",
) -> ad.AnnData:
    """Drug response of GDSC with expression of CCLE, as prepared for DeepCDR (Liu et al. 2020).

    Parameters
    ----------
    folder
        Where the files are, in ``CCLE`` and ``GDSC`` as in the repository, or where downloads are
        kept; ``pooch.os_cache("cfm")`` if ``None``. **Downloads are not verified**: the authors
        publish no checksum, and none was recorded here.
    base_url
        Address of the same layout.

    Returns
    -------
    anndata.AnnData
        Cell lines (DepMap ids) × genes, log2(TPM + 1); ``obsm["ln_ic50"]`` is a DataFrame, lines by
        drugs (``NaN`` = not tested), for :func:`cfm.tl.probe_drugs`; ``uns["drugs"]`` has ``name``,
        ``targets`` and ``pathway`` by GDSC id.

    Examples
    --------
    >>> import cfm
    >>> lines = cfm.datasets.gdsc()  # doctest: +SKIP
    >>> pathways = lines.uns["drugs"]["pathway"].str.get_dummies()  # doctest: +SKIP
    >>> cfm.tl.probe_drugs(lines, "ln_ic50", pathways)  # doctest: +SKIP
    """
    root = Path(pooch.os_cache("cfm") if folder is None else folder).expanduser()
    tables = []
    for file in _FILES:
        url, path = f"{base_url}/{file.replace(' ', '%20')}", root / file
        pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent)
        tables.append(pd.read_csv(path, index_col=0))
    expression, response, drugs = tables[0], tables[1].T, tables[2]
    response.columns = response.columns.astype(str).str.removeprefix("GDSC:")
    shared = expression.index.intersection(response.index)
    adata = ad.AnnData(expression.loc[shared].astype(np.float32))
    adata.obsm["ln_ic50"] = response.loc[shared].astype(np.float64)
    drugs.index = drugs.index.astype(str)
    known = drugs.loc[drugs.index.intersection(response.columns)].fillna("").astype(str)
    names = {"Name": "name", "Targets": "targets", "Target pathway": "pathway"}
    adata.uns["drugs"] = known[list(names)].rename(columns=names)
    return adata
