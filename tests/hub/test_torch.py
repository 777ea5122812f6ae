import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from cfm.hub import load_torch


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_state_dicts_and_nested_checkpoints(tmp_path):
    state = torch.nn.Linear(3, 2).state_dict()
    torch.save({"config": {"d": 3}, "m1": state, "steps": [1, 2]}, tmp_path / "a.ckpt")
    loaded = load_torch(tmp_path / "a.ckpt")
    assert loaded["config"] == {"d": 3}
    assert torch.equal(loaded["m1"]["weight"], state["weight"])


def test_old_format_and_low_precision(tmp_path):
    torch.save(
        {"w": torch.ones(2, dtype=torch.bfloat16)},
        tmp_path / "a.pt",
        _use_new_zipfile_serialization=False,
    )
    assert load_torch(tmp_path / "a.pt")["w"].dtype == torch.bfloat16


def test_a_bare_tensor(tmp_path):
    torch.save(torch.arange(3), tmp_path / "a.pt")
    assert load_torch(str(tmp_path / "a.pt"))["tensor"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_code_is_refused_and_not_executed(tmp_path, zipped, nested, monkeypatch):
    # The variable switches torch's own protection off where a caller relies on its default.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    trap = tmp_path / "executed"
    content = Malicious(trap)
    torch.save(
        {"w": torch.ones(2), "x": content} if nested else content,
        tmp_path / "bad.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(ValueError, match=r"refused.*nothing in it was executed"):
        load_torch(tmp_path / "bad.pt")
    assert not trap.exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert trap.exists()  # the trap works where something does open it


def test_plain_pickle_is_refused_and_not_executed(tmp_path):
    trap = tmp_path / "executed"
    (tmp_path / "bad.pt").write_bytes(pickle.dumps({"w": Malicious(trap)}))
    with pytest.raises(ValueError, match="nothing"):
        load_torch(tmp_path / "bad.pt")
    assert not trap.exists()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear"):
        load_torch(tmp_path / "module.pt")


def test_script_archive_is_refused(tmp_path):
    # The layout of a TorchScript archive, without the deprecated compiler.
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/code/__torch__.py", "raise SystemExit")
        archive.writestr("script/data.pkl", b"")
    with pytest.raises(ValueError, match="TorchScript"):
        load_torch(tmp_path / "script.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated(tmp_path, share, zipped):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.randn(100)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"truncated|damaged|empty"):
        load_torch(path)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(tmp_path, seed):
    path = tmp_path / "a.pt"
    path.write_bytes(np.random.default_rng(seed).bytes(300))
    with pytest.raises(ValueError, match=r"truncated|damaged"):
        load_torch(path)


def test_missing_file_and_wrong_content(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        load_torch(tmp_path / "absent.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        load_torch(tmp_path / "list.pt")


def test_nan_is_refused_wherever_it_lies(tmp_path):
    torch.save({"m": [{"w": torch.tensor([1.0, float("nan")])}]}, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match=r"m\[0\]\.w"):
        load_torch(tmp_path / "nan.pt")
    torch.save({"mask": torch.tensor([0.0, float("-inf")])}, tmp_path / "mask.pt")
    assert load_torch(tmp_path / "mask.pt")["mask"][1] == float("-inf")
