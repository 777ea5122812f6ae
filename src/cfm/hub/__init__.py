"""Checkpoints: where they come from, how they are written, and how they are checked before use.

A checkpoint is a folder with ``config.json``, ``model.safetensors``, ``README.md`` (the model
card) and any further text files. Nothing in it is ever unpickled; published weights of other
projects (``.pt``, ``.ckpt``) go through :func:`load_torch`, which runs no code from the file.
"""

from cfm.hub._checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_safetensors,
    model_card,
)
from cfm.hub._resolve import register_checkpoint, resolve
from cfm.hub._save import save_checkpoint
from cfm.hub._torch import load_torch

__all__ = [
    "Checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "load_safetensors",
    "load_torch",
    "model_card",
    "register_checkpoint",
    "resolve",
    "save_checkpoint",
]
