"""PULSAR: donors by their cells."""

from cfm.models.pulsar._head import HeadRecipe
from cfm.models.pulsar._instrument import InstrumentRecipe, VirtualInstrument
from cfm.models.pulsar._instrument_module import InstrumentModule, InstrumentSize
from cfm.models.pulsar._model import DonorEmbeddings, Pulsar
from cfm.models.pulsar._module import SIZES, PulsarModule, PulsarSize
from cfm.models.pulsar._projection import CellProjection
from cfm.models.pulsar._training import PulsarRecipe

__all__ = [
    "SIZES",
    "CellProjection",
    "DonorEmbeddings",
    "HeadRecipe",
    "InstrumentModule",
    "InstrumentRecipe",
    "InstrumentSize",
    "Pulsar",
    "PulsarModule",
    "PulsarRecipe",
    "PulsarSize",
    "VirtualInstrument",
]
