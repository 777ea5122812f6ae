"""Plots: each reads only what a tool stored in the AnnData.

Every function returns the matplotlib Axes it drew on (a dict of them where there are several
panels), and takes ``ax=`` to draw into an existing figure, ``show=`` and ``save=``. No global
matplotlib setting is changed. Nothing is encoded by colour alone.
"""

from __future__ import annotations

from cfm.pl._cell_codes import cell_codes, code_transitions
from cfm.pl._cell_importance import cell_importance
from cfm.pl._contrasts import signature_search, top_genes, volcano
from cfm.pl._drug_screen import drug_screen
from cfm.pl._embedding import donors, embedding
from cfm.pl._gene_programs import gene_programs
from cfm.pl._host_factors import host_factor_enrichment, host_factors
from cfm.pl._knowledge_graph import knowledge_graph
from cfm.pl._perturbation import perturbation_effect, perturbation_umap
from cfm.pl._perturbation_metrics import perturbation_metrics
from cfm.pl._predictions import classification
from cfm.pl._probe import probe, survival
from cfm.pl._training import training
from cfm.pl._virus import virus_probabilities

__all__ = [
    "cell_codes",
    "cell_importance",
    "classification",
    "code_transitions",
    "donors",
    "drug_screen",
    "embedding",
    "gene_programs",
    "host_factor_enrichment",
    "host_factors",
    "knowledge_graph",
    "perturbation_effect",
    "perturbation_metrics",
    "perturbation_umap",
    "probe",
    "signature_search",
    "survival",
    "top_genes",
    "training",
    "virus_probabilities",
    "volcano",
]
