"""Models on scvi-tools base classes: one folder per system."""

from cfm.models._base import PretrainedModel
from cfm.models._load import load_model
from cfm.models.cellpulse import CellPulse

__all__ = ["CellPulse", "PretrainedModel", "load_model"]
