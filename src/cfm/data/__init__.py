"""Gene vocabularies, contrast sampling and readers for matrices of any kind."""

from cfm.data._gene_ids import GeneMapping, map_identifiers
from cfm.data._pairs import ContrastPairs
from cfm.data._profiles import ProfileDraw, ProfileSource
from cfm.data._vocabulary import GeneVocabulary

__all__ = [
    "ContrastPairs",
    "GeneMapping",
    "GeneVocabulary",
    "ProfileDraw",
    "ProfileSource",
    "map_identifiers",
]
