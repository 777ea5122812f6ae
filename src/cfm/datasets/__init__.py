"""Data to try things on: simulated with a known answer, real tables, and public studies.

Nothing here needs the internet but :func:`fetch` and :func:`gdsc`.
"""

from cfm.datasets._bundled import (
    blanco_melo,
    cmap_signatures,
    drug_targets,
    hallmark,
    ligand_receptor,
    response_library,
)
from cfm.datasets._fetch import fetch, list_datasets
from cfm.datasets._gdsc import gdsc
from cfm.datasets._toy_bulk import toy_bulk_cohort, toy_infection
from cfm.datasets._toy_cells import toy_donors, toy_infection_cells
from cfm.datasets._toy_communication import toy_communication
from cfm.datasets._toy_perturbation import toy_perturbation

__all__ = [
    "blanco_melo",
    "cmap_signatures",
    "drug_targets",
    "fetch",
    "gdsc",
    "hallmark",
    "ligand_receptor",
    "list_datasets",
    "response_library",
    "toy_bulk_cohort",
    "toy_communication",
    "toy_donors",
    "toy_infection",
    "toy_infection_cells",
    "toy_perturbation",
]
