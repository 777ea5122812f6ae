"""The bundled library of contrasts whose cause is known."""

from __future__ import annotations

from importlib.resources import as_file, files

import anndata as ad
import numpy as np

#: The file stores effects x as round(130 x / (1 + |x|)), and NaN as -128.
_SCALE, _NOT_MEASURED = 130, -128


def response_library() -> ad.AnnData:
    """Public contrasts of human cells: infections, cytokines, bacteria, and pairs of gene sets.

    What :func:`cfm.tl.search_signatures` compares contrasts with. Three kinds of rows
    (``obs["source"]``):

    - contrasts of infections and stimuli, made with :func:`cfm.pp.contrasts` from public count
      tables (``"counts"``), or published where only fold changes are open (``"published fold
      changes"``); each experiment once;
    - weights of 43 cytokines (``"CytoSig"``);
    - pairs of up and down sets of ImmuneSigDB (``"ImmuneSigDB"``), 1 up, −1 down and 0 elsewhere.
      A pair of a control and one stimulus is turned where needed, so that 1 is up in the
      stimulus; its name then ends in ``" (turned)"``.

    Returns
    -------
    anndata.AnnData
        2,599 contrasts × 13,403 genes (HGNC symbols). `X` float32: effects relative to the 1,000th
        largest of their contrast, which is 1 or −1 (log2 fold changes but for a factor;
        ``np.tanh`` of them is the graded direction), at most 40; ``NaN`` = not measured.

        `adata.obs` : ``study``, ``organism`` (``"human"``, or ``"human or mouse"`` for gene sets
        that came over orthologues), ``tissue``, ``stimulus``, ``response`` (``"viral"``,
        ``"interferon I/III"``, ``"interferon II"``, ``"bacterial"``, ``"other"``, or ``""`` where
        the name of a set does not tell), ``source`` and ``licence`` as categories, ``time_h``
        (float64, ``NaN`` = unknown).

    Notes
    -----
    Written by ``python -m training.build_response_library``, which can leave studies out.
    Published fold changes of repositories without a stated licence are not in it. Sources:
    the studies in ``obs["study"]`` (accessions and citations in the model card of
    ``cellpulse-virus``); CytoSig (Jiang et al. 2021, Nat Methods 18:1181, GPL-3); ImmuneSigDB of
    MSigDB 2024.1 (Godec et al. 2016, Immunity 44:194, CC-BY 4.0). ``NOTICE`` has the licences. The
    demonstration data :func:`cfm.datasets.blanco_melo` are not in it.

    Examples
    --------
    >>> import cfm
    >>> library = cfm.datasets.response_library()
    >>> library.obs["response"].value_counts()["bacterial"] > 50
    np.True_
    """
    with as_file(files("cfm.datasets") / "files" / "response_library.h5ad") as path:
        packed = ad.read_h5ad(path)
    code = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
    effect = np.where(code == _NOT_MEASURED, np.nan, code / (_SCALE - np.abs(code)))
    x = effect.astype(np.float32)[packed.X.toarray().view(np.uint8)]
    return ad.AnnData(x, obs=packed.obs, var=packed.var)
