"""What anything that supplies differential-expression profiles looks like to training."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class ProfileDraw:
    """A batch of differential-expression profiles.

    Attributes
    ----------
    effects
        ``(n, n_genes)`` float32, log2 fold change of case over control; ``NaN`` = not measured.
    group
        ``(n,)`` int64. Equal ids mark contrasts of the same infected (case) sample, the positive
        pairs of the agreement loss.
    has_magnitude
        ``False`` for signed gene sets, where only the sign of an effect is known.
    study
        ``(n,)`` object, the study of each profile, ``""`` or ``None`` if unknown. Training
        predicts a profile without what it knows of the profile's own study.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.data import ProfileDraw
    >>> draw = ProfileDraw(np.zeros((2, 3), dtype=np.float32), group=np.array([0, 0]))
    >>> draw.has_magnitude
    True
    """

    effects: np.ndarray
    group: np.ndarray
    has_magnitude: bool = True
    study: np.ndarray | None = None


@runtime_checkable
class ProfileSource(Protocol):
    """Something that training draws profiles from, in memory or made on the fly.

    A ``draw`` that also takes ``part=``, a slice, and then returns these of the ``n`` profiles
    only, saves processes that train together from making the profiles of each other.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.data import ProfileMatrix, ProfileSource
    >>> source = ProfileMatrix(np.eye(3), ["STAT1", "ISG15", "MX1"])
    >>> isinstance(source, ProfileSource)
    True
    """

    @property
    def var_names(self) -> pd.Index:
        """Gene symbols of the columns of :attr:`ProfileDraw.effects`."""

    def __len__(self) -> int:
        """Number of distinct profiles that can be drawn."""

    def draw(self, n: int, rng: np.random.Generator) -> ProfileDraw:
        """Draw ``n`` profiles with the given random generator."""


def draw_part(source: ProfileSource, n: int, rng: np.random.Generator, part: slice) -> ProfileDraw:
    """Draw ``n`` profiles and return a part of them, making no more than that where it can.

    The random generator moves on as if all were drawn.
    """
    if part.indices(n) == (0, n, 1):
        return source.draw(n, rng)
    if "part" in inspect.signature(source.draw).parameters:
        return source.draw(n, rng, part=part)  # type: ignore[call-arg]
    draw = source.draw(n, rng)
    study = None if draw.study is None else draw.study[part]
    return ProfileDraw(draw.effects[part], draw.group[part], draw.has_magnitude, study)
