"""CellPulse: differential-expression profiles of viral infection."""

from cfm.models.cellpulse._classifier import VirusPrediction
from cfm.models.cellpulse._data import ProfileTokenizer
from cfm.models.cellpulse._model import CellPulse
from cfm.models.cellpulse._module import SIZES, CellPulseModule, CellPulseSize
from cfm.models.cellpulse._training import CellPulseRecipe

__all__ = [
    "SIZES",
    "CellPulse",
    "CellPulseModule",
    "CellPulseRecipe",
    "CellPulseSize",
    "ProfileTokenizer",
    "VirusPrediction",
]
