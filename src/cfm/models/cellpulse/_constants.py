"""Token states of CellPulse: the direction of a gene's effect, or why there is none."""

from __future__ import annotations

DOWN = 0
UNCHANGED = 1
UP = 2
#: The direction is hidden from the model and asked for.
HIDDEN = 3
#: The summary token, whose output is the embedding of the profile.
SUMMARY = 4
N_STATES = 5
#: Padding of short profiles; attention gives it exactly zero weight.
PADDING = N_STATES
N_DIRECTIONS = 3

#: |log2FC| below which a gene counts as unchanged.
UNCHANGED_BELOW = 0.1
