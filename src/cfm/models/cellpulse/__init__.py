"""CellPulse: differential-expression profiles of viral infection."""

from cfm.models.cellpulse._classify import VirusPrediction
from cfm.models.cellpulse._model import CellPulse
from cfm.models.cellpulse._module import CellPulseModule
from cfm.models.cellpulse._sizes import SIZES, CellPulseSize
from cfm.models.cellpulse._tokens import ProfileTokenizer

__all__ = [
    "SIZES",
    "CellPulse",
    "CellPulseModule",
    "CellPulseSize",
    "ProfileTokenizer",
    "VirusPrediction",
]
