"""Negative binomial model of the counts of perturbed cells."""

from cfm.models.count_model._conditions import ConditionLevels
from cfm.models.count_model._model import PerturbationCountModel

__all__ = ["ConditionLevels", "PerturbationCountModel"]
