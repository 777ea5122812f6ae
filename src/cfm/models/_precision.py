"""In what the matrix products of a model run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from cfm._arguments import check_choice
from cfm.data._warn import warn_user
from cfm.nn._kernels import fast_bfloat16

if TYPE_CHECKING:
    from collections.abc import Callable

Precision = Literal["auto", "float32", "bfloat16"]

#: Mean cosine similarity to float32 below which "auto" does not use bfloat16.
LEAST_AGREEMENT = 0.999


def inference_dtype(
    precision: Precision,
    device: torch.device,
    agreement: Callable[[], float],
    *,
    least: float = LEAST_AGREEMENT,
) -> torch.dtype:
    """Decide what matrix products run in; the data have no say in it.

    Parameters
    ----------
    precision
        ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the device multiplies it in
        hardware and the trial agrees.
    device
        Where the model is.
    agreement
        The trial: returns how alike embeddings are in bfloat16 and float32, a cosine similarity.
    least
        What the trial must reach.

    Raises
    ------
    ValueError
        If the precision is none of these.

    Warns
    -----
    UserWarning
        If ``"auto"`` falls back to float32 because of the trial.
    """
    check_choice("precision", precision, get_args(Precision))
    if precision != "auto":
        return torch.float32 if precision == "float32" else torch.bfloat16
    if not fast_bfloat16(device):
        return torch.float32
    found = agreement()
    if found < least:
        warn_user(
            f"In bfloat16 these weights give embeddings at a cosine similarity of only "
            f"{found:.4f} to float32 (at least {least} is asked for), so float32 is used; "
            "precision='float32' says so without a trial."
        )
        return torch.float32
    return torch.bfloat16
