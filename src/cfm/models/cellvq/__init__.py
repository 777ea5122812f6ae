"""CellVQ: a discrete code per cell."""

from cfm.models.cellvq._model import CellCodes, CellVQ, Codebook
from cfm.models.cellvq._module import SIZES, CellVQModule, CellVQSize

__all__ = ["SIZES", "CellCodes", "CellVQ", "CellVQModule", "CellVQSize", "Codebook"]
