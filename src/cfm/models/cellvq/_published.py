"""Published CellVQ weights, in the file of their authors."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from cfm.data import GeneVocabulary
from cfm.hub import Checkpoint, load_torch
from cfm.hub._checkpoint import sha256_of_file
from cfm.models._base import GENES_FILE
from cfm.models._load import read_gene_list, weights_file
from cfm.models.cellvq._module import N_COUNT_TOKENS, CellVQSize
from cfm.models.cellvq._property_heads import CLASSES_FILE, check_classes
from cfm.nn._performer import PERFORMER_NAMES
from cfm.nn._soft_codes import binary_numbers
from cfm.nn._transformers import TORCH_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

_GENES, _GENES_COLUMN = "OS_scRNA_gene_index.*.tsv", "gene_name"
#: Property heads, in the order that the authors list them.
_PROPERTIES = ("cell_type", "tissue", "disease", "sex", "age")

_ENCODER = re.compile(r"encoder\.transformer_encoder\.(\d+)\.(.+)")
_DECODER = re.compile(r"decoder\.performer\.net\.layers\.(\d+)\.(.+)")
#: Our names by the authors', of parts that exist once.
_PLAIN = {
    "token_emb.mlp.": "value_embedding.to_bins.",
    "token_emb.mlp2.": "value_embedding.mix.",
    "pos_emb.": "position_embedding.",
    "go_embed.": "relation_projection.",
    "encoder.norm.": "norm.",
    "cell_vq.embedding_mlp.": "quantiser.network.",
    "cell_vq.proj.": "quantiser.proj.",
    "cell_vq.proj_inv.": "quantiser.proj_inv.",
    "decoder_embed.": "decoder.projection.",
    "decoder.norm.": "decoder.norm.",
    "norm.": "decoder.output_norm.",
    "mean.": "decoder.heads.mean.",
    "disp.": "decoder.heads.dispersion.",
    "pi.": "decoder.heads.dropout.",
}
_ONE = {"go": "relation", "token_emb.emb.weight": "value_embedding.bins"}
#: Without influence on results: embeddings of mask and padding, a head for another loss, a counter.
_UNUSED = {
    "token_emb.emb_mask.weight",
    "token_emb.emb_pad.weight",
    "to_final.weight",
    "to_final.bias",
    "decoder.performer.calls_since_last_redraw",
}
_BITS = "cell_vq.embedding"
_AGAIN = "download it again."


def read_published(
    path: Path,
    mode: str = "m1",
    *,
    genes: Sequence[str] | None = None,
    properties: Mapping[str, Sequence[str]] | None = None,
) -> Checkpoint:
    """Return the authors' file, checked, in the form of a checkpoint of this package.

    Parameters
    ----------
    path
        ``models.ckpt`` or its folder; ``OS_scRNA_gene_index.19264.tsv`` beside it contains the
        names of the genes.
    mode
        Which weights of the file to read. Those that are float32 are not copied.
    genes
        Names of the genes, in order, instead of those of the folder.
    properties
        Names of the classes of the heads; by default ``"0"``, ``"1"``, ….

    Raises
    ------
    ValueError
        If the file is damaged, unsafe, of another model, or lacks the mode; if configuration,
        weights, gene list and arguments do not fit each other.
    """
    weights = weights_file(path, "CellVQ")
    loaded = load_torch(weights)
    where = str(weights)
    _check_layout(loaded, mode, where)
    size, n_genes, n_classes, tensors = convert_state(loaded[mode], loaded["config"], where)
    classes = {name: [str(i) for i in range(n)] for name, n in n_classes.items()}
    for name, given in check_classes(properties or {}).items():
        if len(given) != n_classes.get(name, 0):
            raise ValueError(
                f"properties= names {len(given)} classes of {name!r}; the weights have {n_classes}."
            )
        classes[name] = given
    files = {CLASSES_FILE: json.dumps(classes)}
    names = None if genes is None else list(genes)
    listed = sorted(weights.parent.glob(_GENES))
    if names is None and listed:
        names = read_gene_list(listed[0], _GENES_COLUMN, n_genes, sep="\t")
    if names is not None:
        files[GENES_FILE] = "\n".join(GeneVocabulary(names).genes)
    return Checkpoint(
        name=weights.stem,
        path=weights.parent,
        model="CellVQ",
        config={"size": asdict(size), "n_genes": n_genes},
        tensors=tensors,
        sha256=sha256_of_file(weights),
        files=files,
    )


def convert_state(
    state: Mapping[str, object], config: Mapping[str, Any], where: str
) -> tuple[CellVQSize, int, dict[str, int], dict[str, Tensor]]:
    """Return sizes, number of genes, classes per head, and weights by our names.

    Raises
    ------
    ValueError
        If it contains something that CellVQ does not have, or contradicts itself or the
        configuration.
    """
    tensors: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        name = str(key).removeprefix("module.")
        head, _, kind = name.partition(".")
        ours = _our_name(name)
        if not isinstance(value, torch.Tensor):
            unknown.append(key)
        elif name == _BITS:
            _check_bits(value, where)
        elif head in _PROPERTIES and kind in ("weight", "bias"):
            heads[name] = value.float()
        elif ours is not None:
            tensors[ours] = value.float() if value.is_floating_point() else value
        elif name not in _UNUSED:
            unknown.append(key)
    if unknown:
        raise ValueError(
            f"{where} holds {len(unknown)} entries that CellVQ does not have (such as "
            f"{unknown[0]!r}); it is of another model or version."
        )
    properties: dict[str, int] = {}
    for name in _PROPERTIES:
        kinds = [kind for kind in ("weight", "bias") if f"{name}.{kind}" in heads]
        if len(kinds) == 1:
            raise ValueError(f"{where} holds half of the head {name!r} ({kinds[0]}): {_AGAIN}")
        for kind in kinds:
            tensors[f"property_heads.{len(properties)}.{kind}"] = heads[f"{name}.{kind}"]
        if kinds:
            if heads[f"{name}.weight"].ndim != 2:
                raise ValueError(f"{where} has no matrix of weights of the head {name!r}: {_AGAIN}")
            properties[name] = heads[f"{name}.weight"].shape[0]
    size = _sizes(tensors, config, where)
    n_genes = tensors["position_embedding.weight"].shape[0] - N_COUNT_TOKENS - 1
    if n_genes < 1 or config.get("seq_len", n_genes + N_COUNT_TOKENS) != n_genes + N_COUNT_TOKENS:
        raise ValueError(
            f"{where} has weights for {n_genes} genes and {N_COUNT_TOKENS} count tokens, but a "
            f"configuration with seq_len={config.get('seq_len')!r}: {_AGAIN}"
        )
    return size, n_genes, properties, tensors


def _check_layout(loaded: dict[str, Any], mode: str, where: str) -> None:
    """Check that a file is a dictionary of a configuration and the weights of modes."""
    if not isinstance(loaded.get("config"), dict):
        other = (
            "these are the parts of scFoundation's file, which is another model"
            if {"gene", "cell"} & loaded.keys()
            else "the authors' file is a dictionary of config and weights"
        )
        raise ValueError(
            f"{where} has no config of CellVQ (it holds {sorted(map(str, loaded))[:5]}); {other}: "
            "download models.ckpt of CellVQ."
        )
    modes = sorted(str(k) for k, v in loaded.items() if k != "config" and isinstance(v, dict))
    if mode not in modes:
        raise ValueError(f"{where} has no weights of mode={mode!r}; it has {modes}.")


def _our_name(key: str) -> str | None:
    """Return our name of a tensor, ``None`` where there is none."""
    if key in _ONE:
        return _ONE[key]
    for pattern, names, ours in (
        (_ENCODER, TORCH_NAMES, "layers"),
        (_DECODER, PERFORMER_NAMES, "decoder.layers"),
    ):
        if match := pattern.fullmatch(key):
            return f"{ours}.{match[1]}.{names[match[2]]}" if match[2] in names else None
    for prefix, name in _PLAIN.items():
        if key.startswith(prefix):
            return name + key.removeprefix(prefix)
    return None


def _sizes(tensors: dict[str, Tensor], config: Mapping[str, Any], where: str) -> CellVQSize:
    """Return the sizes, from the shapes of the weights and the configuration."""
    try:
        dim = tensors["position_embedding.weight"].shape[1]
        features = tensors["decoder.layers.0.attention.features"]
        width = tensors["decoder.projection.weight"].shape[0]
        hidden, n_bits = tensors["quantiser.network.0.weight"].shape
        encoder, decoder = dict(config["encoder"]), dict(config["decoder"])
        size = CellVQSize(
            dim=dim,
            n_layers=_count(r"layers\.(\d+)\.", tensors),
            n_heads=encoder["heads"],
            ff_dim=tensors["layers.0.ff_in.bias"].shape[0],
            decoder_dim=width,
            decoder_layers=_count(r"decoder\.layers\.(\d+)\.", tensors),
            decoder_heads=width // features.shape[1],
            n_bins=tensors["value_embedding.bins"].shape[0],
            n_bits=n_bits,
            codebook_dim=hidden,
            codebook_layers=_count(r"quantiser\.network\.(\d+)\.running_mean", tensors),
            code_dim=tensors["quantiser.proj.bias"].shape[0],
            relation="full" if "relation" in tensors else "none",
            bin_alpha=float(config["bin_alpha"]),
        )
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{where} lacks weights or settings of CellVQ, or they contradict each other "
            f"({error}): {_AGAIN}"
        ) from error
    pairs = {
        "encoder hidden_dim": (encoder.get("hidden_dim"), size.dim),
        "encoder depth": (encoder.get("depth"), size.n_layers),
        "decoder hidden_dim": (decoder.get("hidden_dim"), size.decoder_dim),
        "decoder depth": (decoder.get("depth"), size.decoder_layers),
        "decoder heads": (decoder.get("heads"), size.decoder_heads),
        "bin_num": (config.get("bin_num"), size.n_bins),
    }
    wrong = [f"{k} {a!r} and {b}" for k, (a, b) in pairs.items() if a is not None and a != b]
    if wrong:
        raise ValueError(
            f"The configuration and the weights in {where} contradict each other "
            f"({'; '.join(wrong)}): {_AGAIN}"
        )
    return size


def _count(pattern: str, names: Iterable[str]) -> int:
    """Count the numbers that occur in names."""
    return len({m[1] for m in (re.match(pattern, name) for name in names) if m})


def _check_bits(found: Tensor, where: str) -> None:
    """Check that codes are numbered as here; otherwise cells would get other codes."""
    n_bits = found.shape[-1] if found.ndim == 2 else 0
    fits = 1 <= n_bits <= 20 and len(found) == 2**n_bits
    if not fits or not torch.equal(found.float(), binary_numbers(n_bits).float()):
        raise ValueError(
            f"{where} numbers its codes otherwise than CellVQ does ({_BITS} does not list all "
            f"binary numbers in order): it is damaged or of another version."
        )
