"""Data to try things on: simulated with a known answer, real tables, and public studies.

Nothing here needs the internet but :func:`fetch`, which says so when it needs an address.
"""

from cfm.datasets._blanco_melo import blanco_melo
from cfm.datasets._cmap_signatures import cmap_signatures
from cfm.datasets._drug_targets import drug_targets
from cfm.datasets._fetch import fetch, list_datasets
from cfm.datasets._hallmark import hallmark
from cfm.datasets._ligand_receptor import ligand_receptor
from cfm.datasets._response_library import response_library
from cfm.datasets._toy_bulk_cohort import toy_bulk_cohort
from cfm.datasets._toy_communication import toy_communication
from cfm.datasets._toy_donors import toy_donors
from cfm.datasets._toy_infection import toy_infection
from cfm.datasets._toy_infection_cells import toy_infection_cells
from cfm.datasets._toy_perturbation import toy_perturbation

__all__ = [
    "blanco_melo",
    "cmap_signatures",
    "drug_targets",
    "fetch",
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
