"""Transcriptome foundation models behind one scanpy-style interface.

The rooms are imported on first use, so that ``import cfm`` stays quick: ``cfm.pp`` prepares
data, ``cfm.tl`` runs models and stores results in the AnnData, ``cfm.pl`` draws what is stored,
``cfm.get`` returns it as tables.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from cfm._settings import settings

if TYPE_CHECKING:
    from types import ModuleType

    from cfm import data, datasets, get, hub, metrics, models, nn, pl, pp, tl

try:
    __version__ = version("cfm-tools")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_ROOMS = ("data", "datasets", "get", "hub", "metrics", "models", "nn", "pl", "pp", "tl")
__all__ = [
    "__version__",
    "data",
    "datasets",
    "get",
    "hub",
    "metrics",
    "models",
    "nn",
    "pl",
    "pp",
    "settings",
    "tl",
]


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return import_module(f"cfm.{name}")
    raise AttributeError(f"module 'cfm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
