"""Readers of compound signatures and drug targets."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from cfm._adata import warn_user
from cfm.data import GeneVocabulary, map_identifiers
from cfm.data._matrix import get_matrix, row_blocks, to_dense

if TYPE_CHECKING:
    from collections.abc import Iterator

#: With fewer measured genes of signatures, ranks are among all genes of the data.
MIN_BACKGROUND = 1000
#: Share of measured genes of signatures below which there is a warning.
LOW_SHARE = 0.25

_SIDE = re.compile(r"^(?P<name>.*\S)[\s_.:|-]+(?P<side>up|dn|down)$", re.IGNORECASE)
_DIRECTIONS = {"up": 1, "down": -1, "dn": -1, "1": 1, "-1": -1, "+1": 1, "0": 0}
_COMPOUND = ("compound", "drug")


@dataclass(frozen=True)
class SignatureTable:
    """Up and down genes of signatures, as positions in one list of genes.

    Attributes
    ----------
    compounds
        ``(c,)`` names, in alphabetical order regardless of case.
    compound
        ``(m,)`` int64 compound of every signature, ascending.
    names
        ``(m,)`` names of the signatures.
    genes
        ``(g,)`` current gene symbols, or the given names if unknown.
    up, down
        ``(m, k)`` int64 positions in ``genes``, −1 = no gene.
    """

    compounds: np.ndarray
    compound: np.ndarray
    names: np.ndarray
    genes: pd.Index
    up: np.ndarray
    down: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


def compound_key(names: pd.Series) -> pd.Series:
    """Return names of compounds in a form for comparison."""
    return names.str.strip().str.casefold()


def read_signatures(signatures: Any, *, n_genes: int) -> SignatureTable:
    """Read signatures of any form; see :func:`cfm.tl.screen_drugs`.

    Parameters
    ----------
    signatures
        Path of a gmt file, tidy DataFrame or AnnData.
    n_genes
        Genes per side of a signature with values.

    Raises
    ------
    TypeError, KeyError, ValueError, FileNotFoundError
        If it is of another type, lacks a column, holds no usable signature, or is no file.
    """
    background: list[str] = []
    if isinstance(signatures, AnnData):
        table = _from_anndata(signatures, n_genes)
        background = signatures.var_names.astype(str).tolist()
    elif isinstance(signatures, pd.DataFrame):
        table = _from_frame(signatures, n_genes)
    elif isinstance(signatures, str) or hasattr(signatures, "__fspath__"):
        table = _from_gmt(Path(signatures))
    else:
        raise TypeError(
            f"signatures= is a {type(signatures).__name__}; expected the path of a gmt file, a "
            "DataFrame with compound, gene and direction, or an AnnData of signatures by genes."
        )
    table = _without_empty(table, ["compound", "signature", "gene"], "signatures")
    table = table[table["sign"] != 0]
    if table.empty:
        raise ValueError(
            "signatures= holds no gene that goes up or down; give up and down genes of at least "
            "one compound, such as cfm.datasets.cmap_signatures()."
        )
    return _tabulate(table, background)


def read_targets(targets: Any) -> pd.DataFrame:
    """Return unique pairs of ``key`` (compared name), ``compound`` and ``gene`` (symbol).

    Raises
    ------
    TypeError, KeyError, ValueError
        If it is no DataFrame, lacks a column, or is empty.
    """
    if not isinstance(targets, pd.DataFrame):
        raise TypeError(
            f"targets= is a {type(targets).__name__}; expected a DataFrame with the columns "
            "compound (or drug) and gene, such as cfm.datasets.drug_targets()."
        )
    names = compound_column(targets, "targets")
    table = pd.DataFrame({"compound": names, "gene": _column(targets, ("gene",), "targets")})
    table = _without_empty(table, ["compound", "gene"], "targets")
    if table.empty:
        raise ValueError("targets= has no row with a compound and a gene.")
    table["gene"] = symbols(table["gene"])
    table["key"] = compound_key(table["compound"])
    # The first spelling in the alphabet, independent of the order of rows.
    table["compound"] = table.groupby("key")["compound"].transform("min")
    unique = table.drop_duplicates(["key", "gene"]).sort_values(["key", "gene"])
    return unique[["key", "compound", "gene"]].reset_index(drop=True)


def _from_gmt(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"signatures={str(path)!r} is no file; give the path of a gmt.")
    packed = path.read_bytes()
    text = gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed
    frames, unnamed = [], []
    for line in text.decode("utf-8-sig").splitlines():
        name, *rest = line.split("\t")
        if not name.strip():
            continue
        found = _SIDE.match(name.strip())
        if found is None:
            unnamed.append(name)
            continue
        # The second field is a description; genes may carry a weight after a comma.
        genes = [gene.split(",")[0] for gene in rest[1:] if gene.strip()]
        sign = _DIRECTIONS[found["side"].lower()]
        frames.append(pd.DataFrame({"compound": found["name"], "gene": genes, "sign": sign}))
    if not frames:
        raise ValueError(
            f"No set of {path.name!r} has a direction; expected pairs such as NAME_UP and "
            f"NAME_DN, found {unnamed[:3]}."
        )
    if unnamed:
        warn_user(
            f"{len(unnamed)} sets of {path.name!r} have no direction (such as {unnamed[0]!r}) and "
            "are left out; expected names that end in _UP, _DN or _DOWN."
        )
    table = pd.concat(frames, ignore_index=True)
    return table.assign(signature=compound_key(table["compound"]))


def _from_frame(frame: pd.DataFrame, n_genes: int) -> pd.DataFrame:
    compound = _column(frame, _COMPOUND, "signatures")
    has_id = "signature" in frame
    table = pd.DataFrame(
        {
            "compound": compound,
            "signature": frame["signature"].to_numpy() if has_id else compound_key(compound),
            "gene": _column(frame, ("gene",), "signatures"),
        }
    )
    if "direction" in frame:
        return table.assign(sign=_directions(frame["direction"]))
    if "value" not in frame:
        raise KeyError(
            "signatures= has neither a column 'direction' (up or down, 1 or −1) nor 'value'; "
            f"it has {frame.columns.tolist()}."
        )
    value = pd.to_numeric(frame["value"], errors="coerce").to_numpy(np.float64)
    if np.isinf(value).any():
        raise ValueError("signatures= holds infinite values; expected finite ones, or NaN.")
    table = table.assign(value=np.nan_to_num(value)).dropna(subset=["compound", "gene"])
    table["gene"] = symbols(table["gene"].astype(str))
    # One row per gene, so that a repeated gene counts once among n_genes.
    columns = ["compound", "signature", "gene"]
    table = table.groupby(columns, dropna=False)[["value"]].mean().reset_index()
    table["sign"] = np.sign(table["value"]).astype(np.int64)
    strength = table["value"].abs()
    order = table.assign(strength=strength).sort_values(
        ["strength", "gene"], ascending=[False, True], kind="stable"
    )
    return order.groupby(["compound", "signature", "sign"], dropna=False).head(n_genes)


def _from_anndata(adata: AnnData, n_genes: int) -> pd.DataFrame:
    genes = adata.var_names.astype(str).to_numpy(dtype=object)
    name = adata.obs_names.astype(str)
    given = next((c for c in _COMPOUND if c in adata.obs), None)
    compound = name if given is None else adata.obs[given].astype(object)
    frames = []
    for rows, block in row_blocks(get_matrix(adata), 256):
        values = np.asarray(to_dense(block, np.float64))
        if np.isinf(values).any():
            raise ValueError("signatures= holds infinite values; expected finite ones, or NaN.")
        for offset, row in enumerate(np.nan_to_num(values)):
            at = rows.start + offset
            for sign in (1, -1):
                moved = np.flatnonzero(row * sign > 0)
                # Ties go by name.
                best = moved[np.lexsort((genes[moved].astype(str), -np.abs(row[moved])))][:n_genes]
                label = {"compound": compound.iloc[at] if given else name[at], "sign": sign}
                frames.append(pd.DataFrame({"gene": genes[best], "signature": name[at], **label}))
    columns = ["compound", "signature", "gene", "sign"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def _tabulate(table: pd.DataFrame, background: list[str]) -> SignatureTable:
    """Number compounds, signatures and genes, and return the sets as matrices."""
    table = table.assign(key=compound_key(table["compound"]), gene=symbols(table["gene"]))
    table = table.drop_duplicates(["key", "signature", "gene", "sign"])
    # A gene in both lists of a signature has no direction.
    table = table.drop_duplicates(["key", "signature", "gene"], keep=False)
    if table.empty:
        raise ValueError("Every gene of signatures= is in the up and in the down list.")
    table = table.sort_values(["key", "signature", "gene"], kind="stable")
    row = table.groupby(["key", "signature"], sort=True).ngroup().to_numpy()
    first = np.unique(row, return_index=True)[1]
    compound, keys = pd.factorize(table["key"].to_numpy()[first])
    spelling = table.groupby("key")["compound"].min()
    extra = symbols(pd.Series(background, dtype=object)) if background else table["gene"][:0]
    genes = pd.Index(sorted(set(table["gene"]) | set(extra)))
    position = genes.get_indexer(pd.Index(table["gene"]))
    sign = table["sign"].to_numpy()
    return SignatureTable(
        spelling[keys].to_numpy(dtype=object),
        compound.astype(np.int64),
        table["signature"].to_numpy(dtype=object)[first],
        genes,
        _rows(row[sign > 0], position[sign > 0], len(first)),
        _rows(row[sign < 0], position[sign < 0], len(first)),
    )


def _rows(row: np.ndarray, position: np.ndarray, n_rows: int) -> np.ndarray:
    """Return positions as rows padded with −1; ``row`` is ascending."""
    size = np.bincount(row, minlength=n_rows)
    start = np.cumsum(size) - size
    out = np.full((n_rows, max(1, int(size.max(initial=0)))), -1, dtype=np.int64)
    out[row, np.arange(len(row)) - start[row]] = position
    return out


def _column(frame: pd.DataFrame, names: tuple[str, ...], argument: str) -> pd.Series:
    for name in names:
        if name in frame:
            return frame[name].astype(object).reset_index(drop=True)
    raise KeyError(
        f"{argument}= has no column {' or '.join(map(repr, names))}; it has "
        f"{frame.columns.tolist()}."
    )


def compound_column(frame: pd.DataFrame, argument: str) -> pd.Series:
    """Return the column with the names of compounds."""
    return _column(frame, _COMPOUND, argument)


def _without_empty(table: pd.DataFrame, columns: list[str], argument: str) -> pd.DataFrame:
    """Convert names to text, and drop rows without a name."""
    empty = np.zeros(len(table), dtype=bool)
    out = table.copy()
    for column in columns:
        missing = table[column].isna().to_numpy()
        text = table[column].astype(str).str.strip()
        empty |= missing | (text == "").to_numpy()
        out[column] = text.astype(object)
    if empty.any():
        warn_user(
            f"{int(empty.sum())} of {len(table)} rows of {argument}= lack a name and are left out."
        )
    return out[~empty]


def _directions(column: pd.Series) -> np.ndarray:
    if column.isna().any():
        raise ValueError(
            f"{int(column.isna().sum())} rows of signatures= have no direction; drop them or fill "
            "it in."
        )
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return np.sign(column.to_numpy(np.float64)).astype(np.int64)
    text = column.astype(str).str.strip().str.lower()
    unknown = sorted(set(text) - set(_DIRECTIONS))
    if unknown:
        raise ValueError(
            f"signatures= has the directions {unknown[:3]}; expected 'up' and 'down', or 1 and −1."
        )
    return text.map(_DIRECTIONS).to_numpy(np.int64)


def symbols(names: pd.Series | pd.Index) -> np.ndarray:
    """Return current symbols; unknown names stay unchanged."""
    code, unique = pd.factorize(np.asarray(names, dtype=object))
    mapping = map_identifiers(unique.tolist())
    known = np.where(mapping.mapped, mapping.symbol, np.asarray(unique, dtype=object))
    return known[code]


def signed_rows(
    up: np.ndarray, down: np.ndarray, positions: np.ndarray, n_columns: int
) -> Iterator[np.ndarray]:
    """Yield each signature as a row of −1, 0 and 1.

    Parameters
    ----------
    up, down
        ``(m, k)`` positions of genes, −1 = none.
    positions
        ``(g,)`` column of every gene, −1 = none.
    n_columns
        Width of a row.
    """
    for i in range(len(up)):
        row = np.zeros(n_columns, dtype=np.float32)
        for genes, sign in ((up[i], 1.0), (down[i], -1.0)):
            columns = positions[genes[genes >= 0]]
            row[columns[columns >= 0]] = sign
        yield row


def on_genes(
    table: SignatureTable, adata: AnnData
) -> tuple[SignatureTable, np.ndarray, np.ndarray, float]:
    """Match signatures with the genes of the data.

    Returns the signatures with positions in the background genes, the names of these genes, their
    columns in ``adata``, and the measured share of the signatures' genes.
    """
    alignment = GeneVocabulary(table.genes.tolist()).align(adata.var_names, min_genes=0)
    if not len(alignment.columns):
        raise ValueError(
            f"None of the {len(table.genes)} genes of the signatures (such as {table.genes[0]}) is "
            f"among the {adata.n_vars} genes of the data (such as {adata.var_names[0]}); check "
            "that both hold gene symbols or Ensembl ids."
        )
    if alignment.found_share < LOW_SHARE:
        warn_user(
            f"Only {alignment.found_share:.0%} of the {len(table.genes)} genes of the signatures "
            "are in the data; reversal from so few is less certain."
        )
    columns = alignment.columns
    if len(columns) < MIN_BACKGROUND:
        others = np.setdiff1d(np.arange(adata.n_vars), columns)
        columns = np.concatenate([columns, others])
    labels = symbols(adata.var_names.astype(str))[columns]
    # Sorted by name: random draws are independent of the order of columns.
    order = np.argsort(labels.astype(str), kind="stable")
    columns, labels = columns[order], labels[order]
    place = np.full(adata.n_vars, -1, dtype=np.int64)
    place[columns] = np.arange(len(columns))
    moved = np.full(len(table.genes) + 1, -1, dtype=np.int64)  # the last entry is for "no gene"
    moved[alignment.positions] = place[alignment.columns]
    placed = replace(table, up=moved[table.up], down=moved[table.down])
    sides = ((placed.up >= 0).any(axis=1), (placed.down >= 0).any(axis=1))
    alone = int((sides[0] ^ sides[1]).sum())
    if alone:
        warn_user(
            f"{alone} of {len(table)} signatures have measured genes on one side only; they are "
            "scored by that side."
        )
    return placed, labels, columns, alignment.found_share
