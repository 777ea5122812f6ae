"""Data to try things on: simulated with a known answer, one real table, and public studies.

Nothing here needs the internet but :func:`fetch`, which says so when it needs an address.
"""

from cfm.datasets._blanco_melo import blanco_melo
from cfm.datasets._fetch import fetch, list_datasets
from cfm.datasets._toy_infection import toy_infection
from cfm.datasets._toy_infection_cells import toy_infection_cells

__all__ = ["blanco_melo", "fetch", "list_datasets", "toy_infection", "toy_infection_cells"]
