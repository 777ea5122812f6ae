"""CellVQ: a discrete code per cell."""

from cfm.models.cellvq._codes import CellCodes, Codebook
from cfm.models.cellvq._model import CellVQ
from cfm.models.cellvq._module import CellVQModule
from cfm.models.cellvq._sizes import SIZES, CellVQSize

__all__ = ["SIZES", "CellCodes", "CellVQ", "CellVQModule", "CellVQSize", "Codebook"]
