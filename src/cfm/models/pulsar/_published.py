"""The files that the authors of PULSAR release: weights, settings and the tissue they are for."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cfm.hub import Checkpoint, load_safetensors
from cfm.hub._checkpoint import (
    LARGEST_JSON,
    WEIGHTS_NAME,
    find_file,
    read_card,
    read_limited,
    sha256_of_file,
)
from cfm.hub._resolve import CONFIG_NAME
from cfm.models.pulsar._module import PulsarSize
from cfm.nn._transformers import TORCH_NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_MODEL_TYPE = "PULSAR"
_LAYER = re.compile(r"(encoder|decoder)\.encoder\.layers\.(\d+)\.(.+)")
_TEMPLATE = re.compile(r"(encoder|decoder)\.layer\.(.+)")
#: What stands in front of the tensors of a head, and what kind of head it is.
_HEADS = {"classifier": "classification", "regression_head": "regression"}
#: Sizes by the names that the authors' config.json has for them.
_SIZES = {
    "input_size": "input_dim",
    "hidden_size": "dim",
    "encoder_num_hidden_layers": "encoder_layers",
    "encoder_num_attention_heads": "encoder_heads",
    "encoder_intermediate_size": "encoder_ff",
    "decoder_num_hidden_layers": "decoder_layers",
    "decoder_num_attention_heads": "decoder_heads",
    "decoder_intermediate_size": "decoder_ff",
    "cell_state_size": "n_cell_states",
}
#: Settings, with what the authors' code takes where config.json has none.
_SETTINGS: dict[str, tuple[str, Any]] = {
    "use_cell_state": ("use_cell_states", True),
    "cls_transform": ("cls_transform", False),
    "decoder_loop_num": ("decoder_loops", 1),
    "expansion_factor": ("head_factor", 4),
    "hidden_act": ("activation", "gelu"),
    "hidden_dropout_prob": ("dropout", 0.1),
    "layer_norm_eps": ("eps", 1e-12),
}
#: Tensors that keep their names.
_PLAIN = {
    "cell_state_embedding",
    "mask_embedding",
    "cls_embedding",
    "in_proj",
    "out_proj",
    "cls_transform",
    "mask_element",
    "in_proj_mask_embedding",
}
_AGAIN = "download it again."
#: Words that a tissue of blood has in it.
BLOOD = ("blood", "pbmc")
_EVERY_TISSUE = re.compile(r"all[-_ ]tissue|pan[-_ ]tissue", re.IGNORECASE)
_OF_BLOOD = re.compile(r"pbmc|peripheral blood", re.IGNORECASE)


def _read_json(path: Path) -> Any:
    return json.loads(read_limited(path, LARGEST_JSON).decode("utf-8"))


def read_published(folder: Path, name: str) -> Checkpoint:
    """Read and check ``config.json`` and ``model.safetensors`` of the authors.

    Parameters
    ----------
    folder
        With the files.
    name
        Of the checkpoint; it may contain the tissue.

    Raises
    ------
    ValueError
        If a file is missing or damaged, a setting is missing or unknown, or a tensor does not
        belong to PULSAR.
    """
    path = find_file(folder, CONFIG_NAME)
    config = _read_json(path)
    weights = find_file(folder, WEIGHTS_NAME)
    tensors, task = convert_state(load_safetensors(weights), str(weights))
    size = _read_size(config, tensors, str(path))
    if "mask_element" in tensors and size.masked_input:
        element = tensors["mask_element"].flatten()
        if element.numel() not in (1, size.input_dim):
            raise ValueError(
                f"mask_element in {weights} has {element.numel()} values; expected 1 or "
                f"{size.input_dim}: {_AGAIN}"
            )
        tensors["mask_element"] = element.expand(size.input_dim).clone()
    head = None
    if task is not None:
        n_outputs = tensors["head.2.bias"].numel() if "head.2.bias" in tensors else 0
        names = config.get("id2label") or {}
        if not isinstance(names, dict):
            raise ValueError(f"{path} has id2label={str(names)[:80]}; expected names: {_AGAIN}")
        outputs = [str(names.get(str(i), f"output {i}")) for i in range(n_outputs)]
        head = {"task": task, "outputs": outputs}
    card = read_card(folder)
    scope = scope_of(name, card)
    return Checkpoint(
        name=name,
        path=folder,
        model="Pulsar",
        config={"size": asdict(size), "head": head} | ({} if scope is None else {"scope": scope}),
        tensors=tensors,
        sha256=sha256_of_file(weights),
        card=card,
    )


def convert_state(state: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], str | None]:
    """Turn the authors' tensors into weights by our names, and the task of their head.

    Raises
    ------
    ValueError
        If a tensor does not belong to PULSAR.
    """
    tensors, task, unknown = {}, None, []
    for key, value in state.items():
        name = key.removeprefix("pulsar.")
        part, _, rest = name.partition(".")
        if part in _HEADS:
            task = _HEADS[part]
            tensors[f"head.{rest}"] = value.float()
        elif match := _LAYER.fullmatch(name):
            ours = TORCH_NAMES.get(match[3])
            tensors[f"{match[1]}.{match[2]}.{ours}"] = value.float()
            unknown += [key] if ours is None else []
        elif match := _TEMPLATE.fullmatch(name):
            ours = TORCH_NAMES.get(match[2])
            tensors[f"{match[1]}_template.0.{ours}"] = value.float()
            unknown += [key] if ours is None else []
        elif part in _PLAIN:
            tensors[name] = value.float()
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(
            f"{where} holds {len(unknown)} tensors that PULSAR does not have (such as "
            f"{unknown[0]!r}); it is of another model or version."
        )
    return tensors, task


def _read_size(config: dict[str, Any], tensors: dict[str, Tensor], where: str) -> PulsarSize:
    """Read the sizes from config.json, and those that it lacks from the weights."""
    lacking = [name for name in _SIZES if name not in config]
    if lacking:
        raise ValueError(f"{where} lacks {lacking}; it is not that of a released PULSAR: {_AGAIN}")
    values = {ours: config[theirs] for theirs, ours in _SIZES.items()}
    values |= {ours: config.get(theirs, usual) for theirs, (ours, usual) in _SETTINGS.items()}
    if config.get("use_decoder", True) is False:
        values["decoder_layers"] = 0
    masked = {"mask_element", "in_proj_mask_embedding.proj_1.weight"} <= tensors.keys()
    templates = any(name.startswith("encoder_template.") for name in tensors)
    try:
        return PulsarSize(**values, masked_input=masked, templates=templates)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} has a setting that does not fit ({error}): {_AGAIN}") from error


def scope_of(name: str, card: str | None) -> list[str] | None:
    """Return words of the tissues that a published checkpoint is for; ``None`` for any.

    Parameters
    ----------
    name
        Of the checkpoint; it decides before the card, which may name other checkpoints.
    card
        Its model card.
    """
    if _EVERY_TISSUE.search(name):
        return None
    if _OF_BLOOD.search(name) or _OF_BLOOD.search(card or ""):
        return list(BLOOD)
    return None
