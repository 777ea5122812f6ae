"""Building blocks that know only torch."""

from cfm.nn._direction_attention import DirectionAttention
from cfm.nn._low_rank import LowRankLogistic
from cfm.nn._magnitude import MagnitudeEmbedding
from cfm.nn._transformer import DirectionBlock

__all__ = ["DirectionAttention", "DirectionBlock", "LowRankLogistic", "MagnitudeEmbedding"]
