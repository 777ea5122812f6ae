"""What all models share: devices, loading by name, and weights that fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cfm
from cfm.models import CellPulse, PretrainedModel, load_model
from cfm.models._base import NOT_OFFERED, check_weights, load_weights, resolve_device


@pytest.fixture
def registered(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("cfm.hub._resolve._registered", {})
    cfm.hub.register_checkpoint("toy-by-name", checkpoint)
    return "toy-by-name"


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device() in (torch.device("cpu"), torch.device("cuda"))


@pytest.mark.parametrize("name", ["warp", "cuda:99", "cpu:x"])
def test_devices_that_are_not_here_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"device='{name}' is not available here"):
        resolve_device(name)


def test_a_model_is_loaded_by_name_folder_and_string(checkpoint: Path, registered: str) -> None:
    for source in (registered, checkpoint, str(checkpoint)):
        model = load_model(source)
        assert isinstance(model, CellPulse)
        assert isinstance(model, PretrainedModel)
        assert model.device.type in ("cpu", "cuda")
        assert not model.module.training
    assert load_model(registered).checkpoint_name == registered


def test_a_model_object_is_itself(model: CellPulse) -> None:
    assert load_model(model) is model
    assert load_model(model, device="cpu") is model


@pytest.mark.parametrize("source", [3, None, ["cellpulse-mini"], CellPulse])
def test_other_things_are_no_model(source: object) -> None:
    with pytest.raises(TypeError, match=r"model= is a .*; expected a cfm model, the name"):
        load_model(source)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no-such-model"):
        load_model("no-such-model")


def test_models_of_a_later_version_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors = {"x": torch.ones(2)}
    folder = cfm.hub.save_checkpoint(tmp_path / "later", tensors, {}, model="Oracle")
    with pytest.raises(ValueError, match=r"holds a Oracle model; this version of cfm has"):
        load_model(folder)


def test_installed_packages_add_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "seer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: seer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cfm.models]\nSeer = seer:Seer\n")
    (tmp_path / "seer.py").write_text(
        "from tests._block_model import SilentModel\n\n\nclass Seer(SilentModel):\n"
        "    @classmethod\n    def _from_checkpoint(cls, checkpoint):\n"
        "        return cls()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = cfm.hub.save_checkpoint(tmp_path / "a", {"x": torch.ones(2)}, {}, model="Seer")
    assert type(load_model(folder)).__name__ == "Seer"


def test_an_integer_is_a_gpu(model: CellPulse) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="device='cuda:0' is not available here"):
        model.to_device(0)
    model.to_device("auto")
    assert model.device == torch.device("cpu")


def test_weights_have_to_fit() -> None:
    layer = torch.nn.Linear(3, 2)
    good = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2), "b.x": torch.ones(1)}
    load_weights(layer, good, "toy", prefix="a.")
    assert (layer.weight == 1).all()
    with pytest.raises(ValueError, match=r"bias: found nothing, expected \(2,\)"):
        load_weights(layer, {"a.weight": torch.ones(2, 3)}, "toy", prefix="a.")
    with pytest.raises(ValueError, match=r"weight: found \(2, 4\), expected \(2, 3\)"):
        load_weights(layer, good | {"a.weight": torch.ones(2, 4)}, "toy", prefix="a.")
    with pytest.raises(ValueError, match=r"extra: found \(1,\), expected nothing"):
        load_weights(layer, good | {"a.extra": torch.ones(1)}, "toy", prefix="a.")


def test_half_precision_is_loaded_in_the_modules_own() -> None:
    layer = torch.nn.Linear(3, 2)
    load_weights(layer, {k: v.half() for k, v in layer.state_dict().items()}, "toy")
    assert layer.weight.dtype == torch.float32


def test_fitting_can_be_checked_without_memory() -> None:
    with torch.device("meta"):
        layer = torch.nn.Linear(10**6, 10**6)
    with pytest.raises(ValueError, match="do not fit the sizes"):
        check_weights(layer, {"weight": torch.ones(1, 1), "bias": torch.ones(1)}, "toy")


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_what_cannot_work_is_not_offered(model: CellPulse, name: str) -> None:
    for owner in (model, CellPulse, cfm.models.UCE, PretrainedModel):
        assert name not in dir(owner)
        assert not hasattr(owner, name)
        with pytest.raises(AttributeError, match=f"no attribute '{name}': scvi-tools' method"):
            getattr(owner, name)


def test_what_is_offered_stays(model: CellPulse) -> None:
    for name in ("save", "load", "train", "get_latent_representation", "setup_anndata", "module"):
        assert name in dir(model)
        assert getattr(model, name) is not None
    assert "from_pretrained" in dir(CellPulse)


def test_no_offered_method_says_that_it_is_not_implemented(model: CellPulse) -> None:
    """All that scvi-tools' base class leaves to others is not offered, in any version."""
    import inspect

    for name in dir(model):
        method = getattr(model, name)
        if inspect.ismethod(method) and method.__module__.startswith("scvi"):
            body = inspect.getsource(method)
            assert "raise NotImplementedError" not in body, name
