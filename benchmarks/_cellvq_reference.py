"""CellVQ's encoder and quantiser as a loop over cells, on PyTorch's own transformer layers.

Only for comparison. Names of the parts are those of the published state dicts, so that weights of
either implementation load into the other. Written from the description of the released code, which
was not run here; what it leaves open:

- the relation of genes is a linear layer over rows of a learned matrix of all positions. With
  ``all_rows`` the layer is applied to all rows and those of the cell are taken; without, only to
  the rows of the genes that the cell expresses, which is the least it can cost;
- the codes are made from the binary numbers whenever a cell is quantised.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Sizes as published: the configuration in the file, and what the code fixes.
CONFIG = {
    "n_class": 104,
    "seq_len": 19_266,
    "bin_alpha": 1.0,
    "bin_num": 100,
    "pad_token_id": 103,
    "mask_token_id": 102,
    "encoder": {"module_type": "transformer", "hidden_dim": 768, "depth": 12, "heads": 12},
    "decoder": {"module_type": "performer", "hidden_dim": 512, "depth": 6, "heads": 8},
}
HEADS = {"cell_type": 831, "tissue": 377, "disease": 150, "sex": 3, "age": 184}
_N_HIDDEN, _CODE_DIM = 5, 32


class Value(nn.Module):
    def __init__(self, n_bins: int, dim: int) -> None:
        super().__init__()
        self.mlp, self.mlp2 = nn.Linear(1, n_bins), nn.Linear(n_bins, n_bins)
        self.emb = nn.Embedding(n_bins, dim)
        self.emb_mask, self.emb_pad = nn.Embedding(1, dim), nn.Embedding(1, dim)

    def forward(self, values: Tensor, alpha: float) -> Tensor:
        hidden = F.leaky_relu(self.mlp(values.unsqueeze(-1)), 0.1)
        return torch.softmax(alpha * hidden + self.mlp2(hidden), dim=-1) @ self.emb.weight


class Quantiser(nn.Module):
    embedding: Tensor

    def __init__(self, dim: int, n_bits: int, hidden: int) -> None:
        super().__init__()
        numbers = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * n_bits)
        self.register_buffer("embedding", numbers)
        layers: list[nn.Module] = []
        for i in range(_N_HIDDEN):
            width = hidden if i else n_bits
            layers += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
        self.embedding_mlp = nn.Sequential(*layers, nn.Linear(hidden, _CODE_DIM))
        self.proj, self.proj_inv = nn.Linear(dim, _CODE_DIM), nn.Linear(_CODE_DIM, dim)

    def forward(self, maximum: Tensor) -> tuple[Tensor, Tensor]:
        codes = F.normalize(self.embedding_mlp(self.embedding), dim=-1)
        code = (F.normalize(self.proj(maximum), dim=-1) @ codes.T).argmax(-1)
        return code, self.proj_inv(codes[code])


class Encoder(nn.Module):
    def __init__(self, dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.transformer_encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, 4 * dim, batch_first=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        for layer in self.transformer_encoder:
            x = layer(x, src_key_padding_mask=padding)
        return self.norm(x)


class Reference(nn.Module):
    """What embeds a cell and gives it a code; the decoder is left out."""

    def __init__(self, config: dict, n_bits: int = 12, hidden: int = 1024) -> None:
        super().__init__()
        n, dim = config["seq_len"], config["encoder"]["hidden_dim"]
        self.alpha = float(config["bin_alpha"])
        self.go = nn.Parameter(torch.empty(n, n))
        self.go_embed = nn.Linear(n, dim)
        self.token_emb = Value(config["bin_num"], dim)
        self.pos_emb = nn.Embedding(n + 1, dim)
        self.encoder = Encoder(dim, config["encoder"]["heads"], config["encoder"]["depth"])
        self.cell_vq = Quantiser(dim, n_bits, hidden)

    def encode(
        self, values: Tensor, genes: Tensor, *, all_rows: bool = False, mask: bool = True
    ) -> Tensor:
        """Encode one cell, ``(1, n)`` values and positions to ``(1, n, dim)``."""
        related = self.go_embed(self.go)[genes] if all_rows else self.go_embed(self.go[genes])
        x = self.token_emb(values, self.alpha) + self.pos_emb(genes) + related
        return self.encoder(x, torch.zeros_like(genes, dtype=torch.bool) if mask else None)

    def embed(
        self, values: Tensor, genes: Tensor, *, all_rows: bool = False, mask: bool = True
    ) -> Tensor:
        """Embed one cell, ``(1, 4 * dim)``."""
        x = self.encode(values, genes, all_rows=all_rows, mask=mask)
        inside = x[:, :-2]
        return torch.cat([x[:, -1], x[:, -2], inside.amax(1), inside.mean(1)], dim=-1)


def load_reference(path: Path) -> Reference:
    """Load a ``models.ckpt``; weights are not copied."""
    loaded = torch.load(path, weights_only=True)
    state = loaded["m1"]
    hidden, n_bits = state["cell_vq.embedding_mlp.0.weight"].shape
    with torch.device("meta"):
        model = Reference(loaded["config"], n_bits, hidden)
    model.load_state_dict({k: state[k] for k in model.state_dict()}, assign=True)
    return model.eval()


def write_published(path: Path, config: dict | None = None) -> int:
    """Write random weights as the authors write theirs; return the number of parameters."""
    config = CONFIG if config is None else config
    torch.manual_seed(0)
    model = Reference(config)
    with torch.no_grad():
        model.go.normal_(std=0.01).diagonal().add_(1.0)
        for module in model.modules():  # statistics of the codes that the weights make
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = 1.0
        model.cell_vq.embedding_mlp(model.cell_vq.embedding)
    state = dict(model.state_dict()) | _decoder(config) | _heads(config)
    torch.save({"config": config, "m1": state}, path)
    return sum(v.numel() for k, v in state.items() if v.is_floating_point())


def _heads(config: dict) -> dict[str, Tensor]:
    width, state = 4 * config["encoder"]["hidden_dim"], {}
    for name, n in HEADS.items():
        state |= {f"{name}.weight": 0.02 * torch.randn(n, width), f"{name}.bias": torch.zeros(n)}
    return state


def _decoder(config: dict) -> dict[str, Tensor]:
    """Return the weights of the decoder, which is not run here."""
    encoder, width = config["encoder"]["hidden_dim"], config["decoder"]["hidden_dim"]
    head = width // config["decoder"]["heads"]
    state: dict[str, Tensor] = {"decoder.performer.calls_since_last_redraw": torch.tensor(0)}

    def linear(name: str, n_in: int, n_out: int) -> None:
        state[f"{name}.weight"] = torch.randn(n_out, n_in) * n_in**-0.5
        state[f"{name}.bias"] = torch.zeros(n_out)

    def norm(name: str) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.ones(width), torch.zeros(width)

    linear("decoder_embed", encoder, width)
    for i in range(config["decoder"]["depth"]):
        layer = f"decoder.performer.net.layers.{i}"
        n_features = int(head * torch.tensor(float(head)).log())
        state[f"{layer}.0.fn.fast_attention.projection_matrix"] = torch.randn(n_features, head)
        for name in ("to_q", "to_k", "to_v", "to_out"):
            linear(f"{layer}.0.fn.{name}", width, width)
        linear(f"{layer}.1.fn.fn.w1", width, 4 * width)
        linear(f"{layer}.1.fn.fn.w2", 4 * width, width)
        norm(f"{layer}.0.norm")
        norm(f"{layer}.1.norm")
    norm("decoder.norm")
    norm("norm")
    for name in ("to_final", "mean", "disp", "pi"):
        linear(name, width, 1)
    return state
