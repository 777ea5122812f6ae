"""PULSAR's encoder built from PyTorch's own transformer, with the tensor names of its authors."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Projector(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.proj_1, self.proj_2 = nn.Linear(n_in, n_in), nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_2(torch.relu(self.proj_1(x)))


class Stack(nn.Module):
    def __init__(self, dim: int, n_heads: int, ff_dim: int, n_layers: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            dim, n_heads, ff_dim, 0.1, "gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(self.layer, n_layers)


class Reference(nn.Module):
    """The whole network, so that its state dict is a released one; only ``encode`` is timed."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        dim, width = config["hidden_size"], config["input_size"]
        for part in ("encoder", "decoder"):
            sizes = (f"{part}_{n}" for n in ("num_attention_heads", "intermediate_size"))
            heads, ff = (config[name] for name in sizes)
            setattr(self, part, Stack(dim, heads, ff, config[f"{part}_num_hidden_layers"]))
        self.cell_state_embedding = nn.Embedding(config["cell_state_size"], dim)
        self.mask_embedding = nn.Parameter(torch.randn(dim))
        self.cls_embedding = nn.Parameter(torch.randn(dim))
        self.in_proj, self.out_proj = Projector(width, dim), Projector(dim, width)

    def forward(self, cells: Tensor, padding: Tensor | None = None) -> Tensor:
        """Embed donors: ``(b, n, width)`` to ``(b, dim)``."""
        x = self.in_proj(cells)
        cls = self.cls_embedding.to(x.dtype).expand(len(x), 1, -1)
        if padding is not None:
            padding = nn.functional.pad(padding, (1, 0))
        x = torch.cat([cls, x], dim=1)
        return self.encoder.encoder(x, src_key_padding_mask=padding)[:, 0]


def load_reference(folder: Path) -> Reference:
    """Load a folder in the layout of the authors."""
    model = Reference(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def write_released(folder: Path) -> None:
    """Write random weights of the released size as the authors write theirs."""
    config = {
        "model_type": "PULSAR",
        "input_size": 1280,
        "hidden_size": 512,
        "cell_state_size": 256,
        "use_cell_state": False,
    }
    for part, n_layers in (("encoder", 8), ("decoder", 6)):
        config |= {
            f"{part}_num_hidden_layers": n_layers,
            f"{part}_num_attention_heads": 8,
            f"{part}_intermediate_size": 4096,
        }
    torch.manual_seed(0)
    model = Reference(config)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / "model.safetensors")
