"""Models on scvi-tools base classes: one folder per system."""

from cfm.models.cellpulse import CellPulse

__all__ = ["CellPulse"]
