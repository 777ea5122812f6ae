"""Every (case, control) pair as a profile, made on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm._arguments import check_whole, checks_arguments
from cfm.data._profiles import ProfileDraw
from cfm.data._row_buffer import RowCache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData


#: Profiles that are made at once from samples on disk.
_AT_ONCE = 1024


class ContrastPairs:
    """All (case, control) pairs of a set of contrasts, as log2 fold-change profiles on demand.

    Holds each sample once and two small index arrays, so ten million pairs of a few thousand
    samples need no more memory than the samples do; samples on disk stay there and are read when
    a pair needs them. A profile is the difference of two rows. Made by :func:`cfm.pp.contrasts`
    with ``mode="pairs"``; training reads it as a :class:`cfm.data.ProfileSource`.

    Pairs are numbered contrast by contrast, in a contrast case by case, and for a case control by
    control: ``pairs[i]`` is always the same pair.

    Parameters
    ----------
    values
        ``(n_samples, n_genes)`` float32, log2 expression of the samples (not copied); or a
        ``RowCache`` that reads them, as :func:`cfm.pp.contrasts` makes for samples on disk.
    cases, controls
        For each contrast, the rows of ``values`` that are its cases and its controls.
    contrasts
        One row per contrast: what :meth:`obs` repeats for each pair.
    var
        Genes, indexed by symbol.
    sample_names
        ``(n_samples,)`` names of the rows of ``values``.
    balanced
        Whether :meth:`draw` picks each contrast equally often, rather than each pair.
    controls_per_case
        How many consecutive profiles of a draw share the same case (against different controls
        where there are enough): the positive pairs of an agreement loss.
    uns
        Stored under ``uns["contrasts"]`` by :meth:`to_adata`.

    Attributes
    ----------
    contrasts
        DataFrame, one row per contrast, with the number of its pairs in ``n_pairs``.
    var, sample_names, balanced, controls_per_case
        As given; ``balanced`` and ``controls_per_case`` may be set at any time.
    skipped
        DataFrame (stratum, level, reason) of what :func:`cfm.pp.contrasts` left out.

    Raises
    ------
    ValueError
        If shapes do not fit together, rows are out of range, or a contrast has no case or no
        control.

    Examples
    --------
    >>> import cfm, numpy as np
    >>> adata = cfm.datasets.toy_infection()
    >>> pairs = cfm.pp.contrasts(adata, "virus", "none", by="study", mode="pairs")
    >>> len(pairs), pairs[0].dtype
    (128, dtype('float32'))
    >>> pairs.draw(4, np.random.default_rng(0)).effects.shape == (4, adata.n_vars)
    True
    """

    @checks_arguments()
    def __init__(
        self,
        values: np.ndarray | RowCache,
        cases: Sequence[np.ndarray],
        controls: Sequence[np.ndarray],
        *,
        contrasts: pd.DataFrame,
        var: pd.DataFrame,
        sample_names: Sequence[str] | pd.Index,
        balanced: bool = False,
        controls_per_case: int = 1,
        uns: Mapping[str, Any] | None = None,
    ) -> None:
        self._values: np.ndarray | RowCache
        if isinstance(values, RowCache):
            self._values = values
        else:
            self._values = np.ascontiguousarray(values, dtype=np.float32)
        n_samples, n_genes = self._values.shape
        if len(var) != n_genes or len(sample_names) != n_samples:
            raise ValueError(
                f"values is {n_samples} × {n_genes}, but {len(sample_names)} sample names and "
                f"{len(var)} genes were given."
            )
        if not len(cases) == len(controls) == len(contrasts) > 0:
            raise ValueError(
                "cases, controls and contrasts need one entry per contrast and at least one, "
                f"found {len(cases)}, {len(controls)} and {len(contrasts)}."
            )
        if not all(len(rows) for rows in (*cases, *controls)):
            raise ValueError("every contrast needs at least one case and one control.")
        self._n_cases = np.array([len(rows) for rows in cases], dtype=np.int64)
        self._n_controls = np.array([len(rows) for rows in controls], dtype=np.int64)
        self._cases = np.concatenate(cases).astype(np.int64)
        self._controls = np.concatenate(controls).astype(np.int64)
        rows = np.concatenate([self._cases, self._controls])
        if rows.min() < 0 or rows.max() >= n_samples:
            raise ValueError(f"cases and controls must be rows 0 to {n_samples - 1} of values.")
        self._first_case = np.cumsum(self._n_cases) - self._n_cases
        self._first_control = np.cumsum(self._n_controls) - self._n_controls
        n_pairs = self._n_cases * self._n_controls
        self._end = np.cumsum(n_pairs)  # (n_contrasts,), pairs up to and with each contrast
        self.contrasts = contrasts.assign(n_pairs=n_pairs)
        self.var = var
        self.sample_names = pd.Index(sample_names)
        self.balanced = balanced
        self.controls_per_case = controls_per_case
        self._uns = dict(uns or {})

    @property
    def var_names(self) -> pd.Index:
        """Gene names of the columns of a profile."""
        return self.var.index

    @property
    def skipped(self) -> pd.DataFrame:
        """What was left out when the contrasts were made, and why."""
        return self._uns.get("skipped", pd.DataFrame(columns=["stratum", "level", "reason"]))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of pairs and of genes."""
        return len(self), self._values.shape[1]

    @property
    def on_disk(self) -> bool:
        """Whether samples are read when a pair needs them."""
        return isinstance(self._values, RowCache)

    def __len__(self) -> int:
        return int(self._end[-1])

    def __repr__(self) -> str:
        return (
            f"ContrastPairs: {len(self):,} pairs × {len(self.var):,} genes "
            f"from {len(self._values):,} samples{' on disk' if self.on_disk else ''} "
            f"in {len(self.contrasts):,} contrasts"
        )

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return profiles by number.

        Parameters
        ----------
        index
            An integer, a slice, an integer array or a boolean mask over all pairs.

        Returns
        -------
        float32, ``(n_genes,)`` for an integer and ``(n, n_genes)`` otherwise.
        """
        if isinstance(index, int | np.integer):
            return self._effects(*self._rows(np.array([index])))[0]
        return self._effects(*self._rows(self._numbers(index)))

    def draw(
        self,
        n: int,
        rng: np.random.Generator,
        *,
        part: slice | None = None,
        out: np.ndarray | None = None,
    ) -> ProfileDraw:
        """Draw random profiles, with replacement.

        Parameters
        ----------
        n
            How many.
        rng
            Random generator; the same state gives the same draw.
        part
            Make only these of the ``n`` profiles: processes that train together draw alike and
            each reads its own part.
        out
            ``(n, n_genes)`` float32 to write into (as many rows as ``part`` has), so that a loop
            need not allocate.

        Returns
        -------
        Effects ``(n, n_genes)`` float32, and as group the row of the case, so that profiles of
        the same infected sample share it; of ``part`` only where it is given.
        """
        numbers = self.draw_numbers(n, rng)
        if part is not None:
            numbers = numbers[part]
        case, control = self._rows(numbers)
        return ProfileDraw(self._effects(case, control, out), case)

    def draw_numbers(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the numbers of random pairs: what :meth:`draw` makes into profiles.

        Returns
        -------
        ``(n,)`` int64, for :meth:`obs` or indexing.
        """
        repeats = check_whole("controls_per_case", self.controls_per_case)
        n_cases = -(-n // repeats)
        if self.balanced:
            block = rng.integers(len(self._end), size=n_cases)
            n_pairs = self._n_cases[block] * self._n_controls[block]
            numbers = self._end[block] - n_pairs + rng.integers(n_pairs)
        else:
            numbers = rng.integers(len(self), size=n_cases)
            block = np.searchsorted(self._end, numbers, side="right")
        if repeats == 1:
            return numbers
        available = self._n_controls[block]
        first = self._end[block] - self._n_cases[block] * available
        of_case = numbers - (numbers - first) % available  # first pair of the same case
        chosen = _distinct(available, repeats, rng)  # (n_cases, repeats)
        return (of_case[:, None] + chosen).ravel()[:n]

    def obs(self, index: Any) -> pd.DataFrame:
        """Describe pairs.

        Parameters
        ----------
        index
            As for indexing: an integer, a slice, an integer array or a boolean mask.

        Returns
        -------
        DataFrame, a row per pair: the columns of :attr:`contrasts`, and the sample names
        ``case`` and ``control_sample``. Named ``"<case>_vs_<control>"``.
        """
        numbers = np.atleast_1d(self._numbers(index))
        block = np.searchsorted(self._end, numbers, side="right")
        case, control = self._rows(numbers)
        left_out = ["n_cases", "n_controls", "n_pairs"]
        frame = self.contrasts.drop(columns=left_out, errors="ignore").iloc[block]
        case_names = self.sample_names[case].astype(str)
        control_names = self.sample_names[control].astype(str)
        frame = frame.assign(case=case_names, control_sample=control_names)
        return frame.set_axis(case_names + "_vs_" + control_names, axis=0)

    @checks_arguments()
    def to_adata(self, index: Any = None, *, n: int | None = None, seed: int = 0) -> AnnData:
        """Make an AnnData of chosen pairs, of ``n`` random ones, or of all.

        Parameters
        ----------
        index
            Which pairs, as for indexing.
        n
            Take this many different pairs at random instead (all if there are fewer).
        seed
            Seed of that choice.

        Returns
        -------
        AnnData with ``X`` log2 fold changes float32 (pairs × genes), ``obs`` from :meth:`obs`,
        ``var`` the genes, and ``uns["contrasts"]`` how the pairs were made.

        Raises
        ------
        ValueError
            If both ``index`` and ``n`` are given.
        """
        import anndata as ad

        if index is not None and n is not None:
            raise ValueError("index and n exclude each other; give one.")
        if n is not None and n < len(self):
            index = np.random.default_rng(seed).choice(len(self), size=n, replace=False)
            index.sort()
        numbers = self._numbers(slice(None) if index is None else index)
        obs = self.obs(numbers)
        obs.index = ad.utils.make_index_unique(obs.index)
        return ad.AnnData(
            X=self._effects(*self._rows(numbers)),
            obs=obs,
            var=self.var.copy(),
            uns={"contrasts": dict(self._uns)},
        )

    def _numbers(self, index: Any) -> np.ndarray:
        """Turn what a user may index with into pair numbers."""
        if isinstance(index, slice):
            return np.arange(*index.indices(len(self)))
        numbers = np.asarray(index)
        if numbers.dtype == bool:
            if numbers.shape != (len(self),):
                raise IndexError(f"a mask needs one value for each of the {len(self)} pairs.")
            return np.flatnonzero(numbers)
        if numbers.size == 0:
            return numbers.astype(np.int64)
        if numbers.dtype.kind not in "iu":
            raise IndexError(f"pairs are numbered by integers, found {numbers.dtype}.")
        return numbers.astype(np.int64)

    def _rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ``values`` of the case and the control of each numbered pair."""
        total = len(self)
        if numbers.size and (numbers.min() < -total or numbers.max() >= total):
            raise IndexError(f"there are {total} pairs, numbered from 0.")
        numbers = np.where(numbers < 0, numbers + total, numbers)
        block = np.searchsorted(self._end, numbers, side="right")
        n_controls = self._n_controls[block]
        within = numbers - (self._end[block] - self._n_cases[block] * n_controls)
        case = self._cases[self._first_case[block] + within // n_controls]
        control = self._controls[self._first_control[block] + within % n_controls]
        return case, control

    def _effects(
        self, case: np.ndarray, control: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Differences of rows: reading them is what costs, so each is read once if long."""
        n, n_genes = len(case), self._values.shape[1]
        if out is None:
            out = np.empty((n, n_genes), dtype=np.float32)
        elif out.shape != (n, n_genes) or out.dtype != np.float32:
            raise ValueError(f"out must be float32 of shape {(n, n_genes)}.")
        if isinstance(self._values, RowCache):
            # as many at once as can be kept, whatever samples they are of
            step = max(1, min(self._values.n_kept // 2, _AT_ONCE))
            for start in range(0, n, step):
                of = slice(start, min(start + step, n))
                held, places = self._values.get(np.concatenate([case[of], control[of]]))
                of_cases, of_controls = np.split(places, 2)
                _subtract(held, of_cases, of_controls, out[of])
        else:
            _subtract(self._values, case, control, out)
        return out


def _subtract(values: np.ndarray, case: np.ndarray, control: np.ndarray, out: np.ndarray) -> None:
    """Write the differences of rows."""
    # gathering cases and controls first and subtracting then passes over memory twice, and is
    # slower than one call per profile from a thousand genes on
    for profile, i, j in zip(out, case.tolist(), control.tolist(), strict=True):
        np.subtract(values[i], values[j], out=profile)


def _distinct(available: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Draw for each entry ``k`` different numbers below it; with repeats where it is under ``k``.

    Draws among those left over, then steps over the ones taken, smallest first.
    """
    chosen = np.empty((len(available), k), dtype=np.int64)
    for j in range(k):
        left = np.where(available >= k, available - j, available)
        new = rng.integers(left)
        for taken in np.sort(chosen[:, :j], axis=1).T:
            new = np.where(available >= k, new + (new >= taken), new)
        chosen[:, j] = new
    return chosen
