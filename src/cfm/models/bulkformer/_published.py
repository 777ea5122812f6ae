"""Published BulkFormer weights, in the authors' folder layout."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from cfm.data import GeneVocabulary, map_identifiers
from cfm.hub import Checkpoint, load_torch
from cfm.hub._checkpoint import LARGEST_JSON, find_file, read_limited, sha256_of_file
from cfm.models._base import GENES_FILE
from cfm.models._load import read_gene_list, weights_file
from cfm.models.bulkformer._latest import BulkFormerLatestSize
from cfm.models.bulkformer._module import BulkFormerSize
from cfm.nn import RotaryExpressionEmbedding
from cfm.nn._genes import check_graph
from cfm.nn._performer import PERFORMER_NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor


class _Files(NamedTuple):
    """Names of the files that belong to the weights of one version.

    Attributes
    ----------
    version
        Name of the version.
    graph, graph_weights
        Edges of the graph, and their weights.
    genes, genes_column
        Gene list, and its column of Ensembl ids.
    """

    version: str
    graph: str
    graph_weights: str
    genes: str
    genes_column: str

    @property
    def names(self) -> tuple[str, str, str]:
        """Names of all files."""
        return self.graph, self.graph_weights, self.genes


_V2 = _Files(
    "v2 (five sizes, December 2025)",
    "G_tcga.pt",
    "G_tcga_weight.pt",
    "bulkformer_gene_info.csv",
    "ensg_id",
)
_V3 = _Files(
    "v3 (bulkformer-latest, October 2026)",
    "edge_index.pt",
    "edge_weight.pt",
    "gene_vocab.csv",
    "canonical_ensg",
)
#: Size and SHA-256 of each file of v3.
_MANIFEST = "manifest.json"
#: Settings of v3 that no shape tells, and the values that the network has.
_LATEST_SETTINGS = {
    "expression_base": 100.0,
    "mask_value": -10.0,
    "mask_ratio_scaling_enabled": True,
    "mask_ratio_reference": 0.1,
    "mask_ratio_max_scale": 2.0,
    "mask_ratio_min_visible_fraction": 0.05,
}

_COPY = ".proj_updater.instance."
_COUNTER = ".proj_updater.calls_since_last_redraw"
_LAYER = re.compile(r"gb_formers\.(\d+)\.f\.(\d+)\.net\.layers\.0\.(.+)")
_BLOCK = re.compile(r"gb_formers\.(\d+)\.(.+)")
_LATEST_LAYER = re.compile(r"performer\.net\.layers\.(\d+)\.(.+)")

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
#: The same of v3.
_LATEST_ONCE = {
    "gene_embedding": "gene_embedding",
    "input_norm": "input_projection",
    "graph_block.norm": "blocks.0.bottleneck.norm",
    "graph_block.input_projection": "blocks.0.bottleneck.down",
    "graph_block.convolution.lin": "blocks.0.bottleneck.linear",
    "graph_block.output_projection": "blocks.0.bottleneck.up",
    "pre_performer_norm": "blocks.0.norm",
    "output_norm": "norm",
    "expression_head.0": "head.0",
    "expression_head.3": "head.3",
}
_LATEST_ALONE = {
    "expression_scale": "expression_scale",
    "graph_block.residual_scale": "blocks.0.bottleneck.scale",
}
_AGAIN = "download it again, or convert it with the code that wrote it."


def read_published(path: Path, genes: Sequence[str] | None = None) -> Checkpoint:
    """Return the authors' files, checked, in the form of a checkpoint of this package.

    Parameters
    ----------
    path
        A folder with one ``bulkformer_*.pt``, ``G_tcga.pt``, ``G_tcga_weight.pt`` and, optional,
        ``bulkformer_gene_info.csv`` (v2); or with ``model.pt``, ``edge_index.pt``,
        ``edge_weight.pt`` and, optional, ``gene_vocab.csv`` and ``manifest.json`` (v3); or that
        ``.pt`` file, beside the others.
    genes
        Ensembl ids of the genes, in order, instead of those of the folder.

    Raises
    ------
    ValueError
        If a file is missing, damaged or unsafe; if the weights are of v1; if graph, gene list and
        weights do not fit each other or are of different versions.
    """
    weights = weights_file(path, "BulkFormer", (r"bulkformer.*\.pt", r"model\.pt"))
    folder = weights.parent
    size, n_genes, tensors = convert_state(_state_of(load_torch(weights), weights), str(weights))
    is_latest = isinstance(size, BulkFormerLatestSize)
    files = _V3 if is_latest else _V2
    _check_together(folder, weights, files)
    edges = _one_tensor(folder, files.graph, files)
    edge_weights = _one_tensor(folder, files.graph_weights, files).float()
    if is_latest and edges.ndim == 2:
        edges = edges.long().flip(0)  # the authors' row 0 is the source
    try:
        check_graph(edges, edge_weights, n_genes)
    except ValueError as error:
        raise ValueError(
            f"{files.graph} and {files.graph_weights} in {folder} do not fit the {n_genes} genes "
            f"of {weights.name}: {error}"
        ) from error
    listed = None
    if (folder / files.genes).is_file():
        listed = read_gene_list(folder / files.genes, files.genes_column, n_genes)
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


def _state_of(loaded: dict[str, Any], weights: Path) -> dict[str, object]:
    """Return the state dict of a file of weights; that of v3 lies beside its settings."""
    if "architecture" in loaded and isinstance(loaded.get("model"), dict):
        given = loaded.get("model_config")
        settings = given if isinstance(given, dict) else {}
        for name, expected in _LATEST_SETTINGS.items():
            if settings.get(name, expected) != expected:
                raise ValueError(
                    f"{weights} was trained with {name}={settings[name]!r}; the network here has "
                    f"{expected!r}, and would give other numbers."
                )
        loaded = loaded["model"]
    return {str(k).removeprefix("module."): v for k, v in loaded.items()}


def _check_together(folder: Path, weights: Path, files: _Files) -> None:
    """Refuse files of another version beside the weights, and files that were exchanged.

    Raises
    ------
    ValueError
        If a file of the other version lies there, or one differs from ``manifest.json``.
    """
    other = _V2 if files is _V3 else _V3
    strange = [name for name in other.names if (folder / name).exists()]
    if strange:
        raise ValueError(
            f"{weights.name} holds weights of {files.version}, but {', '.join(strange)} in "
            f"{folder} belong to {other.version}, which has other genes in another order. With "
            f"these weights belong {', '.join(files.names)} of the same release; keep each version "
            "in a folder of its own."
        )
    if files is _V2 or not (folder / _MANIFEST).is_file():
        return
    try:
        manifest = json.loads(read_limited(find_file(folder, _MANIFEST), LARGEST_JSON))
        digests = {name: manifest["files"][name]["sha256"] for name in (*files.names, weights.name)}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{folder / _MANIFEST} is no manifest of bulkformer-latest ({error}): {_AGAIN}"
        ) from error
    for name, digest in digests.items():
        if (folder / name).is_file() and sha256_of_file(find_file(folder, name)) != digest:
            raise ValueError(
                f"{folder / name} differs from the file that {_MANIFEST} names: it is damaged or "
                "of another release. Download all files of one release again."
            )


def convert_state(
    state: dict[str, object], where: str
) -> tuple[BulkFormerSize | BulkFormerLatestSize, int, dict[str, Tensor]]:
    """Turn the authors' state dict into sizes, number of genes and weights by our names.

    Raises
    ------
    ValueError
        If it is of v1, or has unexpected entries, two versions of one tensor, or sizes that
        contradict each other.
    """
    plain = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if len(plain) != len(state):
        raise ValueError(f"{where} holds more than tensors; expected a state dict: {_AGAIN}")
    is_latest = _is_latest(plain, where)
    plain = _without_copies(plain, where)
    tensors: dict[str, Tensor] = {}
    unknown = []
    for key, value in plain.items():
        ours = _our_latest_name(key) if is_latest else _our_name(key)
        if ours is None:
            unknown.append(key)
        else:
            tensors[ours] = value.float()
    if unknown:
        raise ValueError(
            f"{where} holds {len(unknown)} tensors that BulkFormer does not have (such as "
            f"{unknown[0]!r}); it is of another model or version."
        )
    if is_latest:
        latest, n_genes = _latest_sizes(tensors, where)
        with torch.no_grad():
            codes = RotaryExpressionEmbedding(latest.dim)
        tensors["expression_embedding.frequencies"] = codes.frequencies.detach()
        return latest, n_genes, tensors
    size, n_genes = _sizes(tensors, where)
    return size, n_genes, tensors


def _is_latest(state: dict[str, Tensor], where: str) -> bool:
    """Return whether weights are of v3, not of v2.

    Raises
    ------
    ValueError
        If they are of neither.
    """
    if any(k.startswith(("performer.net.", "graph_block.")) for k in state) or (
        "expression_scale" in state
    ):
        return True
    expected = f"expected {_V2.version} or {_V3.version}"
    blocks = any(k.startswith("gb_formers.") for k in state)
    if "gene_emb" in state or (blocks and "gene_emb_onehot_layer.weight" not in state):
        raise ValueError(
            f"{where} is of the first generation of BulkFormer (v1, May to October 2025, gene "
            f"identity from ESM2); {expected}. Use a checkpoint of those."
        )
    if not blocks:
        raise ValueError(
            f"{where} does not hold weights of BulkFormer (no tensor is called gb_formers.…); "
            "give the folder of a released checkpoint."
        )
    return False


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


def _our_latest_name(key: str) -> str | None:
    """Return our name of a tensor of v3, ``None`` for an unknown one."""
    if match := _LATEST_LAYER.fullmatch(key):
        layer, rest = match.groups()
        return (
            f"blocks.0.layers.{layer}.{PERFORMER_NAMES[rest]}" if rest in PERFORMER_NAMES else None
        )
    part, _, rest = key.rpartition(".")
    return f"{_LATEST_ONCE[part]}.{rest}" if part in _LATEST_ONCE else _LATEST_ALONE.get(key)


def _latest_sizes(tensors: dict[str, Tensor], where: str) -> tuple[BulkFormerLatestSize, int]:
    """Return sizes of v3 and number of genes by the shapes of the weights."""
    layer = "blocks.0.layers.0."
    try:
        n_genes, dim = tensors["gene_embedding.weight"].shape
        n_features, head_dim = tensors[layer + "attention.features"].shape
        hidden = tensors[layer + "ff_in.weight"].shape[0]
        graph_dim = tensors["blocks.0.bottleneck.down.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{where} lacks weights of BulkFormer ({error}): {_AGAIN}") from error
    numbers = {int(m[1]) for k in tensors if (m := re.match(r"blocks\.0\.layers\.(\d+)\.", k))}
    n_layers = 1 + max(numbers)
    if (
        not head_dim
        or not dim
        or dim % 2
        or dim % head_dim
        or not hidden
        or hidden % dim
        or (n_layers != len(numbers) or not n_features or not graph_dim)
    ):
        raise ValueError(
            f"{where} has weights whose sizes contradict each other (width {dim}, heads of "
            f"{head_dim} with {n_features} features, {n_layers} layers, and {len(numbers)} are in "
            f"the file): {_AGAIN}"
        )
    size = BulkFormerLatestSize(
        dim=dim,
        n_layers=n_layers,
        n_heads=dim // head_dim,
        ff_mult=hidden // dim,
        n_features=n_features,
        graph_dim=graph_dim,
    )
    return size, n_genes


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


def _one_tensor(folder: Path, name: str, files: _Files) -> Tensor:
    """Read a file that holds one tensor."""
    if not (folder / name).is_file():
        raise ValueError(
            f"There is no {name} beside the weights in {folder}; BulkFormer needs the "
            f"co-expression graph its authors release with them ({files.graph}, "
            f"{files.graph_weights} for weights of {files.version})."
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
