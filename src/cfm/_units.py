"""Whether expression is counts or logarithms: decided where values leave no doubt, or declared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from scipy import sparse

from cfm._adata import params_of
from cfm._arguments import check_choice
from cfm._fields import SIMULATION

if TYPE_CHECKING:
    from collections.abc import Iterable

Units = Literal["auto", "counts", "log"]
KnownUnits = Literal["counts", "log"]

#: Below this, fractional values look log-transformed: log2 of a million is 20.
LOG_CEILING = 30.0
#: Above this, values cannot be log2 expression: 2**64 copies of a transcript do not exist.
LOG2_LIMIT = 64.0
#: Library size that counts are brought to before the logarithm, as is usual for single cells.
LIBRARY = 1e4
#: ``uns`` key that :func:`scanpy.pp.log1p` writes.
_LOG1P = "log1p"
#: The largest usual library size, of TPM and CPM.
_LARGEST_LIBRARY = 1e6


def units_of(name: str, units: Units | Mapping[str, Units]) -> Units:
    """Return what the user declared for one matrix: the same for all, or by its name."""
    found = units.get(name, "auto") if isinstance(units, Mapping) else units
    return check_choice("units", found, get_args(Units))


def decide_units(
    blocks: Iterable[Any],
    units: Units = "auto",
    *,
    where: str,
    uns: Mapping[str, Any] | None = None,
) -> KnownUnits:
    """Decide whether a matrix holds counts or log expression.

    Whole numbers are counts. Fractional values are logarithms if ``expm1`` of all rows has the
    same sum, and counts if some exceed 30, which no logarithm does. Of other values, such as mean
    counts of few reads or logarithms of some of the genes, only a record can decide.

    Parameters
    ----------
    blocks
        Rows of the matrix, all genes of each: arrays or CSR.
    units
        What the user declared.
    where
        How to name the matrix in an error.
    uns
        ``uns`` of the AnnData if the matrix is its ``X``: :func:`scanpy.pp.log1p` and
        :func:`cfm.tl.simulate_perturbation` record there what they made.

    Raises
    ------
    ValueError
        If values are not finite, contradict ``units``, or leave both open.
    """
    check_choice("units", units, get_args(Units))
    values = _Summary(blocks, where)
    found, reason = values.decide()
    if units == "counts" and (values.smallest < 0 or found == "log"):
        raise ValueError(f"units='counts', but {where} holds {reason}.")
    counts = found == "counts" and values.largest > 0
    if units == "log" and (counts or values.largest > LOG2_LIMIT):
        raise ValueError(f"units='log', but {where} holds {reason}.")
    if units != "auto":
        return units
    if found is not None:
        return found
    uns = uns or {}
    recorded = params_of(uns, SIMULATION).get("units")
    if recorded == "counts" and values.smallest >= 0:
        return "counts"
    logs = recorded not in (None, "counts") and values.largest <= LOG2_LIMIT
    if logs or (_LOG1P in uns and values.are_log1p(uns[_LOG1P])):
        return "log"
    raise ValueError(f"{where} holds {reason}. Pass units='counts' or units='log'.")


class _Summary:
    """What one pass over a matrix finds."""

    def __init__(self, blocks: Iterable[Any], where: str) -> None:
        self.whole, self.smallest, self.largest = True, 0.0, 0.0
        sums, exponentials = [np.zeros(0)], [np.zeros(0)]
        for block in blocks:
            values = block.data if sparse.issparse(block) else block
            if not np.isfinite(values).all():
                raise ValueError(
                    f"{where} holds NaN or infinite values, and means of expression cannot be "
                    "formed; drop those genes or observations."
                )
            if not values.size:
                continue
            self.whole = self.whole and bool((values == np.rint(values)).all())
            self.smallest = min(self.smallest, float(values.min()))
            self.largest = max(self.largest, float(values.max()))
            sums.append(np.asarray(block.sum(axis=1, dtype=np.float64)).ravel())
            # beyond the ceiling there are no logarithms
            if self.largest <= LOG_CEILING:
                block = block.astype(np.float64)
                raised = block.expm1() if sparse.issparse(block) else np.expm1(block)
                exponentials.append(np.asarray(raised.sum(axis=1)).ravel())
        self._sums = np.concatenate(sums)
        self._exponentials = np.concatenate(exponentials)

    def decide(self) -> tuple[KnownUnits | None, str]:
        """Return the units if the values leave no doubt, and what was found."""
        span = f"from {self.smallest:.4g} to {self.largest:.4g}"
        if self.smallest < 0:
            return None, f"negative values ({span}), which are no counts"
        if self.whole:
            return "counts", "whole numbers only, which are counts"
        if self.largest > LOG_CEILING:
            if _same(self._sums, 1e-3):
                return None, (
                    f"fractional values {span} and every row sums to {self._sums.max():.6g}, as "
                    "normalised counts that are not logarithms (TPM, CPM)"
                )
            return "counts", f"values {span}, which no logarithm reaches"
        raised = self._exponentials[self._exponentials > 0]
        # logarithms of shares of all genes; rows that are all alike show nothing
        if np.allclose(raised, LIBRARY, rtol=1e-3) or (
            _same(raised, 1e-4) and not _same(self._sums, 1e-2)
        ):
            return "log", f"logarithms: expm1 of every row sums to {raised.max():.6g}"
        return None, (
            f"fractional values {span}, and expm1 of its rows sums to {raised.min():.4g} to "
            f"{raised.max():.4g}: small mean counts, or logarithms of some of the genes"
        )

    def are_log1p(self, record: Any) -> bool:
        """Return whether values can be what :func:`scanpy.pp.log1p` records that they are."""
        base = record.get("base") if isinstance(record, Mapping) else None
        most = np.log1p(_LARGEST_LIBRARY) / (1.0 if base is None else np.log(base))
        return self.smallest >= 0 and self.largest <= most


def _same(sums: np.ndarray, tolerance: float) -> bool:
    sums = sums[sums > 0]
    return sums.size > 0 and bool(np.ptp(sums) <= tolerance * sums.mean())
