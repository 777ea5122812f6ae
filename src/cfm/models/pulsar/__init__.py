"""PULSAR: donors by their cells."""

from cfm.models.pulsar._head import HeadRecipe
from cfm.models.pulsar._instrument import VirtualInstrument
from cfm.models.pulsar._instrument_module import InstrumentModule, InstrumentSize
from cfm.models.pulsar._model import DonorEmbeddings, Pulsar
from cfm.models.pulsar._module import SIZES, PulsarModule, PulsarSize
from cfm.models.pulsar._projection import CellProjection

__all__ = [
    "SIZES",
    "CellProjection",
    "DonorEmbeddings",
    "HeadRecipe",
    "InstrumentModule",
    "InstrumentSize",
    "Pulsar",
    "PulsarModule",
    "PulsarSize",
    "VirtualInstrument",
]
