"""Codes of cells beside those of a reference, by the same model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from cfm._fields import CODES, LABELLED, MAJORITY, PARAMS, PURITY
from cfm.data._warn import warn_user
from cfm.models import PretrainedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm.models import CodeModel
    from cfm.models.cellvq import Codebook
    from cfm.tl._codes._tables import UsedCodes

#: Below this share of cells in codes of the reference there is a warning.
_FEW = 0.5


def fingerprint(model: CodeModel, book: Codebook) -> str:
    """Return the SHA-256 of genes, codebook and all weights, which determine the codes.

    Codes of different models are unrelated. A newly trained model has no checkpoint with a SHA-256;
    its fingerprint is the same after saving and loading.
    """
    digest = hashlib.sha256("\n".join(model.vocabulary.genes).encode())
    if not isinstance(model, PretrainedModel):
        for array in (book.vectors, book.bits):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
    for name, tensor in sorted(model.module.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(flat.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ReferenceCodes:
    """Codes of a reference.

    Attributes
    ----------
    table
        The codes of the reference, by name.
    annotations
        Names of their annotations.
    params
        Parameters of their run.
    """

    table: pd.DataFrame
    annotations: list[str]
    params: Mapping[str, Any]

    @classmethod
    def read(cls, reference: object, key: str) -> ReferenceCodes:
        """Read the tables of :func:`cfm.tl.cell_codes`, from a reference or as they are."""
        stored = reference
        if isinstance(reference, AnnData):
            if key not in reference.uns:
                raise KeyError(
                    f"reference.uns has no {key!r}; run cfm.tl.cell_codes on the reference first, "
                    "or pass the tables: reference=other.uns['…']."
                )
            stored = reference.uns[key]
        if not isinstance(stored, Mapping):
            raise TypeError(
                f"reference is a {type(reference).__name__}; expected an AnnData with cell codes, "
                "or its uns['cell_code']."
            )
        params = stored.get(PARAMS)
        if not isinstance(params, Mapping) or not isinstance(stored.get(CODES), pd.DataFrame):
            raise ValueError(
                f"The reference holds {sorted(map(str, stored))}; expected what cfm.tl.cell_codes "
                "stores in uns['cell_code'], with 'params' and 'codes'."
            )
        table = stored[CODES]
        table = table.set_axis(table.index.astype(str), axis=0)
        annotations = [
            name.removesuffix(MAJORITY)
            for name in map(str, table.columns)
            if name.endswith(MAJORITY) and name.removesuffix(MAJORITY) + PURITY in table
        ]
        return cls(table, annotations, params)

    def check_same_model(self, record: Mapping[str, Any]) -> None:
        """Check that the codes of the reference are of the model of this record.

        Raises
        ------
        ValueError
            If it was another one.
        """
        for name in ("sha256", "fingerprint"):
            if record[name] and record[name] == self.params.get(name):
                return
        theirs, ours = (
            str(p.get("sha256") or p.get("fingerprint"))[:12] for p in (self.params, record)
        )
        raise ValueError(
            f"The codes of the reference come from another model ({self.params.get('model')!r}, "
            f"SHA-256 {theirs}…) than this one ({record['model']!r}, {ours}…), so equal "
            "numbers are unrelated; run cfm.tl.cell_codes on both with one model."
        )

    def compare(self, used: UsedCodes, book: Codebook) -> pd.DataFrame:
        """Return a row per code of these cells, as :func:`cfm.tl.cell_codes` stores it."""
        theirs = self.table.index.astype(np.int64).to_numpy()
        known = np.isin(used.numbers, theirs)
        cosine = book.vectors[used.numbers].astype(np.float64) @ book.vectors[theirs].T
        own = used.numbers[:, None] == theirs
        cosine[own] = 2.0  # codes of the reference are nearest to themselves
        nearest = np.round(cosine, 6).argmax(axis=1)
        similarity = np.where(known, 1.0, cosine[np.arange(len(cosine)), nearest])
        there = self.table.reindex(used.names)
        table = pd.DataFrame(
            {
                "n_cells": used.size.astype(np.int64),
                "share": used.size / used.size.sum(),
                "known": known,
                "n_cells_reference": there["n_cells"].fillna(0).astype(np.int64),
                "share_reference": there["share"].fillna(0.0).astype(np.float64),
                "nearest": self.table.index.to_numpy(dtype=object)[nearest],
                "nearest_similarity": similarity,
            },
            index=used.names,
        )
        for name in self.annotations:
            # missing for codes that the reference lacks
            labels = there[name + MAJORITY].astype(object)
            table[name + MAJORITY] = labels.where(labels.notna(), "").astype(str)
            table[name + PURITY] = there[name + PURITY].astype(np.float64)
            if name + LABELLED in there:
                table[name + LABELLED] = there[name + LABELLED].fillna(0).astype(np.int64)
        share = float(table.loc[known, "share"].sum())
        if share < _FEW:
            warn_user(
                f"Only {share:.0%} of the cells have a code that the reference has; the others "
                "get no annotation. See the column 'nearest' of the stored table."
            )
        return table

    def transferred(
        self, key: str, compared: pd.DataFrame, used: UsedCodes
    ) -> dict[str, pd.Categorical | np.ndarray]:
        """Return columns of ``obs``: the majority of a cell's code in the reference, its purity."""
        columns: dict[str, pd.Categorical | np.ndarray] = {}
        for name in self.annotations:
            labels = compared[name + MAJORITY].to_numpy(dtype=object)
            purity = compared[name + PURITY].to_numpy(dtype=np.float64)
            levels = sorted(set(labels) - {""})
            # place −1 (no code) selects the last element
            of_cell = np.append(labels, "")[used.place]
            places = pd.Index(levels, dtype=object).get_indexer(of_cell)
            columns[f"{key}_{name}"] = pd.Categorical.from_codes(
                places, categories=pd.Index(levels)
            )
            columns[f"{key}_{name}{PURITY}"] = np.append(purity, np.nan)[used.place]
        return columns


def check_new_columns(fixed: Sequence[str], made: Sequence[str]) -> None:
    """Check that columns with transferred annotations have unique names.

    Raises
    ------
    ValueError
        If a name is taken twice.
    """
    names = [*fixed, *made]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"The annotation of the reference would be written to obs[{twice[0]!r}], which "
            "is taken by another result; rename the annotation in the reference."
        )
