"""Tools: call a model on an AnnData and store the result in it; each is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfm._lazy import import_on_use

if TYPE_CHECKING:
    from cfm.tl._cell_codes import cell_codes
    from cfm.tl._cell_importance import cell_importance
    from cfm.tl._drug_screen import screen_drugs
    from cfm.tl._drug_screen._annotate import annotate_drugs
    from cfm.tl._embed import embed
    from cfm.tl._embed_donors import embed_donors
    from cfm.tl._gene_programs import gene_programs
    from cfm.tl._host_factors import host_factors
    from cfm.tl._impute import impute
    from cfm.tl._knowledge_graph._tool import knowledge_graph
    from cfm.tl._map_reference import map_reference
    from cfm.tl._perturbation._evaluate import evaluate_perturbation
    from cfm.tl._perturbation._simulate import simulate_perturbation
    from cfm.tl._predict_properties import predict_properties
    from cfm.tl._predict_virus import predict_virus
    from cfm.tl._probe import probe
    from cfm.tl._probe_drugs import probe_drugs
    from cfm.tl._search_signatures import search_signatures

__all__ = [
    "annotate_drugs",
    "cell_codes",
    "cell_importance",
    "embed",
    "embed_donors",
    "evaluate_perturbation",
    "gene_programs",
    "host_factors",
    "impute",
    "knowledge_graph",
    "map_reference",
    "predict_properties",
    "predict_virus",
    "probe",
    "probe_drugs",
    "screen_drugs",
    "search_signatures",
    "simulate_perturbation",
]

#: Tools whose parts fill a folder: its private name hides no function.
_FOLDERS = {
    "annotate_drugs": "_drug_screen._annotate",
    "evaluate_perturbation": "_perturbation._evaluate",
    "knowledge_graph": "_knowledge_graph._tool",
    "screen_drugs": "_drug_screen",
    "simulate_perturbation": "_perturbation._simulate",
}

__getattr__ = import_on_use(__name__, {name: f"_{name}" for name in __all__} | _FOLDERS)


def __dir__() -> list[str]:
    return __all__
