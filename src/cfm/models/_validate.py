"""Networks of the sizes that a checkpoint claims, before memory is taken for them."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@contextmanager
def claimed_sizes(name: str) -> Iterator[None]:
    """Make modules without memory for their weights, on the ``meta`` device.

    Parameters
    ----------
    name
        Of the checkpoint, for the error.

    Raises
    ------
    ValueError
        If torch cannot make them: a product of sizes is beyond 64 bits.
    """
    try:
        with torch.device("meta"):
            yield
    except (RuntimeError, TypeError, ArithmeticError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"No network has the sizes in the config.json of checkpoint {name!r} ({said}). It may "
            "be damaged or from another version; download it again."
        ) from error


def check_layers(names: Iterable[str], claimed: dict[str, tuple[str, int]], name: str) -> None:
    """Check that weights have as many layers as the sizes claim: each costs time, also on ``meta``.

    Parameters
    ----------
    names
        Of the tensors.
    claimed
        By what the layers are called: a pattern whose first group is the number of a layer, and
        how many there should be.
    name
        Of the checkpoint, for the error.

    Raises
    ------
    ValueError
        If there are more or fewer.
    """
    known = list(names)
    for called, (pattern, n_claimed) in claimed.items():
        found = len({m[1] for m in (re.match(pattern, k) for k in known) if m})
        if found != n_claimed:
            raise ValueError(
                f"The weights of checkpoint {name!r} do not fit the sizes in its config.json "
                f"(found {n_claimed} {called}, weights of {found}). It may be damaged or from "
                "another version; download it again."
            )
