"""Published UCE weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from cfm.hub import load_torch
from cfm.hub._format import WEIGHTS_NAME, find_file, sha256_of_file
from cfm.models.uce._genes import N_GENE_TOKENS, has_gene_files, read_gene_files
from cfm.models.uce._sizes import UCESize
from cfm.nn._post_norm import TORCH_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pandas as pd
    from torch import Tensor

_TOKENS = "all_tokens.torch"
#: Chromosomes of all species, and the seed that draws their token embeddings.
_N_CHROMOSOMES, _CHROMOSOME_SEED = 1895, 23

_LAYER = re.compile(r"transformer_encoder\.layers\.(\d+)\.(.+)")
_PLAIN = {
    "pe_embedding": "token_embedding",
    "encoder": "token_projection",
    "decoder": "head",
    "binary_decoder": "expression_head",
    "gene_embedding_layer": "gene_projection",
}
_AGAIN = "download it again."


@dataclass(frozen=True)
class Published:
    """Published weights by our names; ``genes`` is ``None`` without the authors' tables."""

    name: str
    size: UCESize
    tensors: dict[str, Tensor]
    genes: pd.DataFrame | None
    sha256: str


def is_published(path: Path) -> bool:
    """Whether a folder or file looks like UCE as its authors release it."""
    if path.is_file():
        return path.suffix == ".torch" and path.name != _TOKENS
    return bool(_weight_files(path)) and not (path / WEIGHTS_NAME).is_file()


def read_published(path: Path, n_heads: int, species: str) -> Published:
    """Read and check the authors' files; see :meth:`cfm.models.UCE.from_pretrained`."""
    weights = path if path.is_file() else _only_weights(path)
    folder = weights.parent
    find_file(folder, weights.name)
    state = {k.removeprefix("module."): v for k, v in load_torch(weights).items()}
    if "pe_embedding.weight" not in state:
        state["pe_embedding.weight"] = _token_file(folder, weights)
    tensors = convert_state(state, str(weights))
    size = _sizes(tensors, n_heads, str(weights))
    genes = None
    if has_gene_files(folder):
        genes = read_gene_files(folder, species, tensors["token_embedding.weight"])
    return Published(weights.stem, size, tensors, genes, sha256_of_file(weights))


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
        generator = torch.Generator().manual_seed(_CHROMOSOME_SEED)
        drawn = torch.normal(0.0, 1.0, (_N_CHROMOSOMES, table.shape[1]), generator=generator)
        table = torch.cat([table, drawn])
    return table


def _weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.glob("*.torch") if p.is_file() and p.name != _TOKENS)


def _only_weights(folder: Path) -> Path:
    found = _weight_files(folder)
    if len(found) != 1:
        raise ValueError(
            f"{folder} holds {len(found)} files of weights *.torch {[p.name for p in found]}; "
            "expected one: give the path of the file that is meant."
        )
    return found[0]
