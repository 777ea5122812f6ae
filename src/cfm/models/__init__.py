"""Models on scvi-tools base classes: one folder per system."""

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
