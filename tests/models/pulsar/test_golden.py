"""Published weights give the published numbers, through the calls that a user makes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cfm.models import Pulsar
from cfm.models.pulsar import SIZES, PulsarModule
from cfm.nn._transformers import TORCH_NAMES
from tests._golden import assert_close, io_of
from tests._pulsar import GOLDEN

io = partial(io_of, "pulsar")

TINY, CLASSIFIER = GOLDEN / "PULSAR-tiny", GOLDEN / "PULSAR-classifier"


@cache
def model() -> Pulsar:
    return Pulsar.from_pretrained(TINY)


@pytest.mark.parametrize("gradients", [True, False])
def test_encoder_and_decoder(gradients: bool) -> None:
    module = model().module
    with torch.set_grad_enabled(gradients):
        encoded = module.encode(io()["cells"])
        assert_close(encoded, io()["encoded"])
        cls, latents = encoded[:, 0], io()["decoder_cell_latents"]
        assert_close(cls, io()["donor_embedding"])
        assert_close(module.decode(cls, latents), io()["decoded"])
        assert_close(module.decode(cls.unsqueeze(1), latents), io()["decoded"])
        with_state = module.decode(cls, latents, cell_state_ids=io()["cell_state_ids"])
        assert_close(with_state, io()["decoded_with_state"])


def test_the_fast_way_gives_the_same() -> None:
    assert_close(model().module.embed(list(io()["cells"])), io()["donor_embedding"])


def test_the_classifier() -> None:
    found = Pulsar.from_pretrained(CLASSIFIER)
    with torch.no_grad():
        assert_close(found.module.predict(io()["cells"]), io()["class_logits"])
    assert found.head == {"task": "classification", "outputs": [f"LABEL_{i}" for i in range(5)]}


def variant(tmp_path: Path, changes: dict, tensors: dict | None = None, drop: str = "") -> Path:
    """Copy the golden checkpoint with changed settings and further or fewer tensors."""
    folder = tmp_path / "variant"
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {k: v for k, v in config.items() if v != "drop"}
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors") | (tensors or {})
    state = {k: v for k, v in state.items() if not (drop and k.startswith(drop))}
    save_file(state, folder / "model.safetensors")
    return folder


def projector(name: str, n_in: int, n_out: int) -> dict[str, torch.Tensor]:
    sizes = {"proj_1": (n_in, n_in), "proj_2": (n_out, n_in)}
    return {f"{name}.{k}.weight": torch.randn(v) for k, v in sizes.items()} | {
        f"{name}.{k}.bias": torch.randn(v[0]) for k, v in sizes.items()
    }


def test_variants(tmp_path: Path) -> None:
    """What other released checkpoints have: a transform, loops, training heads, no templates."""
    extra = projector("cls_transform", 32, 32)
    found = Pulsar.from_pretrained(variant(tmp_path, {"cls_transform": True}, extra)).module
    cls = expected = io()["donor_embedding"]
    for part in ("proj_1", "proj_2"):
        inside = expected if part == "proj_1" else torch.relu(expected)
        weight, bias = (extra[f"cls_transform.{part}.{kind}"] for kind in ("weight", "bias"))
        expected = inside @ weight.T + bias
    with torch.no_grad():
        assert_close(found.transform(cls), expected)
        twice = Pulsar.from_pretrained(variant(tmp_path / "2", {"decoder_loop_num": 2})).module
        latents = io()["decoder_cell_latents"]
        x = torch.cat([cls.unsqueeze(1), latents], 1)
        for layer in twice.decoder:
            x = layer(x)
        assert_close(twice.decode(cls, latents), model().module.decode(cls, x[:, 1:]))
    for element in (torch.tensor(0.5), torch.full((48,), 0.5)):
        tensors = projector("in_proj_mask_embedding", 48, 32) | {"mask_element": element}
        tissue = Pulsar.from_pretrained(variant(tmp_path / "3", {}, tensors))
        assert tissue.size.masked_input
        assert (tissue.module.mask_element == 0.5).all()
    bare = variant(tmp_path / "4", {}, drop="encoder.layer.")
    bare = variant_drop(bare, "decoder.layer.")
    small = Pulsar.from_pretrained(bare)
    assert not small.size.templates
    assert_close(small.module.embed(list(io()["cells"])), cls)
    no_decoder = variant_drop(variant(tmp_path / "5", {"use_decoder": False}), "decoder.")
    with pytest.raises(ValueError, match="no decoder"):
        Pulsar.from_pretrained(no_decoder).module.decode(cls, latents)


def variant_drop(folder: Path, prefix: str) -> Path:
    state = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if not k.startswith(prefix)}, folder / "model.safetensors"
    )
    return folder


def test_a_regression_head(tmp_path: Path) -> None:
    state = {f"pulsar.{k}": v for k, v in load_file(TINY / "model.safetensors").items()}
    state |= {
        "regression_head.0.weight": torch.randn(128, 32),
        "regression_head.0.bias": torch.randn(128),
        "regression_head.2.weight": torch.randn(1, 128),
        "regression_head.2.bias": torch.randn(1),
    }
    folder = tmp_path / "age"
    shutil.copytree(TINY, folder)
    save_file(state, folder / "model.safetensors")
    found = Pulsar.from_pretrained(folder)
    assert found.head == {"task": "regression", "outputs": ["output 0"]}
    hidden = torch.relu(
        io()["donor_embedding"] @ state["regression_head.0.weight"].T
        + state["regression_head.0.bias"]
    )
    expected = hidden @ state["regression_head.2.weight"].T + state["regression_head.2.bias"]
    with torch.no_grad():
        assert_close(found.module.predict(io()["cells"]), expected)


@pytest.mark.parametrize(
    ("changes", "tensors", "message"),
    [
        ({"encoder_num_attention_heads": "drop"}, {}, "lacks"),
        ({"encoder_num_attention_heads": 5}, {}, "divisible by encoder_heads=5"),
        ({"hidden_act": "swish"}, {}, "activation='swish'"),
        ({"encoder_num_hidden_layers": 3}, {}, "do not fit"),
        ({"hidden_size": 64}, {}, "do not fit"),
        ({}, {"lm_head.weight": torch.ones(2)}, "tensors that PULSAR does not have"),
        ({}, {"encoder.layer.extra": torch.ones(2)}, "tensors that PULSAR does not have"),
        ({}, {"cls_embedding": torch.full((32,), torch.nan)}, "holds NaN"),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path: Path, changes, tensors, message) -> None:
    with pytest.raises(ValueError, match=message):
        Pulsar.from_pretrained(variant(tmp_path, changes, tensors))


def test_the_released_size_round_trip(tmp_path: Path) -> None:
    """Random weights of all its layers, narrower, written as the authors name them."""
    config = json.loads((TINY / "config.json").read_text())
    config |= {
        "input_size": 1280,
        "hidden_size": 64,
        "cell_state_size": 256,
        "use_cell_state": False,
    }
    for part, n_layers in (("encoder", 8), ("decoder", 6)):
        config |= {
            f"{part}_num_hidden_layers": n_layers,
            f"{part}_num_attention_heads": 8,
            f"{part}_intermediate_size": 64,
        }
    narrow = {"dim": 64, "encoder_ff": 64, "decoder_ff": 64}
    module = PulsarModule(replace(SIZES["released"], **narrow))
    theirs = {ours: name for name, ours in TORCH_NAMES.items()}
    state = {}
    for name, value in module.state_dict().items():
        part, _, rest = name.partition(".")
        number, _, tensor = rest.partition(".")
        if part in ("encoder", "decoder"):
            name = f"{part}.encoder.layers.{number}.{theirs[tensor]}"
        elif part.endswith("_template"):
            name = f"{part.removesuffix('_template')}.layer.{theirs[tensor]}"
        state[name] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(state, tmp_path / "model.safetensors")
    found = Pulsar.from_pretrained(tmp_path)
    assert all(torch.equal(found.module.state_dict()[k], v) for k, v in module.state_dict().items())
