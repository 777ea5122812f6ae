"""CellVQ: a discrete code per cell."""

from cfm.models.cellvq._codes import CellCodes, Codebook

__all__ = ["CellCodes", "Codebook"]
