"""CellVQ: a discrete code per cell."""

from cfm.models.cellvq._model import CellCodes, CellVQ, Codebook
from cfm.models.cellvq._module import SIZES, CellVQModule, CellVQSize
from cfm.models.cellvq._training import CellVQRecipe

__all__ = ["SIZES", "CellCodes", "CellVQ", "CellVQModule", "CellVQRecipe", "CellVQSize", "Codebook"]
