"""Building blocks that know only torch."""

from cfm.nn._direction_attention import DirectionAttention
from cfm.nn._expression import RotaryExpressionEmbedding
from cfm.nn._graph import GraphConvolution, normalised_adjacency
from cfm.nn._low_rank import LowRankLogistic
from cfm.nn._magnitude import MagnitudeEmbedding
from cfm.nn._performer import PerformerAttention, PerformerLayer
from cfm.nn._post_norm import PostNormLayer
from cfm.nn._transformer import DirectionBlock

__all__ = [
    "DirectionAttention",
    "DirectionBlock",
    "GraphConvolution",
    "LowRankLogistic",
    "MagnitudeEmbedding",
    "PerformerAttention",
    "PerformerLayer",
    "PostNormLayer",
    "RotaryExpressionEmbedding",
    "normalised_adjacency",
]
