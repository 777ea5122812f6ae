"""Building blocks of networks, on tensors only."""

from cfm.nn._diffusion import PowerAverage
from cfm.nn._genes import (
    GraphConvolution,
    GroupCompression,
    LowRankLogistic,
    MagnitudeEmbedding,
    RotaryExpressionEmbedding,
    normalised_adjacency,
)
from cfm.nn._performer import PerformerAttention, PerformerLayer
from cfm.nn._transformers import (
    DirectionAttention,
    DirectionBlock,
    LlamaBlock,
    LlamaTrunk,
    TransformerEncoderLayer,
)

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
    "PowerAverage",
    "RotaryExpressionEmbedding",
    "TransformerEncoderLayer",
    "normalised_adjacency",
]
