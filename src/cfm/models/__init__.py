"""Models on scvi-tools base classes: one folder per system, imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfm._lazy import import_on_use

if TYPE_CHECKING:
    from cfm.models._base import PretrainedModel
    from cfm.models._load import load_model
    from cfm.models._protocols import (
        AttentionModel,
        CodeModel,
        DonorModel,
        GeneEmbeddingModel,
        GeneFactorModel,
        PerturbationModel,
    )
    from cfm.models.bulkformer import BulkFormer
    from cfm.models.cellpulse import CellPulse
    from cfm.models.cellvq import CellVQ
    from cfm.models.count_model import PerturbationCountModel
    from cfm.models.lingshu import LingshuCell
    from cfm.models.pulsar import CellProjection, Pulsar, VirtualInstrument
    from cfm.models.uce import UCE

__all__ = [
    "UCE",
    "AttentionModel",
    "BulkFormer",
    "CellProjection",
    "CellPulse",
    "CellVQ",
    "CodeModel",
    "DonorModel",
    "GeneEmbeddingModel",
    "GeneFactorModel",
    "LingshuCell",
    "PerturbationCountModel",
    "PerturbationModel",
    "PretrainedModel",
    "Pulsar",
    "VirtualInstrument",
    "load_model",
]

_PLACES = {
    "_base": ("PretrainedModel",),
    "_load": ("load_model",),
    "_protocols": (
        "AttentionModel",
        "CodeModel",
        "DonorModel",
        "GeneEmbeddingModel",
        "GeneFactorModel",
        "PerturbationModel",
    ),
    "bulkformer": ("BulkFormer",),
    "cellpulse": ("CellPulse",),
    "cellvq": ("CellVQ",),
    "count_model": ("PerturbationCountModel",),
    "lingshu": ("LingshuCell",),
    "pulsar": ("CellProjection", "Pulsar", "VirtualInstrument"),
    "uce": ("UCE",),
}
__getattr__ = import_on_use(__name__, {n: place for place, names in _PLACES.items() for n in names})


def __dir__() -> list[str]:
    return __all__
