"""Which ligands speak to which receptors."""

from __future__ import annotations

import gzip
import io
from importlib.resources import files

import pandas as pd


def ligand_receptor() -> pd.DataFrame:
    """Human ligand-receptor pairs, the consensus resource of liana.

    Returns
    -------
    pandas.DataFrame
        A row per pair, sorted: ``ligand`` and ``receptor``, HGNC symbols; those of a complex are
        joined by ``_``. Can be given to :func:`cfm.tl.knowledge_graph` as it is, which uses it by
        default.

    Notes
    -----
    Through liana (Dimitrov D, Türei D, Garrido-Rodriguez M, et al. Comparison of methods and
    resources for cell-cell communication inference from single-cell RNA-Seq data. Nat Commun
    2022;13:3224, doi:10.1038/s41467-022-30755-0), which took it from OmniPath; GPL-3: this table
    is under the same licence. Previous symbols were replaced by current ones. Written by
    ``training/build_ligand_receptor.py``.

    Examples
    --------
    >>> import cfm
    >>> pairs = cfm.datasets.ligand_receptor()
    >>> "CXCR3" in set(pairs.loc[pairs["ligand"] == "CXCL10", "receptor"])
    True
    """
    packed = (files("cfm.datasets") / "files" / "ligand_receptor.csv.gz").read_bytes()
    # A name such as "NA" is a name and not a missing value.
    return pd.read_csv(
        io.BytesIO(gzip.decompress(packed)), keep_default_na=False, dtype=str
    ).astype(object)
