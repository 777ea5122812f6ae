"""What two trainings must have in common for one to go on from the state of the other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.models._base import PretrainedModel

#: Arguments that do not change what is learned: where it is computed, and what is shown of it.
_WITHOUT_EFFECT = frozenset(
    {
        *("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar"),
        *("checkpoint_dir", "checkpoint_every", "callbacks", "logger", "plugins", "profiler"),
        *("default_root_dir", "log_every_n_steps", "enable_model_summary", "log_save_dir"),
        *("simple_progress_bar", "progress_bar_refresh_rate", "use_distributed_sampler"),
    }
)
#: Entries that a training which was interrupted has changed.
LEARNED = ("starting weights", "sizes")


def fingerprint(
    model: PretrainedModel, arguments: Mapping[str, Any], n_processes: int
) -> dict[str, Any]:
    """Return what a training follows from, by name, all JSON types.

    The values of the matrix are not looked at, only how many rows and which genes it has, and the
    registered columns of ``obs``.
    """
    given = {k: v for k, v in arguments.items() if k != "trainer_kwargs"}
    given |= arguments.get("trainer_kwargs", {})
    out: dict[str, Any] = {"model": type(model).__name__, "version of cfm": _version()}
    out |= {k: _described(v) for k, v in given.items() if k not in _WITHOUT_EFFECT}
    out["number of processes"] = n_processes
    if model.adata is not None:
        out |= _data(model, model.adata)
    out["sizes"], out["starting weights"] = _weights(model.module)
    return out


def _version() -> str:
    try:
        return version("cfm-tools")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "0.0.0"


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name the entries that differ, with both values."""
    return [
        f"{name} is {_short(now.get(name))} and was {_short(kept.get(name))}"
        for name in dict.fromkeys([*kept, *now])
        if kept.get(name) != now.get(name)
    ]


def _data(model: PretrainedModel, adata: AnnData) -> dict[str, Any]:
    out: dict[str, Any] = {
        "number of rows": adata.n_obs,
        "names of rows": _digest_values(adata.obs_names),
        "genes": _digest_values(adata.var_names),
    }
    for name, entry in model.adata_manager.data_registry.items():
        where, key = entry["attr_name"], entry["attr_key"]
        if where == "obs":
            out[f"adata.obs[{key!r}]"] = _digest_values(adata.obs[key])
        else:
            out[f"registered {name}"] = where if key is None else f"{where}[{key!r}]"
    return out


def _weights(module: torch.nn.Module) -> tuple[str, str]:
    """Return digests of the shapes, and of the values, of all parameters and buffers."""
    shapes, values = hashlib.sha256(), hashlib.sha256()
    for name, tensor in module.state_dict().items():
        shapes.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        values.update(flat.view(torch.uint8).numpy().data)
    return shapes.hexdigest()[:16], values.hexdigest()[:16]


def _described(value: Any) -> Any:
    """Say in JSON types what a value is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.integer | np.floating):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): _described(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_described(v) for v in value]
    if isinstance(value, np.ndarray | pd.Series | pd.Index):
        return _digest_values(value)
    if isinstance(value, pd.DataFrame):
        return [_digest_values(value.index), *(_digest_values(value[c]) for c in value)]
    names = getattr(value, "var_names", None)
    kind = type(value).__qualname__
    return kind if names is None else f"{kind} of genes {_digest_values(pd.Index(names))}"


def _digest_values(values: np.ndarray | pd.Series | pd.Index) -> str:
    found = values.astype(str) if values.dtype.kind not in "biuf" else values
    hashed = pd.util.hash_array(np.asarray(found).ravel())
    return hashlib.sha256(hashed.tobytes()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
