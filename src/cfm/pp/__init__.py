"""Prepare data: gene identifiers, log TPM, contrasts, splits, and the co-expression graph."""

from cfm.pp._coexpression_graph import coexpression_graph
from cfm.pp._contrasts import contrasts
from cfm.pp._map_genes import map_genes
from cfm.pp._split_perturbations import split_perturbations
from cfm.pp._tpm import tpm

__all__ = ["coexpression_graph", "contrasts", "map_genes", "split_perturbations", "tpm"]
