from __future__ import annotations

from importlib.resources import as_file, files

import anndata as ad
import numpy as np
from scipy import sparse


def blanco_melo() -> ad.AnnData:
    """Bulk RNA-seq counts of cells infected with SARS-CoV-2, RSV or influenza A (real data).

    GEO series GSE147507, first release: bronchial epithelial cells (NHBE) and A549 cells,
    infected or mock-infected. Each of the four ``series`` is one experiment with its own mock
    samples: compare inside it (``by="series"``). The influenza samples (Series4, 9 hours) do not
    raise interferon-stimulated genes.

    Returns
    -------
    anndata.AnnData
        20 samples × 17,607 genes (HGNC symbols, those with at least 10 reads in all samples
        together), `X` CSR float32 of whole numbers, and

        `adata.obs` : ``study``, ``series``, ``sample``, ``virus`` ("none" for mock),
        ``condition``, ``tissue`` (NHBE or A549), ``gsm`` as categories, ``time_h`` and ``moi`` as
        float64.
        `adata.uns` : ``source``, ``citation``, ``licence``, ``organism``, ``units``, ``note``.

    Notes
    -----
    Blanco-Melo D, Nilsson-Payant BE, Liu WC, et al. Imbalanced Host Response to SARS-CoV-2 Drives
    Development of COVID-19. Cell 2020;181:1036-1045.e9, doi:10.1016/j.cell.2020.04.026. Public
    deposit in NCBI GEO; the authors state no licence (``adata.uns["licence"]``). Written by
    ``training/build_blanco_melo.py``.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.blanco_melo()
    >>> adata.obs["virus"].value_counts()["SARS-CoV-2"]
    np.int64(6)
    """
    with as_file(files("cfm.datasets") / "files" / "blanco_melo.h5ad") as path:
        adata = ad.read_h5ad(path)
    # Whole numbers pack better on disk; everything downstream reads counts as float32.
    adata.X = sparse.csr_matrix(np.asarray(adata.X, dtype=np.float32))
    return adata
