"""Prepare data: gene identifiers, and counts to differential-expression profiles."""

from cfm.pp._contrasts import contrasts
from cfm.pp._map_genes import map_genes
from cfm.pp._tpm import tpm

__all__ = ["contrasts", "map_genes", "tpm"]
