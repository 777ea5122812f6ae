"""The files that the authors of UCE release: weights, token embeddings and tables of genes."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
import torch

from cfm.data import map_identifiers
from cfm.hub import Checkpoint, load_torch
from cfm.hub._checkpoint import find_file, read_limited, sha256_of_file
from cfm.models._load import weights_file
from cfm.models.uce._data import GENE_COLUMNS, check_genes
from cfm.models.uce._module import UCESize
from cfm.nn._transformers import TORCH_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

#: Text file of a checkpoint with the table of genes.
GENES_TABLE = "genes.csv"
_TOKENS = "all_tokens.torch"
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
#: Chromosomes of all species, and the seed that draws their token embeddings.
_N_CHROMOSOMES, CHROMOSOME_SEED = 1895, 23

_LAYER = re.compile(r"transformer_encoder\.layers\.(\d+)\.(.+)")
_PLAIN = {
    "pe_embedding": "token_embedding",
    "encoder": "token_projection",
    "decoder": "head",
    "binary_decoder": "expression_head",
    "gene_embedding_layer": "gene_projection",
}
_AGAIN = "download it again."


def read_published(
    path: Path, n_heads: int = 20, species: str = "human", genes: pd.DataFrame | None = None
) -> Checkpoint:
    """Return the authors' files, checked, in the form of a checkpoint of this package.

    Parameters and errors are those of :meth:`cfm.models.UCE.from_pretrained`.
    """
    weights = weights_file(path, "UCE")
    folder = weights.parent
    state = {k.removeprefix("module."): v for k, v in load_torch(weights).items()}
    if "pe_embedding.weight" not in state:
        state["pe_embedding.weight"] = _token_file(folder, weights)
    tensors = convert_state(state, str(weights))
    size = _sizes(tensors, n_heads, str(weights))
    if genes is None and (folder / _CHROMOSOMES).is_file():
        genes = read_gene_files(folder, species, tensors["token_embedding.weight"])
        if species == "human":
            genes = _with_current_symbols(genes)
    files = {}
    if genes is not None:
        files[GENES_TABLE] = check_genes(genes, size.n_tokens, "genes").to_csv()
    return Checkpoint(
        name=weights.stem,
        path=folder,
        model="UCE",
        config={"size": vars(size), "species": species},
        tensors=tensors,
        sha256=sha256_of_file(weights),
        files=files,
    )


def convert_state(state: dict[str, Any], where: str) -> dict[str, Tensor]:
    """Turn the authors' state dict into weights by our names.

    Raises
    ------
    ValueError
        If it holds something that UCE does not have.
    """
    tensors: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        ours = _our_name(key)
        if ours is None or not isinstance(value, torch.Tensor):
            unknown.append(key)
        else:
            tensors[ours] = value.float()
    if "positions" in tensors and tensors["positions"].ndim == 3:
        tensors["positions"] = tensors["positions"].squeeze(1)
    if unknown:
        raise ValueError(
            f"{where} holds {len(unknown)} entries that UCE does not have (such as "
            f"{unknown[0]!r}); it is of another model or version."
        )
    return tensors


def _our_name(key: str) -> str | None:
    """Return our name of a tensor, ``None`` where there is none."""
    if match := _LAYER.fullmatch(key):
        ours = TORCH_NAMES.get(match[2])
        return None if ours is None else f"layers.{match[1]}.{ours}"
    if key == "pos_encoder.pe":
        return "positions"
    part, _, rest = key.partition(".")
    return f"{_PLAIN[part]}.{rest}" if part in _PLAIN and rest else None


def _sizes(tensors: dict[str, Tensor], n_heads: int, where: str) -> UCESize:
    """Read the sizes off the weights."""
    layers = _numbers(r"layers\.(\d+)\.", tensors)
    blocks = _numbers(r"expression_head\.(\d+)\.0\.", tensors)
    try:
        n_tokens, token_dim = tensors["token_embedding.weight"].shape
        expression = [tensors[f"expression_head.{i}.0.weight"].shape[0] for i in blocks]
        return UCESize(
            n_tokens=n_tokens,
            max_length=len(tensors["positions"]),
            token_dim=token_dim,
            dim=tensors["token_projection.0.weight"].shape[0],
            n_heads=n_heads,
            n_layers=len(layers),
            ff_dim=tensors["layers.0.ff_in.weight"].shape[0],
            output_dim=tensors["head.3.weight"].shape[0],
            head_dim=tensors["head.0.0.weight"].shape[0],
            expression_dims=tuple(expression),
        )
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{where} lacks weights of UCE ({error}): {_AGAIN}") from error


def _numbers(pattern: str, names: Iterable[str]) -> list[int]:
    """Return the numbers that occur in names, sorted."""
    return sorted({int(m[1]) for m in (re.match(pattern, name) for name in names) if m})


def _token_file(folder: Path, weights: Path) -> Tensor:
    """Read the token embeddings that weights may come without."""
    if not (folder / _TOKENS).is_file():
        raise ValueError(
            f"{weights} has no token embeddings (pe_embedding.weight), and there is no {_TOKENS} "
            "beside it; put that file of the authors there."
        )
    find_file(folder, _TOKENS)
    loaded = load_torch(folder / _TOKENS)
    if list(loaded) != ["tensor"] or loaded["tensor"].ndim != 2:
        raise ValueError(f"{folder / _TOKENS} holds no matrix of token embeddings: {_AGAIN}")
    table: Tensor = loaded["tensor"]
    if len(table) == N_GENE_TOKENS:  # those of the chromosomes are drawn, with a fixed seed
        generator = torch.Generator().manual_seed(CHROMOSOME_SEED)
        drawn = torch.normal(0.0, 1.0, (_N_CHROMOSOMES, table.shape[1]), generator=generator)
        table = torch.cat([table, drawn])
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
        If a file is missing, damaged or unsafe, lacks the species, or belongs to another
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
            f"{_CHROMOSOMES} or {_OFFSETS} in {folder} does not have the species {species!r}; "
            f"they have {sorted(offsets)}."
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
    genes = check_genes(genes, n_tokens, f"the table of {species} genes in {folder}")
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
            "the authors (protein_embeddings.tar.gz), whose order gives the token of each gene."
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


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain containers, text and numbers; every class and function is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it needs {module_name}.{global_name}")


def _offsets(folder: Path) -> dict[str, int]:
    """Read where the tokens of each species begin; nothing in the pickle can run."""
    if not (folder / _OFFSETS).is_file():
        raise ValueError(f"There is no {_OFFSETS} beside {_CHROMOSOMES} in {folder}; put it there.")
    path = find_file(folder, _OFFSETS)
    data = read_limited(path)
    try:
        # The unpickler would take memory for the lengths and places that a few bytes claim.
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) >= len(data):
                raise pickle.UnpicklingError("it numbers more entries than it has bytes")
        offsets = _PlainUnpickler(io.BytesIO(data)).load()
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
        MemoryError,
    ) as error:  # what a pickle raises depends on where its bytes stop making sense
        raise ValueError(
            f"{path} was refused because it is damaged or needs more than numbers ({error}); "
            f"nothing in it was executed: {_AGAIN}"
        ) from error
    if not isinstance(offsets, dict) or not all(
        isinstance(k, str) and type(v) is int for k, v in offsets.items()
    ):
        raise ValueError(f"{path} does not hold a number for each species: {_AGAIN}")
    return offsets


def _with_current_symbols(genes: pd.DataFrame) -> pd.DataFrame:
    """Give human genes, upper case in the authors' tables, their current symbols."""
    symbols = pd.Index(map_identifiers(genes.index.tolist(), "human").symbol)
    taken = symbols.duplicated(keep=False) | (symbols == "") | symbols.isin(genes.index)
    names = np.where(taken, genes.index, symbols)
    return genes.loc[:, list(GENE_COLUMNS)].set_axis(pd.Index(names, name="gene"))
