"""Several processes that train or compute together."""

from __future__ import annotations

import torch


def process_number() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many there are; ``(0, 1)`` if alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
