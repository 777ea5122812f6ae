"""UCE: single cells of any tissue, from counts."""

from cfm.models.uce._model import UCE
from cfm.models.uce._module import UCEModule, UCESize

__all__ = ["UCE", "UCEModule", "UCESize"]
