"""Published BulkFormer weights, in the authors' folder layout."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from cfm.data import GeneVocabulary, map_identifiers
from cfm.hub import Checkpoint, load_torch
from cfm.hub._checkpoint import find_file, sha256_of_file
from cfm.models._base import GENES_FILE
from cfm.models._load import read_gene_list, weights_file
from cfm.models.bulkformer._module import BulkFormerSize
from cfm.nn._genes import check_graph
from cfm.nn._performer import PERFORMER_NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

_GRAPH, _GRAPH_WEIGHTS = "G_tcga.pt", "G_tcga_weight.pt"
_GENES, _GENES_COLUMN = "bulkformer_gene_info.csv", "ensg_id"

_COPY = ".proj_updater.instance."
_COUNTER = ".proj_updater.calls_since_last_redraw"
_LAYER = re.compile(r"gb_formers\.(\d+)\.f\.(\d+)\.net\.layers\.0\.(.+)")
_BLOCK = re.compile(r"gb_formers\.(\d+)\.(.+)")

#: Our names by the authors': parts of the network, and tensors of a block.
_ONCE = {
    "gene_emb_onehot_layer": "gene_embedding",
    "gene_emb_proj": "gene_projection",
    "x_proj": "input_projection",
    "global_expr_proj": "sample_projection",
    "layernorm": "norm",
    "head": "head",
}
_OF_BLOCK = {
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
    "g.bias": "graph.bias",
    "g.lin.weight": "graph.linear.weight",
}
_AGAIN = "download it again, or convert it with the code that wrote it."


def read_published(path: Path, genes: Sequence[str] | None = None) -> Checkpoint:
    """Return the authors' files, checked, in the form of a checkpoint of this package.

    Parameters
    ----------
    path
        A folder with one ``bulkformer_*.pt``, ``G_tcga.pt``, ``G_tcga_weight.pt`` and, optional,
        ``bulkformer_gene_info.csv``; or that ``.pt`` file, beside the others.
    genes
        Ensembl ids of the genes, in order, instead of those of the folder.

    Raises
    ------
    ValueError
        If a file is missing, damaged or unsafe; if the weights are of another generation; if
        graph, gene list and weights do not fit each other.
    """
    weights = weights_file(path, "BulkFormer")
    folder = weights.parent
    state = {k.removeprefix("module."): v for k, v in load_torch(weights).items()}
    size, n_genes, tensors = convert_state(state, str(weights))
    edges = _one_tensor(folder, _GRAPH)
    edge_weights = _one_tensor(folder, _GRAPH_WEIGHTS).float()
    try:
        check_graph(edges, edge_weights, n_genes)
    except ValueError as error:
        raise ValueError(
            f"{_GRAPH} and {_GRAPH_WEIGHTS} in {folder} do not fit the {n_genes} genes of "
            f"{weights.name}: {error}"
        ) from error
    listed = None
    if (folder / _GENES).is_file():
        listed = read_gene_list(folder / _GENES, _GENES_COLUMN, n_genes)
    names = listed if genes is None else list(genes)
    if names is not None and len(names) != n_genes:
        raise ValueError(f"genes= names {len(names)} genes; the weights have {n_genes}.")
    symbols = [f"gene {i + 1}" for i in range(n_genes)]
    if names is not None:
        symbols = vocabulary_of(names).genes.tolist()
    return Checkpoint(
        name=weights.stem,
        path=folder,
        model="BulkFormer",
        config={"size": asdict(size), "n_gene_features": 0, "knows_genes": names is not None},
        tensors={
            **tensors,
            "gene_offset": torch.zeros(n_genes),
            "edges": edges,
            "edge_weights": edge_weights,
        },
        sha256=sha256_of_file(weights),
        files={GENES_FILE: "\n".join(symbols)},
    )


def convert_state(
    state: dict[str, object], where: str
) -> tuple[BulkFormerSize, int, dict[str, Tensor]]:
    """Turn the authors' state dict into sizes, number of genes and weights by our names.

    Raises
    ------
    ValueError
        If it is of another generation, or has unexpected entries, two versions of one tensor, or
        sizes that contradict each other.
    """
    plain = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if len(plain) != len(state):
        raise ValueError(f"{where} holds more than tensors; expected a state dict: {_AGAIN}")
    _check_generation(plain, where)
    plain = _without_copies(plain, where)
    tensors: dict[str, Tensor] = {}
    unknown = []
    for key, value in plain.items():
        ours = _our_name(key)
        if ours is None:
            unknown.append(key)
        else:
            tensors[ours] = value.float()
    if unknown:
        raise ValueError(
            f"{where} holds {len(unknown)} tensors that BulkFormer does not have (such as "
            f"{unknown[0]!r}); it is of another model or version."
        )
    size, n_genes = _sizes(tensors, where)
    return size, n_genes, tensors


def _check_generation(state: dict[str, Tensor], where: str) -> None:
    """Raise an error that names the generation, if it is not the supported one."""
    expected = "expected the five-size family of December 2025 (v2), which this version reads"
    if any(k.startswith(("performer.net.", "graph_block.")) for k in state) or (
        "expression_scale" in state
    ):
        raise ValueError(
            f"{where} is of the third generation of BulkFormer (v3, bulkformer-latest, also "
            f"V1Plus); {expected}. Use a checkpoint of that family."
        )
    blocks = any(k.startswith("gb_formers.") for k in state)
    if "gene_emb" in state or (blocks and "gene_emb_onehot_layer.weight" not in state):
        raise ValueError(
            f"{where} is of the first generation of BulkFormer (v1, May to October 2025, gene "
            f"identity from ESM2); {expected}. Use a checkpoint of that family."
        )
    if not blocks:
        raise ValueError(
            f"{where} does not hold weights of BulkFormer (no tensor is called gb_formers.…); "
            "give the folder of a released checkpoint."
        )


def _without_copies(state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Drop the authors' copies of tensors, after a check that they are equal."""
    kept = {k: v for k, v in state.items() if _COPY not in k and not k.endswith(_COUNTER)}
    for key, value in state.items():
        if _COPY not in key:
            continue
        original = kept.get(key.replace(_COPY, ".net."))
        if original is None or not torch.equal(original, value):
            raise ValueError(
                f"{where} stores two versions of one tensor, and {key!r} differs from its "
                f"original; the file is damaged: {_AGAIN}"
            )
    return kept


def _our_name(key: str) -> str | None:
    """Return our name of a tensor, ``None`` for an unknown one."""
    if key == "expr_emb.inv_freq":
        return "expression_embedding.frequencies"
    if match := _LAYER.fullmatch(key):
        block, layer, rest = match.groups()
        prefix = f"blocks.{block}.layers.{layer}."
        return prefix + PERFORMER_NAMES[rest] if rest in PERFORMER_NAMES else None
    if match := _BLOCK.fullmatch(key):
        block, rest = match.groups()
        return f"blocks.{block}.{_OF_BLOCK[rest]}" if rest in _OF_BLOCK else None
    part, _, rest = key.partition(".")
    return f"{_ONCE[part]}.{rest}" if part in _ONCE else None


def _sizes(tensors: dict[str, Tensor], where: str) -> tuple[BulkFormerSize, int]:
    """Return sizes and number of genes by the shapes of the weights."""
    try:
        n_genes, dim = tensors["gene_embedding.weight"].shape
        n_features, head_dim = tensors["blocks.0.layers.0.attention.features"].shape
        hidden = tensors["blocks.0.layers.0.ff_in.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{where} lacks weights of BulkFormer ({error}): {_AGAIN}") from error
    found = {
        tuple(int(n) for n in match.groups())
        for match in (re.match(r"blocks\.(\d+)\.layers\.(\d+)\.", k) for k in tensors)
        if match is not None
    }
    n_blocks, n_layers = (1 + max(numbers) for numbers in zip(*found, strict=True))
    if head_dim == 0 or dim % head_dim or hidden % dim or len(found) != n_blocks * n_layers:
        raise ValueError(
            f"{where} has weights whose sizes contradict each other (width {dim}, heads of "
            f"{head_dim} with {n_features} features, {n_blocks} × {n_layers} layers, and "
            f"{len(found)} are in the file): {_AGAIN}"
        )
    size = BulkFormerSize(
        dim=dim,
        n_layers=n_layers,
        n_heads=dim // head_dim,
        n_blocks=n_blocks,
        ff_mult=hidden // dim,
    )
    return size, n_genes


def _one_tensor(folder: Path, name: str) -> Tensor:
    """Read a file that holds one tensor."""
    if not (folder / name).is_file():
        raise ValueError(
            f"There is no {name} beside the weights in {folder}; BulkFormer needs the "
            f"co-expression graph its authors release with them ({_GRAPH}, {_GRAPH_WEIGHTS})."
        )
    find_file(folder, name)
    loaded = load_torch(folder / name)
    if list(loaded) != ["tensor"]:
        raise ValueError(f"{folder / name} holds a dictionary; expected one tensor: {_AGAIN}")
    return loaded["tensor"]


def vocabulary_of(ensembl_ids: Sequence[str]) -> GeneVocabulary:
    """Return a vocabulary of current symbols; a gene without a symbol of its own keeps its id."""
    symbols = pd.Index(map_identifiers(list(ensembl_ids), "human").symbol)
    taken = symbols.duplicated() | (symbols == "") | symbols.isin(ensembl_ids)
    return GeneVocabulary(np.where(taken, ensembl_ids, symbols).tolist())
