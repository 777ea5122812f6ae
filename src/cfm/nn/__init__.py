"""Building blocks of networks, on tensors only."""

from cfm.nn._diffusion import PowerAverage
from cfm.nn._genes import GraphConvolution, GroupCompression, LowRankLogistic, normalised_adjacency
from cfm.nn._performer import PerformerAttention, PerformerLayer
from cfm.nn._transformers import (
    DirectionAttention,
    DirectionBlock,
    LlamaBlock,
    LlamaTrunk,
    TransformerEncoderLayer,
)
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
    "PowerAverage",
    "RotaryExpressionEmbedding",
    "TransformerEncoderLayer",
    "normalised_adjacency",
]
