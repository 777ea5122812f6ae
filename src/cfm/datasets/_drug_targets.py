"""Which genes drugs act on."""

from __future__ import annotations

import gzip
import io
from importlib.resources import files

import numpy as np
import pandas as pd

from cfm._arguments import checks_arguments


@checks_arguments()
def drug_targets(*, moa_only: bool = False) -> pd.DataFrame:
    """Human targets of drugs, from DrugCentral.

    Parameters
    ----------
    moa_only
        Only targets by which a drug works (its mechanism of action), not everything that it was
        seen to bind.

    Returns
    -------
    pandas.DataFrame
        A row per drug and gene, those of the mechanism of action first: ``compound`` (DrugCentral
        name), ``gene`` (HGNC symbol), ``moa`` (bool) and ``action`` (such as ``"inhibitor"``,
        several joined by ``|``, ``""`` if not stated). Can be given to
        :func:`cfm.tl.screen_drugs` as it is.

    Notes
    -----
    DrugCentral (Avram S, Bologa CG, Holmes J, et al. DrugCentral 2021 supports drug discovery and
    repositioning. Nucleic Acids Res 2021;49:D1160-D1169, doi:10.1093/nar/gkaa997), CC BY-SA 4.0:
    this table is under the same licence. Through kenmcgarry/ComplexNetworks; rows that DrugCentral
    took from DrugBank or KEGG were left out, complexes were split into their genes. Written by
    ``training/build_drug_targets.py``.

    Examples
    --------
    >>> import cfm
    >>> targets = cfm.datasets.drug_targets(moa_only=True)
    >>> targets.loc[targets["compound"] == "imatinib", "gene"].tolist()[:1]
    ['ABL1']
    """
    packed = (files("cfm.datasets") / "files" / "drug_targets.tsv.gz").read_bytes()
    # A name such as "NA" is a name and not a missing value.
    table = pd.read_csv(
        io.BytesIO(gzip.decompress(packed)), sep="\t", keep_default_na=False, dtype=str
    ).astype(object)
    table["moa"] = (table["moa"] == "1").to_numpy(dtype=np.bool_)
    if moa_only:
        table = table[table["moa"]].reset_index(drop=True)
    return table
