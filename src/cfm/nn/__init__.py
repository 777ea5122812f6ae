"""Building blocks that know only torch."""

from cfm.nn._direction_attention import DirectionAttention, DirectionBlock
from cfm.nn._ema import PowerAverage
from cfm.nn._graph import GraphConvolution, normalised_adjacency
from cfm.nn._group import GroupCompression
from cfm.nn._llama import LlamaBlock, LlamaTrunk
from cfm.nn._low_rank import LowRankLogistic
from cfm.nn._performer import PerformerAttention, PerformerLayer
from cfm.nn._post_norm import TransformerEncoderLayer
from cfm.nn._values import MagnitudeEmbedding, RotaryExpressionEmbedding

__all__ = [
    "DirectionAttention",
    "DirectionBlock",
    "GraphConvolution",
    "GroupCompression",
    "LlamaBlock",
    "LlamaTrunk",
    "LowRankLogistic",
    "MagnitudeEmbedding",
    "PerformerAttention",
    "PerformerLayer",
    "TransformerEncoderLayer",
    "PowerAverage",
    "RotaryExpressionEmbedding",
    "normalised_adjacency",
]
