"""MuData without what mudata 0.3 warns of its next version."""

from __future__ import annotations

import anndata as ad
import mudata as md

from cfm.data._modality import quiet_mudata


def mudata(modalities: dict[str, ad.AnnData]) -> md.MuData:
    """A MuData of these modalities."""
    with quiet_mudata():
        return md.MuData(modalities)
