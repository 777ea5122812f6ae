"""BulkFormer built from performer-pytorch and torch_geometric, as its authors build it.

Only for comparison: needs the packages ``performer-pytorch==1.1.4`` and ``torch_geometric``, which
cfm itself does not. Names of the parts are those of the published state dicts, so that the weights
of either implementation load into the other.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

MISSING = -10.0


def adjacency(edges: Tensor, weights: Tensor, n_genes: int):
    """Return the transposed adjacency that ``GCNConv`` takes: of torch_sparse if it is there."""
    try:
        from torch_sparse import SparseTensor
    except ImportError:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that CSR is young
            made = torch.sparse_coo_tensor(edges, weights, (n_genes, n_genes))
            return made.coalesce().to_sparse_csr()
    return SparseTensor(
        row=edges[1], col=edges[0], value=weights, sparse_sizes=(n_genes, n_genes)
    ).t()


class Rotary(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inv_freq = nn.Parameter(
            1.0 / 100 ** (torch.arange(0, dim, 2).float() / dim), requires_grad=False
        )

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.einsum("bi,j->bij", x, self.inv_freq)
        out = torch.cat((angle.sin(), angle.cos()), dim=-1)
        out[x == MISSING] = 0
        return out


class Block(nn.Module):
    def __init__(self, dim: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        from performer_pytorch import Performer
        from torch_geometric.nn import GCNConv

        self.g = GCNConv(dim, dim, cached=True, add_self_loops=False)
        self.f = nn.Sequential(
            *(
                Performer(
                    dim=dim,
                    heads=n_heads,
                    depth=1,
                    dim_head=dim // n_heads,
                    attn_dropout=0.05,
                    ff_dropout=0.1,
                    qkv_bias=True,
                )
                for _ in range(n_layers)
            )
        )
        self.layernorm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, graph) -> Tensor:
        x = self.layernorm(x)
        # One sample at a time, and in float32: a sparse matrix of torch takes nothing else.
        with torch.autocast("cpu", enabled=False):
            x = x + torch.stack([self.g(sample, graph) for sample in x.float()])
        return self.f(x)


class Reference(nn.Module):
    """The network; ``forward`` returns gene embeddings ``(n, n_genes, dim + 3)``."""

    def __init__(self, n_genes: int, dim: int, n_layers: int, n_heads: int) -> None:
        super().__init__()

        def mlp(n_in: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(n_in, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))

        self.gene_emb_onehot_layer = nn.Embedding(n_genes, dim)
        self.gene_emb_proj = mlp(dim)
        self.expr_emb = Rotary(dim)
        self.x_proj = mlp(dim)
        self.gb_formers = nn.ModuleList([Block(dim, n_layers, n_heads)])
        self.layernorm = nn.LayerNorm(dim)
        self.global_expr_proj = mlp(n_genes)
        self.head = nn.Sequential(
            nn.LayerNorm(dim + 3), nn.Linear(dim + 3, dim), nn.ReLU(), nn.Linear(dim, 1), nn.ReLU()
        )
        nn.init.xavier_uniform_(self.gene_emb_onehot_layer.weight)

    def forward(self, x: Tensor, graph, missing_rate: float = 0.0) -> Tensor:
        b, n = x.shape
        genes = self.gene_emb_proj(self.gene_emb_onehot_layer(torch.arange(n)))
        tokens = self.expr_emb(x) + genes + self.global_expr_proj(x).unsqueeze(1)
        tokens = self.x_proj(tokens)
        for block in self.gb_formers:
            tokens = block(tokens, graph)
        tokens = self.layernorm(tokens)
        observed = x != MISSING
        mean = (x * observed).sum(1) / observed.sum(1)
        filled = (x != 0).float().mean(1)
        summary = torch.stack([torch.full((b,), missing_rate), mean, filled], dim=1)
        return torch.cat([tokens, summary.unsqueeze(1).expand(-1, n, -1)], dim=-1)
