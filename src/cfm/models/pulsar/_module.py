"""The network of PULSAR and its sizes: sets of cells in, donor embeddings out, back to cells."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm._arguments import Dropout, check_fields
from cfm.nn import TransformerEncoderLayer
from cfm.nn._kernels import WeightCache, prepare
from cfm.nn._transformers import PreparedStack

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Tokens at a time: what fits into the caches of a processor, and into the memory of a GPU.
_TOKENS_ON_CPU, _TOKENS_ON_GPU = 4096, 131_072


@dataclass(frozen=True)
class PulsarSize:
    """Sizes of the network; the defaults are those of the released checkpoints.

    Attributes
    ----------
    input_dim
        Width of what represents a cell: 1280 of UCE.
    dim
        Width of the tokens, and of a donor's embedding.
    encoder_layers, encoder_heads, encoder_ff
        Layers of the encoder, their attention heads and hidden feed-forward width.
    decoder_layers, decoder_heads, decoder_ff
        The same of the decoder.
    n_cell_states, use_cell_states
        Number of cell states of the decoder, and whether it uses them.
    cls_transform
        Whether there is a network that transforms the donor embedding.
    decoder_loops
        How often the decoder is applied to its own output.
    head_factor
        Hidden width of a head, as a multiple of ``dim``.
    masked_input
        Whether there is an input network for cells with hidden elements, which training needs.
    standardised
        Whether inputs are standardised by means and spreads that the model keeps.
    templates
        Whether there is a layer before encoder and decoder that is never used. Released
        checkpoints carry them: 10.5 million of 87.4 million parameters.
    activation, dropout, eps
        Of the transformer layers; ``eps`` of their layer norms.
    """

    input_dim: int = 1280
    dim: int = 512
    encoder_layers: int = 8
    encoder_heads: int = 8
    encoder_ff: int = 4096
    decoder_layers: Annotated[int, 0] = 6
    decoder_heads: int = 8
    decoder_ff: int = 4096
    n_cell_states: int = 256
    use_cell_states: bool = False
    cls_transform: bool = False
    decoder_loops: int = 1
    head_factor: int = 4
    masked_input: bool = False
    standardised: bool = False
    templates: bool = True
    activation: str = "gelu"
    dropout: Dropout = 0.1
    eps: Dropout = 1e-12

    def __post_init__(self) -> None:
        check_fields(self)
        if self.activation not in ("gelu", "relu"):
            raise ValueError(f"activation={self.activation!r}; expected 'gelu' or 'relu'.")
        for part in ("encoder", "decoder"):
            heads = getattr(self, f"{part}_heads")
            if self.dim % heads:
                raise ValueError(f"dim={self.dim} must be divisible by {part}_heads={heads}.")


_OURS = {"masked_input": True, "standardised": True, "templates": False}
#: ``released`` builds as the published checkpoints do; the others are for training from scratch.
SIZES = {
    "mini": PulsarSize(
        input_dim=50,
        dim=64,
        encoder_layers=2,
        encoder_heads=4,
        encoder_ff=256,
        decoder_layers=1,
        decoder_heads=4,
        decoder_ff=256,
        n_cell_states=1,
        **_OURS,  # type: ignore[arg-type]
    ),
    "base": PulsarSize(**_OURS),  # type: ignore[arg-type]
    "released": PulsarSize(),
}


class Projector(nn.Module):
    """Two linear layers with a ReLU between them, the first as wide as its input."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.proj_1 = nn.Linear(n_in, n_in)
        self.proj_2 = nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(…, n_in)`` to ``(…, n_out)``."""
        return self.proj_2(F.relu(self.proj_1(x)))


class PulsarModule(nn.Module):
    """Transformer over the cells of a donor, which are a set, with a token for the donor.

    Parameters
    ----------
    size
        Sizes of the network.

    References
    ----------
    Pang et al., PULSAR, bioRxiv 2025.11.24.685470, and the released code, whose numbers it
    reproduces. Padding, which that code ignores, is hidden here.
    """

    input_mean: Tensor
    input_scale: Tensor

    def __init__(self, size: PulsarSize) -> None:
        super().__init__()
        self.size = size
        width, dim = size.input_dim, size.dim
        self.cell_state_embedding = nn.Embedding(size.n_cell_states, dim)
        self.mask_embedding = nn.Parameter(torch.randn(dim))
        self.cls_embedding = nn.Parameter(torch.randn(dim))
        self.in_proj = Projector(width, dim)
        self.out_proj = Projector(dim, width)
        heads = (size.encoder_heads, size.decoder_heads)
        self.encoder = self._layers(size.encoder_layers, heads[0], size.encoder_ff)
        self.decoder = self._layers(size.decoder_layers, heads[1], size.decoder_ff)
        if size.templates:  # never used: released checkpoints carry them
            self.encoder_template = self._layers(1, heads[0], size.encoder_ff)
            if size.decoder_layers:
                self.decoder_template = self._layers(1, heads[1], size.decoder_ff)
        if size.cls_transform:
            self.cls_transform = Projector(dim, dim)
        if size.masked_input:
            self.mask_element = nn.Parameter(torch.zeros(width))
            self.in_proj_mask_embedding = Projector(width, dim)
        if size.standardised:
            self.register_buffer("input_mean", torch.zeros(width))
            self.register_buffer("input_scale", torch.ones(width))
        self.head: nn.Sequential | None = None
        self._cache = WeightCache()

    def _layers(self, n_layers: int, n_heads: int, ff_dim: int) -> nn.ModuleList:
        size = self.size
        settings = {"activation": size.activation, "dropout": size.dropout, "eps": size.eps}
        return nn.ModuleList(
            TransformerEncoderLayer(size.dim, n_heads, ff_dim, **settings)  # type: ignore[arg-type]
            for _ in range(n_layers)
        )

    def set_head(self, n_outputs: int) -> None:
        """Put a new head on the donor embedding."""
        dim = self.size.dim
        hidden = self.size.head_factor * dim
        head = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, n_outputs))
        self.head = head.to(self.cls_embedding.device)

    def encode(self, cells: Tensor, padding: Tensor | None = None) -> Tensor:
        """Embed donors and their cells; differentiable.

        Parameters
        ----------
        cells
            ``(b, n, input_dim)`` representations of cells, in any order.
        padding
            ``(b, n)`` bool, true where there is no cell; what stands there is never read.

        Returns
        -------
        ``(b, n + 1, dim)``: the donor, then its cells; 0 where there is none.

        Raises
        ------
        ValueError
            If the shapes do not fit, or a donor has no cell.
        """
        x, bias = self._tokens(cells, padding)
        for layer in self.encoder:
            x = layer(x, bias)
        if padding is None:
            return x
        return x.masked_fill(F.pad(padding, (1, 0)).unsqueeze(-1), 0.0)

    def decode(
        self,
        cls: Tensor,
        latents: Tensor,
        cell_state_ids: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Turn a donor embedding and tokens of cells into representations of cells.

        Parameters
        ----------
        cls
            ``(b, dim)`` or ``(b, 1, dim)`` donor embeddings.
        latents
            ``(b, n, dim)`` tokens, one per cell.
        cell_state_ids
            ``(b, n)`` int64, for models with cell states.
        padding
            ``(b, n)`` bool, true where there is no cell.

        Returns
        -------
        ``(b, n + 1, input_dim)``: the donor, then its cells, in the scale of the input.

        Raises
        ------
        ValueError
            If the model has no decoder, or was not trained with cell states.
        """
        if not len(self.decoder):
            raise ValueError("This model has no decoder; it embeds donors only.")
        if cell_state_ids is not None:
            if not self.size.use_cell_states:
                raise ValueError(
                    "This model was trained without cell states; leave cell_state_ids out."
                )
            latents = latents + self.cell_state_embedding(cell_state_ids)
        out = self.decode_tokens(cls, latents, padding)
        if self.size.standardised:
            out = out * self.input_scale + self.input_mean
        return out

    def decode_tokens(self, cls: Tensor, latents: Tensor, padding: Tensor | None = None) -> Tensor:
        """Decode as :meth:`decode` does, into the scale that the network reads."""
        cls = cls.unsqueeze(1) if cls.ndim == 2 else cls
        bias = _bias(padding, latents)
        for _ in range(self.size.decoder_loops):
            x = torch.cat([cls, latents], dim=1)
            for layer in self.decoder:
                x = layer(x, bias)
            latents = x[:, 1:]
        return self.out_proj(x)

    def add_masked_input(self) -> None:
        """Add an input network for cells with hidden elements, a copy of that of whole cells."""
        self.size = replace(self.size, masked_input=True)
        self.mask_element = nn.Parameter(self.cls_embedding.new_zeros(self.size.input_dim))
        self.in_proj_mask_embedding = deepcopy(self.in_proj)

    def transform(self, cls: Tensor) -> Tensor:
        """Apply the transform of the donor embedding, of models that have one."""
        if not self.size.cls_transform:
            raise ValueError("This model has no transform of the donor embedding (cls_transform).")
        return self.cls_transform(cls)

    def predict(self, cells: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return the outputs of the head, ``(b, n_outputs)``; arguments as of :meth:`encode`."""
        return self.apply_head(self.encode(cells, padding)[:, 0])

    def apply_head(self, embedding: Tensor) -> Tensor:
        """Return the outputs of the head for donor embeddings ``(b, dim)``."""
        if self.head is None:
            raise ValueError("This model has no head; train one with train_head().")
        return self.head(F.dropout(embedding, self.size.dropout, self.training))

    def embed(self, donors: Sequence[Tensor], *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Embed donors with any numbers of cells: nothing is padded, only the donor computed.

        Parameters
        ----------
        donors
            For each donor ``(n, input_dim)``, at least one cell.
        dtype
            Of the matrix products.

        Returns
        -------
        ``(len(donors), dim)`` float32.
        """
        return PreparedEncoder(self, dtype)(donors)

    def embed_draws(
        self,
        cells: Any,
        draws: Sequence[np.ndarray],
        *,
        batch_size: int = 16,
        dtype: torch.dtype = torch.float32,
    ) -> np.ndarray:
        """Embed draws of cells as :meth:`embed` does, those of like size together.

        Parameters
        ----------
        cells
            ``(n_cells, input_dim)`` float32, an array or what reads its rows.
        draws
            Rows of each draw, at least one.
        batch_size
            Draws at a time, fewer if they are large; the result does not depend on it.
        dtype
            Of the matrix products.

        Returns
        -------
        ``(n_draws, dim)`` float32.
        """
        self.eval()
        encoder = PreparedEncoder(self, dtype)
        most = _TOKENS_ON_CPU if self.cls_embedding.device.type == "cpu" else _TOKENS_ON_GPU
        batches: list[list[int]] = [[]]
        n_tokens = 0
        for i in np.argsort([len(rows) for rows in draws], kind="stable").tolist():
            size = len(draws[i]) + 1
            if batches[-1] and (len(batches[-1]) == batch_size or n_tokens + size > most):
                batches.append([])
                n_tokens = 0
            batches[-1].append(i)
            n_tokens += size
        out = np.empty((len(draws), self.size.dim), dtype=np.float32)
        for batch in filter(None, batches):
            out[batch] = encoder([torch.from_numpy(cells[draws[i]]) for i in batch]).cpu().numpy()
        return out

    def moments(self, cells: Any, draws: Sequence[np.ndarray]) -> np.ndarray:
        r"""Summarise draws of cells without the network, by mean and variance.

        With :math:`z` the cells of a draw, standardised by the means and spreads of the training
        cells, the mean :math:`\bar z` and
        :math:`\log\bigl((1 + \sum_i (z_i - \bar z)^2) / (1 + n)\bigr)`: a variance of 1 counts as
        one more cell, so that few cells have one too.

        Parameters
        ----------
        cells, draws
            As for :meth:`embed_draws`.

        Returns
        -------
        ``(n_draws, 2 * input_dim)`` float32.

        Raises
        ------
        ValueError
            If the model does not standardise its input.
        """
        if not self.size.standardised:
            raise ValueError(
                "Moments are of standardised numbers, and this model reads its input as "
                "it is (standardised=False); pass pooling='cls'."
            )
        mean, scale = self.input_mean.cpu().numpy(), self.input_scale.cpu().numpy()
        out = np.empty((len(draws), 2 * self.size.input_dim), dtype=np.float32)
        for place, rows in enumerate(draws):
            z = (np.asarray(cells[np.sort(rows)], dtype=np.float64) - mean) / scale
            spread = np.log((1.0 + len(z) * z.var(axis=0)) / (1.0 + len(z)))
            out[place] = np.concatenate([z.mean(axis=0), spread])
        return out

    @torch.no_grad()
    def attention(
        self, cells: Tensor, padding: Tensor | None = None, *, every: bool = False
    ) -> Tensor:
        """Return what attends to what in the encoder.

        Parameters
        ----------
        cells, padding
            As for :meth:`encode`.
        every
            The attention of all tokens instead of the donor's alone; memory grows with the square
            of the cells.

        Returns
        -------
        ``(layers, b, heads, n + 1)`` attention of the donor to itself and its cells, or with
        ``every`` ``(layers, b, heads, n + 1, n + 1)``; sums to 1 over the last place.
        """
        x, bias = self._tokens(cells, padding)
        maps = []
        for layer in self.encoder:
            layer = cast("TransformerEncoderLayer", layer)
            weights = layer.attention_weights(x, bias, first_only=not every)
            maps.append(weights if every else weights.squeeze(2))
            x = layer(x, bias)
        return torch.stack(maps)

    def standardise(self, cells: Tensor) -> Tensor:
        """Bring representations to the scale that the network reads."""
        if not self.size.standardised:
            return cells
        return (cells - self.input_mean) / self.input_scale

    def bfloat16_agreement(self) -> float:
        """Return how alike differences between donors are in bfloat16 and float32.

        A mean cosine similarity of embeddings less their mean over donors, because most of an
        embedding is what all donors have in common. Tried once per weights, on eight made-up
        donors who have six kinds of cells in different shares.
        """
        return float(self._cache.get("agreement", self.parameters(), self._try_bfloat16))

    def _try_bfloat16(self) -> Tensor:
        donors = self._made_up_donors()
        exact = self.embed(donors, dtype=torch.float32)
        rough = self.embed(donors, dtype=torch.bfloat16)
        return F.cosine_similarity(exact - exact.mean(0), rough - rough.mean(0)).mean()

    def _made_up_donors(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        width, donors = self.size.input_dim, []
        centres = torch.randn(6, width, generator=generator)
        for _ in range(8):
            share = torch.rand(6, generator=generator) ** 2
            kind = torch.multinomial(share, 128, replacement=True, generator=generator)
            cells = centres[kind] + torch.randn(128, width, generator=generator)
            cells = cells.to(self.cls_embedding.device)
            if self.size.standardised:
                cells = cells * self.input_scale + self.input_mean
            else:  # of length 1, as embeddings of UCE are
                cells = F.normalize(cells, dim=-1)
            donors.append(cells)
        return donors

    def _tokens(self, cells: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of donor and cells, ``(b, n + 1, dim)``, and what hides padding."""
        self._check(cells, padding)
        if padding is not None:
            cells = cells.masked_fill(padding.unsqueeze(-1), 0.0)
        tokens = self.in_proj(self.standardise(cells))  # (b, n, dim)
        cls = self.cls_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        x = torch.cat([cls, tokens], dim=1)
        return x, _bias(padding, x)

    def _check(self, cells: Tensor, padding: Tensor | None) -> None:
        if cells.ndim != 3 or cells.shape[2] != self.size.input_dim:
            raise ValueError(
                f"Cells are {tuple(cells.shape)}; expected (donors, cells, {self.size.input_dim})."
            )
        if padding is None:
            empty = cells.shape[1] == 0
        else:
            if padding.shape != cells.shape[:2] or padding.dtype != torch.bool:
                raise ValueError(
                    f"Padding is {padding.dtype} {tuple(padding.shape)}; expected bool "
                    f"{tuple(cells.shape[:2])}, true where there is no cell."
                )
            empty = bool(padding.all(1).any())
        if empty:
            raise ValueError("A donor has no cells; leave it out.")


class PreparedEncoder:
    """The encoder of a module, prepared for many donors without gradients."""

    def __init__(self, module: PulsarModule, dtype: torch.dtype) -> None:
        self._module = module
        with torch.no_grad():
            self._input = [
                prepare(p, dtype) for p in (module.in_proj.proj_1, module.in_proj.proj_2)
            ]
            self._stack = PreparedStack(module.encoder, dtype, first_only=True)

    @torch.no_grad()
    def __call__(self, donors: Sequence[Tensor]) -> Tensor:
        """Embed donors; see :meth:`PulsarModule.embed`."""
        module = self._module
        device = module.cls_embedding.device
        cells = torch.cat(list(donors)).to(device, torch.float32)
        tokens = self._input[1](F.relu(self._input[0](module.standardise(cells)))).float()
        lengths = [len(donor) for donor in donors]
        cls = module.cls_embedding.unsqueeze(0)
        x = torch.cat([t for part in tokens.split(lengths) for t in (cls, part)])
        return self._stack(x, [n + 1 for n in lengths])


def _bias(padding: Tensor | None, x: Tensor) -> Tensor | None:
    """Return the bias that hides padding in attention, ``(b, n + 1)``."""
    if padding is None:
        return None
    hidden = F.pad(padding, (1, 0))  # the donor is always there
    return torch.zeros(hidden.shape, device=x.device, dtype=x.dtype).masked_fill(hidden, -torch.inf)
