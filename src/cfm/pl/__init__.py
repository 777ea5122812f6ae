"""Plots: one per tool, each reading only what the tool stored in the AnnData.

Every function returns the matplotlib Axes it drew on (a dict of them where there are several
panels), and takes ``ax=`` to draw into an existing figure, ``show=`` and ``save=``. No global
matplotlib setting is changed. Nothing is told by colour alone.
"""

from __future__ import annotations

from cfm.pl._cell_codes import cell_codes
from cfm.pl._cell_importance import cell_importance
from cfm.pl._donors import donors
from cfm.pl._drug_screen import drug_screen
from cfm.pl._embedding import embedding
from cfm.pl._gene_programs import gene_programs
from cfm.pl._host_factor_enrichment import host_factor_enrichment
from cfm.pl._host_factors import host_factors
from cfm.pl._knowledge_graph import knowledge_graph
from cfm.pl._perturbation import perturbation
from cfm.pl._probe import probe
from cfm.pl._signature_search import signature_search
from cfm.pl._survival import survival
from cfm.pl._top_genes import top_genes
from cfm.pl._training import training
from cfm.pl._virus_probabilities import virus_probabilities
from cfm.pl._volcano import volcano

__all__ = [
    "cell_codes",
    "cell_importance",
    "donors",
    "drug_screen",
    "embedding",
    "gene_programs",
    "host_factor_enrichment",
    "host_factors",
    "knowledge_graph",
    "perturbation",
    "probe",
    "signature_search",
    "survival",
    "top_genes",
    "training",
    "virus_probabilities",
    "volcano",
]
