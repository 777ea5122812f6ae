"""Linear baselines for hidden directions: ridge regression through gene-gene covariance."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.linalg import eigsh

from cfm.metrics._direction_base import DirectionBaseline, Floats, graded_directions


class _GeneCovariance(DirectionBaseline):
    """Ridge regression with the kernel of weighted, normalised rows; see CorrelationKernel."""

    _uses_sets = True
    ridge: float
    constant: float
    set_weight: float
    effect_weight: float
    rank: int | None
    n_top: int

    def _fit(self, x: Floats, weight: NDArray[np.float64], sets: sp.csr_matrix | None) -> None:
        if self.ridge <= 0 or self.constant < 0:
            raise ValueError(
                f"ridge={self.ridge}, constant={self.constant}; expected ridge > 0, constant >= 0."
            )
        blocks = []
        if sets is not None and self.set_weight > 0:
            blocks.append(_unit_rows(sets) * np.float32(np.sqrt(self.set_weight / sets.shape[0])))
        if len(x) and self.effect_weight > 0:
            rows = _unit_rows(sp.csr_matrix(graded_directions(x, self.n_top)))
            blocks.append(sp.diags(np.sqrt(self.effect_weight * weight).astype(np.float32)) @ rows)
        if not blocks:
            raise ValueError("Got neither training profiles nor signed sets with a weight above 0.")
        rows = sp.csr_matrix(sp.vstack(blocks), dtype=np.float32)
        # Scale-free ridge: the variance of the genes that move, weighted by how much they do, is 1.
        diagonal = np.asarray(rows.multiply(rows).sum(axis=0)).ravel()  # (genes,)
        if diagonal.sum() <= 0:
            raise ValueError("All training effects and signed sets are empty.")
        rows = rows * np.float32(1.0 / np.sqrt((diagonal**2).sum() / diagonal.sum()))
        if self.rank is None or self.rank >= min(rows.shape):
            self.rows_ = sp.csc_matrix(rows)
        else:
            self.rows_ = _leading_rows(rows, self.rank)

    def _columns(self, genes: NDArray[np.intp]) -> Floats:
        part = self.rows_[:, genes]
        part = part.toarray() if sp.issparse(part) else np.asarray(part)
        if self.constant > 0:
            level = np.full((1, len(genes)), np.sqrt(self.constant), dtype=np.float32)
            part = np.vstack([part, level])
        return np.asarray(part, dtype=np.float32)

    def _direction(self, seen: NDArray[np.intp], x: Floats, target: NDArray[np.intp]) -> NDArray:
        if not len(seen):
            return np.zeros(len(target), dtype=np.float32)
        a = self._columns(seen)  # (r, observed): the kernel is a.T @ a
        y = np.sign(x)
        # The same answer either way; the smaller system is solved.
        if len(seen) <= len(a):
            z = a @ _ridge_solve(a.T @ a, self.ridge, y)
        else:
            z = _ridge_solve(a @ a.T, self.ridge, a @ y)
        return np.asarray(z @ self._columns(target))


class CorrelationKernel(_GeneCovariance):
    r"""Gene-correlation kernel: Gaussian-process regression of signs on signs.

    With rows :math:`z_p` of unit length and weights :math:`w_p`, the covariance of two genes is

    .. math:: K_{gh} = \frac{1}{c_0} \sum_p w_p z_{pg} z_{ph} + c

    and hidden genes :math:`H` are predicted from the signs :math:`y_O` of the observed ones by

    .. math:: s_H = K_{HO} (K_{OO} + \lambda I)^{-1} y_O .

    Rows are the signed sets (-1, 0, 1; equal weights with sum ``set_weight``) and the training
    profiles (graded directions :math:`\tanh(x / q)`, :math:`q` the ``n_top``-th largest effect;
    weights with sum ``effect_weight``). The constant kernel :math:`c` carries the profile's own
    majority. :math:`c_0` scales the variance of genes that move to 1, so :math:`\lambda` and
    :math:`c` do not depend on the number of genes. :math:`K` is never formed for all genes: with
    :math:`A` the matrix of rows only :math:`A_O` and :math:`A_H` are used.

    Parameters
    ----------
    ridge
        :math:`\lambda`, noise variance of a sign.
    constant
        :math:`c`, variance of the common direction of a profile.
    set_weight
        Total weight of the signed sets.
    effect_weight
        Total weight of the training profiles.
    rank
        Keep this many leading factors of the rows; all by default.
    n_top
        Rank of the effect that sets the scale of a profile.

    Notes
    -----
    ``rows_`` holds the scaled rows, ``(rows or rank, genes)``; without ``rank`` a sparse matrix.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.metrics import CorrelationKernel
    >>> profiles = [[2.0, 1.0, -1.0], [-1.0, -2.0, 1.0], [3.0, 2.0, -1.0]]
    >>> kernel = CorrelationKernel().fit(profiles)
    >>> direction, _ = kernel.predict([[np.nan, -1.0, 2.0]], hidden=[[True, False, False]])
    >>> np.sign(direction)
    array([[-1., nan, nan]], dtype=float32)
    """

    def __init__(
        self,
        ridge: float = 1.0,
        constant: float = 0.1,
        set_weight: float = 1.0,
        effect_weight: float = 1.0,
        rank: int | None = None,
        n_top: int = 1000,
    ) -> None:
        self.ridge = ridge
        self.constant = constant
        self.set_weight = set_weight
        self.effect_weight = effect_weight
        self.rank = rank
        self.n_top = n_top


class SignedSetSVD(_GeneCovariance):
    r"""Least squares on the leading singular vectors of the signed sets.

    As :class:`CorrelationKernel` with truncated rows and *equal* factors: the right singular
    vectors :math:`V` of the unit-length rows replace the scaled ones, so that the prediction is
    the ridge fit :math:`V_H (V_O^\top V_O + \lambda I)^{-1} V_O^\top y_O`.

    Parameters
    ----------
    rank
        Number of singular vectors.
    ridge
        Ridge, in units of the mean squared length of a gene's factors.
    constant
        Variance of a common direction added as one more factor; 0 = none.
    effect_weight
        Total weight of the training profiles beside the sets' 1; 0 = sets only.
    n_top
        Rank of the effect that sets the scale of a profile.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.sparse as sp
    >>> from cfm.metrics import SignedSetSVD
    >>> sets = sp.csr_matrix([[1, 1, -1, 0], [0, 1, -1, 1]])
    >>> nothing = np.empty((0, 4))
    >>> model = SignedSetSVD(rank=2).fit(nothing, signed_sets=sets)
    >>> direction, _ = model.predict(
    ...     [[np.nan, 2.0, -1.0, 1.0]], hidden=[[True, False, False, False]]
    ... )
    >>> np.sign(direction)
    array([[ 1., nan, nan, nan]], dtype=float32)
    """

    set_weight = 1.0

    def __init__(
        self,
        rank: int = 200,
        ridge: float = 1.0,
        constant: float = 0.1,
        effect_weight: float = 0.0,
        n_top: int = 1000,
    ) -> None:
        self.rank = rank
        self.ridge = ridge
        self.constant = constant
        self.effect_weight = effect_weight
        self.n_top = n_top

    def _fit(self, x: Floats, weight: NDArray[np.float64], sets: sp.csr_matrix | None) -> None:
        super()._fit(x, weight, sets)
        dense = self.rows_.toarray() if sp.issparse(self.rows_) else self.rows_
        length = np.sqrt((dense.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
        flat = dense / np.maximum(length, 1e-12)
        variance = (flat**2).sum(axis=0)
        self.rows_ = (flat / np.sqrt((variance**2).sum() / variance.sum())).astype(np.float32)


class EffectPCA(_GeneCovariance):
    """Principal components of the training profiles alone, as probabilistic PCA with ridge.

    :class:`CorrelationKernel` without signed sets and with ``rank`` components; missing genes
    count as 0.

    Parameters
    ----------
    rank
        Number of components; at most the number of training profiles.
    ridge
        Noise variance of a sign.
    constant
        Variance of a common direction; 0 = none.
    n_top
        Rank of the effect that sets the scale of a profile.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.metrics import EffectPCA
    >>> profiles = [[2.0, 1.0, -1.0], [-1.0, -2.0, 1.0], [3.0, 2.0, -1.0]]
    >>> model = EffectPCA(rank=1).fit(profiles)
    >>> direction, _ = model.predict([[np.nan, 1.0, -2.0]], hidden=[[True, False, False]])
    >>> np.sign(direction)
    array([[ 1., nan, nan]], dtype=float32)
    """

    _uses_sets = False
    set_weight = 0.0
    effect_weight = 1.0

    def __init__(
        self, rank: int | None = 20, ridge: float = 1.0, constant: float = 0.1, n_top: int = 1000
    ) -> None:
        self.rank = rank
        self.ridge = ridge
        self.constant = constant
        self.n_top = n_top


def _unit_rows(rows: sp.csr_matrix) -> sp.csr_matrix:
    length = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return sp.csr_matrix(sp.diags((1.0 / np.maximum(length, 1e-12)).astype(np.float32)) @ rows)


def _leading_rows(rows: sp.csr_matrix, rank: int) -> Floats:
    """Return ``(rank, genes)`` scaled right singular vectors through the small Gram matrix."""
    gram = (rows @ rows.T).toarray().astype(np.float64)  # (rows, rows)
    start = np.full(len(gram), 1.0 / np.sqrt(len(gram)))  # the same factors in every run
    _, vectors = eigsh(gram, k=rank, which="LA", v0=start)
    vectors = vectors[:, ::-1]
    # A sign is free in a factor; fix it so that files and figures do not flip.
    flip = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(rank)])
    return np.asarray((rows.T @ (vectors * flip)).T, dtype=np.float32)


def _ridge_solve(gram: NDArray, ridge: float, y: NDArray) -> NDArray:
    system = np.asarray(gram, dtype=np.float64)
    system[np.diag_indices_from(system)] += ridge
    return np.asarray(cho_solve(cho_factor(system, overwrite_a=True), y), dtype=np.float32)
