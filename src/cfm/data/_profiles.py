"""Profiles to train on: what a source returns, and a source over a matrix in memory or on disk."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import scipy.sparse as sp

from cfm._adata import check_sparse
from cfm.data._matrix import by_rows, read_rows, to_dense

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        predicts a profile without the profile's own study.

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


class ProfileMatrix:
    """A :class:`cfm.data.ProfileSource` over a matrix of profiles, such as contrasts in an AnnData.

    Parameters
    ----------
    effects
        ``(n, n_genes)`` log2 fold changes, dense with ``NaN`` = not measured, or sparse (signed
        sets of −1, 0, 1); or on disk, of which the profiles of a draw are read.
    var_names
        Gene symbols of the columns.
    study
        ``(n,)`` study of each profile. A study is drawn in proportion to the square root of its
        size, so that large ones do not drown the others. ``None``: all profiles alike.
    group
        ``(n,)`` ids of the infected sample; by default each profile stands alone.
    weights
        ``(n,)`` relative probability of being drawn, instead of the rule above.
    has_magnitude
        ``False`` where only signs are known.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.data import ProfileMatrix
    >>> effects = np.array([[1.0, -2.0], [0.5, np.nan], [2.0, -1.0]])
    >>> source = ProfileMatrix(effects, ["ISG15", "ACTB"], study=["a", "a", "b"])
    >>> source.draw(5, np.random.default_rng(0)).study.tolist()
    ['b', 'a', 'a', 'a', 'b']
    """

    def __init__(
        self,
        effects: np.ndarray | sp.spmatrix | Any,
        var_names: Sequence[str] | pd.Index,
        *,
        study: Sequence[str] | None = None,
        group: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        has_magnitude: bool = True,
    ) -> None:
        self._effects: Any
        if sp.issparse(effects):
            self._effects = sp.csr_matrix(check_sparse(effects, "effects"))
        elif isinstance(effects, np.ndarray) or not hasattr(effects, "shape"):
            self._effects = np.asarray(effects)
        else:
            self._effects = by_rows(effects)
        n, n_genes = self._effects.shape
        self._var_names = pd.Index(var_names)
        if n == 0 or n_genes != len(self._var_names):
            raise ValueError(
                f"effects is {n} × {n_genes} with {len(self._var_names)} gene names; expected at "
                "least one profile and one name per column."
            )
        for name, column in (("study", study), ("group", group)):
            if column is not None and len(column) != n:
                raise ValueError(f"{name} has {len(column)} entries; expected {n}, as profiles.")
        self._study = None if study is None else np.asarray(study, dtype=object)
        self._group = np.arange(n) if group is None else np.asarray(group, dtype=np.int64)
        if weights is None:
            weights = np.ones(n)
            if self._study is not None:
                size = pd.Series(self._study).map(pd.Series(self._study).value_counts())
                weights = 1.0 / np.sqrt(size.to_numpy(dtype=np.float64))
        total = float(np.sum(weights))
        if len(weights) != n or not np.isfinite(total) or total <= 0 or np.min(weights) < 0:
            raise ValueError("weights must be non-negative, one per profile, and not all 0.")
        self._probability = np.asarray(weights, dtype=np.float64) / total
        self.has_magnitude = has_magnitude

    @property
    def var_names(self) -> pd.Index:
        """Gene symbols of the columns."""
        return self._var_names

    def __len__(self) -> int:
        return self._effects.shape[0]

    def draw(self, n: int, rng: np.random.Generator, *, part: slice | None = None) -> ProfileDraw:
        """Draw ``n`` profiles with replacement; of these only ``part``, if it is given."""
        rows = rng.choice(len(self), size=n, p=self._probability)
        if part is not None:
            rows = rows[part]
        if isinstance(self._effects, np.ndarray) or sp.issparse(self._effects):
            effects = self._effects[rows]
        else:
            effects = read_rows(self._effects, rows)
        return ProfileDraw(
            to_dense(effects, np.float32),
            self._group[rows],
            self.has_magnitude,
            None if self._study is None else self._study[rows],
        )
