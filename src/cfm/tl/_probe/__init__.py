"""Probes: targets and features, nested cross-validation, scores."""

from cfm.tl._probe._probe import probe

__all__ = ["probe"]
