"""The tables that the authors of UCE release beside the weights: tokens and places of genes."""

from __future__ import annotations

import pickle
import struct
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pandas as pd
import torch

from cfm.hub import load_torch
from cfm.hub._format import find_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_CHROMOSOMES, _OFFSETS, _PROTEINS = "species_chrom.csv", "species_offsets.pkl", "protein_embeddings"
#: Start of the names of the authors' protein embeddings by the names of their species.
SPECIES = {
    "human": "Homo_sapiens",
    "mouse": "Mus_musculus",
    "frog": "Xenopus_tropicalis",
    "zebrafish": "Danio_rerio",
    "mouse_lemur": "Microcebus_murinus",
    "pig": "Sus_scrofa",
    "macaca_fascicularis": "Macaca_fascicularis",
    "macaca_mulatta": "Macaca_mulatta",
}
#: Tokens before those of the chromosomes in the published models.
N_GENE_TOKENS = 143_574
GENE_COLUMNS = ("token", "chromosome", "start")
_AGAIN = "download it again."


def has_gene_files(folder: Path) -> bool:
    """Whether a folder holds the authors' table of genes and chromosomes."""
    return (folder / _CHROMOSOMES).is_file()


def check_genes(genes: pd.DataFrame, n_tokens: int, where: str) -> pd.DataFrame:
    """Check a table of genes and return it with whole numbers, ordered by token.

    Raises
    ------
    TypeError, ValueError
        If it is no table, lacks a column, names a gene or token twice, or points at tokens that
        the model does not have.
    """
    if not isinstance(genes, pd.DataFrame):
        raise TypeError(f"{where} is a {type(genes).__name__}; expected a DataFrame.")
    lacking = [c for c in GENE_COLUMNS if c not in genes]
    if lacking or genes.empty:
        raise ValueError(
            f"{where} has {len(genes)} rows and the columns {genes.columns.tolist()}; expected a "
            f"row per gene, named by its symbol, and the columns {list(GENE_COLUMNS)}."
        )
    table = genes.loc[:, list(GENE_COLUMNS)]
    if table.isna().any().any() or not all(pd.api.types.is_numeric_dtype(t) for t in table.dtypes):
        raise ValueError(f"{where} holds missing values or text; expected whole numbers.")
    table = table.astype(np.int64).sort_values("token", kind="stable")
    table.index = pd.Index(table.index.astype(str), name="gene")
    if table.index.has_duplicates or table["token"].duplicated().any():
        raise ValueError(f"{where} names a gene or a token more than once.")
    for column in ("token", "chromosome"):
        low, high = int(table[column].min()), int(table[column].max())
        if low <= 3 or high >= n_tokens:
            raise ValueError(
                f"{where} has {column} tokens from {low} to {high}; the model has tokens up to "
                f"{n_tokens - 1}, and the first four are no genes: the files belong to different "
                "releases."
            )
    return table


def read_gene_files(folder: Path, species: str, embeddings: Tensor) -> pd.DataFrame:
    """Read which token, chromosome and start each gene of a species has.

    Parameters
    ----------
    folder
        With ``species_chrom.csv``, ``species_offsets.pkl`` and ``protein_embeddings/``.
    species
        One of :data:`SPECIES`.
    embeddings
        ``(n_tokens, token_dim)``, against which the files are checked.

    Raises
    ------
    ValueError
        If a file is missing, damaged or unsafe, does not know the species, or belongs to another
        release.
    """
    if species not in SPECIES:
        raise ValueError(f"species={species!r}; expected one of {sorted(SPECIES)}.")
    path = find_file(folder, _CHROMOSOMES)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # also of pandas' own errors
        raise ValueError(
            f"{path} is no table of comma-separated values ({error}): {_AGAIN}"
        ) from error
    needed = ["species", "gene_symbol", "chromosome", "start"]
    if not set(needed) <= set(table.columns):
        raise ValueError(f"{path} has the columns {table.columns.tolist()}; expected {needed}.")
    chromosome = pd.Categorical(table["species"] + "_" + table["chromosome"])
    n_tokens = len(embeddings)
    first = N_GENE_TOKENS if n_tokens > N_GENE_TOKENS else n_tokens - len(chromosome.categories)
    table = table.assign(code=first + chromosome.codes.astype(np.int64))
    table["gene_symbol"] = table["gene_symbol"].str.upper()
    table = table[table["species"] == species].drop_duplicates("gene_symbol")
    symbols, proteins = _proteins(folder, species, embeddings.shape[1])
    offsets = _offsets(folder)
    if table.empty or species not in offsets:
        raise ValueError(
            f"{_CHROMOSOMES} or {_OFFSETS} in {folder} does not know the species {species!r}; "
            f"they know {sorted(offsets)}."
        )
    if not 0 <= offsets[species] <= n_tokens - len(symbols):
        raise ValueError(
            f"{_OFFSETS} in {folder} puts the {len(symbols)} genes of {species} at token "
            f"{offsets[species]}; the model has {n_tokens} tokens: the files belong to different "
            "releases."
        )
    token = pd.Series(np.arange(len(symbols)) + offsets[species], index=symbols)
    table = table.set_index("gene_symbol").join(token.rename("token"), how="inner")
    table["start"] = pd.to_numeric(table["start"], errors="coerce")
    if not table["start"].between(0, 2**53).all():
        raise ValueError(
            f"{path} has a start of a {species} gene that is no whole number: {_AGAIN}"
        )
    genes = pd.DataFrame(
        {
            "token": table["token"].astype(np.int64),
            "chromosome": table["code"],
            "start": table["start"].astype(np.int64),
        }
    )
    genes = check_genes(genes, n_tokens, f"what {folder} says of {species} genes")
    last = len(symbols) - 1
    for i in (0, last):
        if not torch.allclose(embeddings[offsets[species] + i], proteins[i].float(), atol=1e-4):
            raise ValueError(
                f"The token embeddings of {symbols[i]} differ from its protein embedding in "
                f"{folder / _PROTEINS}: the files belong to different releases."
            )
    return genes


def _proteins(folder: Path, species: str, width: int) -> tuple[list[str], dict[int, Tensor]]:
    """Names of the genes of a species in the order of their tokens, and the outermost rows."""
    place = folder / _PROTEINS
    found = sorted(place.glob(f"{SPECIES[species]}*ESM2*.pt")) if place.is_dir() else []
    if len(found) != 1:
        raise ValueError(
            f"{place} holds {len(found)} files {SPECIES[species]}*ESM2*.pt; expected the one of "
            "the authors (protein_embeddings.tar.gz), which says which token a gene has."
        )
    find_file(place, found[0].name)
    by_name = {str(k).upper(): v for k, v in load_torch(found[0]).items()}
    names, rows = list(by_name), list(by_name.values())
    if not rows or not all(isinstance(v, torch.Tensor) and v.shape == (width,) for v in rows):
        raise ValueError(
            f"{found[0]} holds other than {width} numbers for each gene: it is damaged or belongs "
            "to another release."
        )
    return names, {i: rows[i] for i in (0, len(names) - 1)}


class _NumbersOnly(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Reads pickles of plain containers, text and numbers; anything else is refused.

    In Python, as the one in C takes memory for as many entries as a few bytes claim.
    """

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def _offsets(folder: Path) -> dict[str, int]:
    """Read where the tokens of each species begin; nothing in the pickle can run."""
    if not (folder / _OFFSETS).is_file():
        raise ValueError(f"There is no {_OFFSETS} beside {_CHROMOSOMES} in {folder}; put it there.")
    path = find_file(folder, _OFFSETS)
    try:
        with path.open("rb") as file:
            offsets = _NumbersOnly(file).load()
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
        MemoryError,
        struct.error,
    ) as error:  # what a pickle raises depends on where its bytes stop making sense
        raise ValueError(
            f"{path} was refused because it is damaged or asks for more than numbers ({error}); "
            f"nothing in it was executed: {_AGAIN}"
        ) from error
    if not isinstance(offsets, dict) or not all(
        isinstance(k, str) and type(v) is int for k, v in offsets.items()
    ):
        raise ValueError(f"{path} does not hold a number for each species: {_AGAIN}")
    return offsets
