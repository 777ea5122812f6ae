"""Gene vocabularies, contrast sampling and readers for matrices of any kind."""

from cfm.data._genes import GeneAlignment, GeneMapping, GeneVocabulary, map_identifiers
from cfm.data._knowledge_graph import KnowledgeGraph
from cfm.data._on_disk import open_files
from cfm.data._pairs import ContrastPairs
from cfm.data._profiles import ProfileDraw, ProfileMatrix, ProfileSource
from cfm.data._reference import Reference

__all__ = [
    "ContrastPairs",
    "GeneAlignment",
    "GeneMapping",
    "GeneVocabulary",
    "KnowledgeGraph",
    "ProfileDraw",
    "ProfileMatrix",
    "ProfileSource",
    "Reference",
    "map_identifiers",
    "open_files",
]
