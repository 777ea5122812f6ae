"""Signatures and features of compounds in the forms that users have them, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from cfm.data._matrix import get_matrix, row_blocks, to_dense
from cfm.data._warn import warn_user

if TYPE_CHECKING:
    from cfm.data import GeneVocabulary

#: Fewer compounds teach nothing of others.
MIN_COMPOUNDS = 4


@dataclass(frozen=True)
class Signatures:
    """Changes by compounds.

    Attributes
    ----------
    compound
        ``(n,)`` object, the compound of each signature as compared (:func:`compound_key`).
    sample
        ``(n,)`` object, name of its baseline sample, ``""`` if it was not said.
    positions
        ``(g,)`` int64 places in the vocabulary, ascending; genes that some signature measures.
    values
        ``(n, g)`` float32 change, ``NaN`` = not known.
    signed
        Whether values are directions. Then 0 says "not among the strongest".
    """

    compound: np.ndarray
    sample: np.ndarray
    positions: np.ndarray
    values: np.ndarray
    signed: bool

    def only(self, rows: np.ndarray) -> Signatures:
        """Return some of them."""
        return Signatures(
            self.compound[rows], self.sample[rows], self.positions, self.values[rows], self.signed
        )


def compound_key(name: object) -> str:
    """Return the form in which names of compounds are compared."""
    return str(name).strip().casefold()


def read_signatures(signatures: Any, vocabulary: GeneVocabulary) -> Signatures:
    """Read signatures; see :meth:`BulkFormer.train_compounds`.

    Raises
    ------
    TypeError, KeyError, ValueError
        If they are of no known form, lack a column, hold values that cannot be used, or share
        no gene with the model.
    """
    if isinstance(signatures, AnnData):
        table, signed = _of_anndata(signatures), False
    elif isinstance(signatures, pd.DataFrame):
        signed = "effect" not in signatures
        table = _of_frame(signatures, "direction" if signed else "effect")
    else:
        raise TypeError(
            f"signatures= is a {type(signatures).__name__}; expected a DataFrame with compound, "
            "gene and direction (or effect), or an AnnData of compounds by genes."
        )
    alignment = vocabulary.align(table.columns)
    order = np.argsort(alignment.positions)
    values = table.to_numpy(dtype=np.float32)[:, alignment.columns[order]]
    if np.isinf(values).any():
        raise ValueError("signatures= holds infinite values; drop them.")
    if signed:
        values = np.nan_to_num(values, nan=0.0)
    kept = ~np.isnan(values).all(axis=1) & (np.nan_to_num(values) != 0).any(axis=1)
    if not kept.any():
        raise ValueError("No signature says anything of the model's genes.")
    index, values = table.index[kept], values[kept]
    measured = ~np.isnan(values).all(axis=0)
    return Signatures(
        index.get_level_values(0).to_numpy(dtype=object),
        index.get_level_values(1).to_numpy(dtype=object),
        alignment.positions[order][measured].astype(np.int64),
        values[:, measured],
        signed,
    )


def read_features(features: Any) -> pd.DataFrame:
    """Return features of compounds, compared names by features: as given, or made of targets.

    Raises
    ------
    TypeError, ValueError
        If it is no table of numbers nor of compounds and their target genes.
    """
    if not isinstance(features, pd.DataFrame):
        raise TypeError(
            f"features= is a {type(features).__name__}; expected a DataFrame, compounds by "
            "features, or with the columns compound and gene (such as "
            "cfm.datasets.drug_targets())."
        )
    if {"compound", "gene"} <= set(features.columns):
        table = pd.crosstab(features["compound"].map(compound_key), features["gene"])
        table = (table > 0).astype(np.float32)
        # Unit length: a compound with many targets is not a stronger one.
        return table.div(np.sqrt(table.sum(axis=1)), axis=0)
    table = features.set_axis([compound_key(c) for c in features.index], axis=0)
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()].unique()[:5].tolist()
        raise ValueError(f"features= has more than one row for {twice} (case does not matter).")
    try:
        table = table.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"features= holds something else than numbers ({error}).") from error
    if not np.isfinite(table.to_numpy()).all() or not table.shape[1]:
        raise ValueError("features= holds NaN or infinite values, or no column.")
    return table.set_axis([str(c) for c in table.columns], axis=1)


def with_features(signatures: Signatures, features: pd.DataFrame | None) -> Signatures:
    """Keep the signatures of compounds that have features, and say how many do not.

    Raises
    ------
    ValueError
        If too few compounds are left to learn from.
    """
    known = np.ones(len(signatures.compound), dtype=bool)
    if features is not None:
        known = pd.Index(signatures.compound).isin(features.index)
    lost = len(set(signatures.compound[~known]))
    found = len(set(signatures.compound[known]))
    if found < MIN_COMPOUNDS:
        raise ValueError(
            f"Found {found} compounds with a signature{'' if features is None else ' and features'}"
            f"; at least {MIN_COMPOUNDS} are needed. Check that names agree (case does not matter)."
        )
    if lost:
        warn_user(f"{lost} of {lost + found} compounds have no features and are left out.")
    return signatures.only(np.flatnonzero(known))


def _of_frame(table: pd.DataFrame, column: str) -> pd.DataFrame:
    missing = [c for c in ("compound", "gene", column) if c not in table]
    if missing:
        raise KeyError(
            f"signatures= has the columns {table.columns.tolist()}; it lacks {missing}: expected "
            "compound, gene, and direction (1 or −1) or effect."
        )
    values = pd.to_numeric(table[column], errors="coerce")
    if values.isna().any():
        raise ValueError(f"signatures= holds {int(values.isna().sum())} {column}s that are none.")
    if column == "direction" and not values.isin([-1, 0, 1]).all():
        raise ValueError(
            "signatures= holds directions other than −1, 0 and 1; call the column 'effect' if "
            "these are sizes."
        )
    sample = table["sample"].astype(str) if "sample" in table else ""
    tidy = pd.DataFrame(
        {
            "compound": table["compound"].map(compound_key),
            "sample": sample,
            "signature": table["signature"].astype(str) if "signature" in table else "",
            "gene": table["gene"].astype(str),
            "value": values.astype(np.float32),
        }
    )
    if tidy.empty:
        raise ValueError("signatures= has no row.")
    return tidy.pivot_table(
        index=["compound", "sample", "signature"], columns="gene", values="value"
    )


def _of_anndata(adata: AnnData) -> pd.DataFrame:
    blocks = row_blocks(get_matrix(adata))
    values = np.concatenate([to_dense(block, np.float32) for _, block in blocks])
    names = adata.obs.get("compound", adata.obs_names)
    sample = adata.obs["sample"].astype(str) if "sample" in adata.obs else [""] * adata.n_obs
    index = pd.MultiIndex.from_arrays([[compound_key(n) for n in names], list(sample)])
    return pd.DataFrame(values, index=index, columns=adata.var_names.astype(str))
