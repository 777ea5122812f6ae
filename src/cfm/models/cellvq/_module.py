"""CellVQ, the network and its sizes: expressed genes in, codes, properties and counts out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm._arguments import Dropout, check_fields
from cfm.models.cellvq._additions import N_LIFTED, CodeTerm, ExpressionCodes, ExpressionTerm
from cfm.models.cellvq._property_heads import PropertyHeads
from cfm.nn import PerformerLayer, TransformerEncoderLayer
from cfm.nn._genes import BinnedValueEmbedding, ZINBHeads
from cfm.nn._kernels import WeightCache
from cfm.nn._soft_codes import Quantised, SoftCodes
from cfm.nn._transformers import PreparedStack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np

    from cfm.models.cellvq._additions import CodeReader

#: Tokens beside the genes, the last two of each cell: a constant and the log10 of its counts.
N_COUNT_TOKENS = 2


@dataclass(frozen=True)
class CellVQSize:
    """Sizes of the network.

    Attributes
    ----------
    dim, n_layers, n_heads, ff_dim
        Width, layers, attention heads and hidden feed-forward width of the encoder.
    decoder_dim, decoder_layers, decoder_heads
        Width, Performer layers and their heads of the decoder.
    n_bins, bin_alpha
        Bins that values are mixed of, and the weight of the hidden numbers in their shares.
    n_bits
        Bits of a code; there are 2 to the power of ``n_bits`` codes.
    codebook_dim, codebook_layers
        Width and number of the hidden layers of the network that makes the codes.
    code_dim
        Width of the codes.
    relation
        Learned relations between genes that are added to their identity: ``"full"``, a number for
        each pair of positions, as published; a whole number, the rank of a smaller form; or
        ``"none"``.
    dropout
        Of the encoder, in training.
    code_term
        Add :class:`~cfm.models.cellvq._additions.CodeTerm`, without which a narrow decoder learns
        slowly how counts depend on the code. Not in the published model.
    expression_term
        Add :class:`~cfm.models.cellvq._additions.ExpressionTerm` to the tokens of a cell. Not in
        the published model.
    expression_codes
        Codes are clusters of the training cells, found in expression by
        :class:`~cfm.models.cellvq._additions.ExpressionCodes`. Otherwise they are learned
        by the quantiser, as published; only that has ``codebook_dim`` and ``codebook_layers``.
    """

    dim: int = 768
    n_layers: int = 12
    n_heads: int = 12
    ff_dim: int = 3072
    decoder_dim: int = 512
    decoder_layers: int = 6
    decoder_heads: int = 8
    n_bins: int = 100
    n_bits: int = 12
    codebook_dim: int = 1024
    codebook_layers: int = 5
    code_dim: int = 32
    relation: str | int = "full"
    bin_alpha: float = 1.0
    dropout: Dropout = 0.1
    code_term: bool = False
    expression_term: bool = False
    expression_codes: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.n_bits > 20:
            raise ValueError(f"n_bits must be at most 20; found {self.n_bits}.")
        for width, heads in (("dim", "n_heads"), ("decoder_dim", "decoder_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width}={getattr(self, width)} must be divisible by "
                    f"{heads}={getattr(self, heads)}."
                )
        rank = isinstance(self.relation, int) and not isinstance(self.relation, bool)
        if not (rank and int(self.relation) >= 1) and self.relation not in ("full", "none"):
            raise ValueError(
                f"relation must be 'full', 'none' or a rank of at least 1; found {self.relation!r}."
            )
        if isinstance(self.bin_alpha, bool) or not abs(self.bin_alpha) < float("inf"):
            raise ValueError(f"bin_alpha must be a finite number; found {self.bin_alpha!r}.")
        if self.expression_codes and self.code_dim <= N_LIFTED:
            raise ValueError(
                f"code_dim must be above {N_LIFTED} with expression_codes; found {self.code_dim}."
            )

    @property
    def n_codes(self) -> int:
        """Number of codes."""
        return int(2**self.n_bits)


#: ``published`` is the authors' (514 million parameters with 19,264 genes, 371 million of
#: them relations between genes). ``mini`` is for laptops and small data.
SIZES = {
    "mini": CellVQSize(
        dim=64,
        n_layers=2,
        n_heads=4,
        ff_dim=128,
        decoder_dim=32,
        decoder_layers=1,
        decoder_heads=2,
        n_bins=32,
        n_bits=4,
        codebook_dim=64,
        codebook_layers=3,
        relation="none",
        dropout=0.0,  # with it, attention on a CPU takes four times as long in training
        code_term=True,
        expression_term=True,
        expression_codes=True,
    ),
    "published": CellVQSize(),
}


class Encoded(NamedTuple):
    """Output of the encoder.

    Attributes
    ----------
    states
        ``(b, n, dim)``, outputs of the tokens.
    embedding
        ``(b, 4 * dim)``, the cell embedding.
    quantised
        ``(b, dim)``, largest value over the tokens, which is quantised; with ``expression_codes``
        to be replaced by what :meth:`CodeReader.positions` returns.
    """

    states: Tensor
    embedding: Tensor
    quantised: Tensor


class ExpressionDecoder(nn.Module):
    """Performer over all positions, with a zero-inflated negative binomial per position.

    Parameters
    ----------
    size
        Sizes of the network.
    """

    def __init__(self, size: CellVQSize) -> None:
        super().__init__()
        width = size.decoder_dim
        self.projection = nn.Linear(size.dim, width)
        self.layers = nn.ModuleList(
            PerformerLayer(width, size.decoder_heads) for _ in range(size.decoder_layers)
        )
        # Two norms, one after the other, as published.
        self.norm = nn.LayerNorm(width)
        self.output_norm = nn.LayerNorm(width)
        self.heads = ZINBHeads(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decode ``(b, positions, dim)`` to mean, dispersion and dropout ``(b, positions)``."""
        x = self.projection(tokens)
        for layer in self.layers:
            x = layer(x)
        mean, dispersion, dropout = self.heads(self.output_norm(self.norm(x)))
        return mean, dispersion, dropout


class CellVQModule(nn.Module):
    """Transformer over the expressed genes of a cell, a quantiser, a decoder, and heads.

    values, gene_ids (b, n) → encode → tokens (b, n, dim) → pool → cell embedding (b, 4 * dim) and
    maximum (b, dim); the maximum → quantize → code and its vector (b, dim); tokens and vector →
    decode → counts (b, n_genes); the cell embedding → classify → logits of each property.

    Positions are the genes, then the two count tokens (``n_genes``, ``n_genes + 1``), then
    padding (``n_genes + 2``).

    Parameters
    ----------
    n_genes
        Number of genes.
    size
        Sizes of the network.
    properties
        Classes of each property head by its name.

    References
    ----------
    CellVQ, Nature Communications 2026, and the released code, whose numbers it reproduces; the
    original takes one cell at a time.
    """

    relation: nn.Parameter | None
    relation_projection: nn.Linear | None

    def __init__(
        self,
        n_genes: int,
        *,
        size: CellVQSize,
        properties: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        if n_genes < 1:
            raise ValueError(f"n_genes must be at least 1; found {n_genes!r}.")
        self.n_genes = n_genes
        self.size = size
        dim, n_positions = size.dim, n_genes + N_COUNT_TOKENS
        self.value_embedding = BinnedValueEmbedding(dim, size.n_bins, size.bin_alpha)
        self.position_embedding = nn.Embedding(n_positions + 1, dim)
        self.relation = self.relation_projection = None
        if size.relation != "none":
            rank = n_positions if size.relation == "full" else int(size.relation)
            self.relation = nn.Parameter(torch.empty(n_positions, rank))
            self.relation_projection = nn.Linear(rank, dim)
            if not self.relation.is_meta:
                if size.relation == "full":
                    nn.init.eye_(self.relation)
                else:
                    nn.init.normal_(self.relation, std=rank**-0.5)
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(
                dim, size.n_heads, size.ff_dim, activation="relu", dropout=size.dropout
            )
            for _ in range(size.n_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.quantiser: SoftCodes | ExpressionCodes
        if size.expression_codes:
            self.quantiser = ExpressionCodes(
                n_genes, dim, n_bits=size.n_bits, code_dim=size.code_dim
            )
        else:
            self.quantiser = SoftCodes(
                dim,
                n_bits=size.n_bits,
                hidden=size.codebook_dim,
                n_hidden=size.codebook_layers,
                code_dim=size.code_dim,
            )
        self.decoder = ExpressionDecoder(size)
        self.expression_term = ExpressionTerm(n_genes, dim) if size.expression_term else None
        self.code_term = CodeTerm(n_genes, dim, size.code_dim) if size.code_term else None
        if self.code_term is not None:
            self.decoder.heads.start_at_one()
        self.property_heads = PropertyHeads(4 * dim, properties)
        self._cache = WeightCache()

    def encode(
        self,
        values: Tensor,
        gene_ids: Tensor,
        padding: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Encode the tokens of cells; without gradients the result does not depend on the batch.

        Parameters
        ----------
        values
            ``(b, n)``: log1p of counts per 10,000, and the two count tokens of each cell last.
        gene_ids
            ``(b, n)`` int64 positions.
        padding
            ``(b, n)`` bool, true where there is no token; values there have no influence.
        dtype
            Of the matrix products, in evaluation mode without gradients.

        Returns
        -------
        ``(b, n, dim)`` float32, 0 at padding.
        """
        self._check(values, gene_ids, padding)
        if self.training or torch.is_grad_enabled():
            if padding is not None:
                values, gene_ids = self._blank(values, gene_ids, padding)
            x = self.value_embedding(values) + F.embedding(gene_ids, self.identity())
            bias = _bias(padding, x)
            for layer in self.layers:
                x = layer(x, bias)
            x = self._with_expression(self.norm(x), values, gene_ids, padding)
            return x if padding is None else x.masked_fill(padding.unsqueeze(-1), 0.0)
        real = torch.ones_like(gene_ids, dtype=torch.bool) if padding is None else ~padding
        lengths = real.sum(1).tolist()
        x = self.value_embedding(values[real]) + self.identity()[gene_ids[real]]
        x = self.norm(self._stack(dtype)(x, lengths))
        out = x.new_zeros(*values.shape, x.shape[-1])
        out[real] = x
        out = self._with_expression(out, values, gene_ids, padding)
        return out if padding is None else out.masked_fill(padding.unsqueeze(-1), 0.0)

    def _with_expression(
        self, x: Tensor, values: Tensor, gene_ids: Tensor, padding: Tensor | None
    ) -> Tensor:
        if self.expression_term is None:
            return x
        return x + self.expression_term(values, gene_ids, padding).unsqueeze(1)

    def identity(self) -> Tensor:
        """Return the embedding of each position, ``(n_genes + 3, dim)``; padding comes last.

        It is the sum of a learned embedding and, for all but padding, a projection of the
        relations. In evaluation mode without gradients it is computed once per weights.
        """
        if self.relation is None:
            return self.position_embedding.weight
        used = (self.position_embedding, self.relation_projection)
        weights = [self.relation, *(p for m in used for p in cast("nn.Module", m).parameters())]
        return self._keep("identity", weights, self._identity)

    def _identity(self) -> Tensor:
        relation, projection = self.relation, cast("nn.Linear", self.relation_projection)
        return self.position_embedding.weight + F.pad(projection(relation), (0, 0, 0, 1))

    def pool(self, encoded: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pool the tokens of each cell.

        Parameters
        ----------
        encoded
            ``(b, n, dim)``, what :meth:`encode` returned.
        padding
            The same as there.

        Returns
        -------
        cell_embedding
            ``(b, 4 * dim)``: last token, last but one, then largest value and mean over the genes.
        maximum
            ``(b, dim)``: largest value over all tokens, which is quantised.
        """
        b, n, _ = encoded.shape
        place = torch.arange(n, device=encoded.device)
        real = torch.ones(b, n, dtype=torch.bool, device=encoded.device)
        if padding is not None:
            real = ~padding
        if n < N_COUNT_TOKENS + 1 or int(real.sum(1).min()) <= N_COUNT_TOKENS:
            raise ValueError("A cell has no expressed gene; leave it out.")
        cells = torch.arange(b, device=encoded.device)
        last = torch.where(real, place, -1).amax(1)
        before = torch.where(real & (place < last.unsqueeze(1)), place, -1).amax(1)
        gene = (real & (place < before.unsqueeze(1))).unsqueeze(-1)
        largest = encoded.masked_fill(~gene, -torch.inf).amax(1)
        mean = encoded.masked_fill(~gene, 0.0).sum(1) / gene.sum(1)
        two = encoded[cells, last], encoded[cells, before]
        maximum = torch.maximum(largest, torch.maximum(*two))
        return torch.cat([*two, largest, mean], dim=-1), maximum

    def encode_cells(
        self,
        values: Tensor,
        gene_ids: Tensor,
        padding: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Encoded:
        """Encode and pool the tokens of cells; arguments as for :meth:`encode`."""
        states = self.encode(values, gene_ids, padding, dtype=dtype)
        return Encoded(states, *self.pool(states, padding))

    def quantize(
        self,
        maximum: Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Quantised:
        """Give each cell its code.

        Parameters
        ----------
        maximum
            ``(b, dim)``, the second output of :meth:`pool`; with ``expression_codes``
            ``(b, code_dim)``, where cells lie among the codes.
        temperature, generator
            As in :meth:`cfm.nn._soft_codes.SoftCodes.forward`; at 0 the nearest code is taken,
            as with ``expression_codes`` always.
        """
        quantised: Quantised
        if isinstance(self.quantiser, ExpressionCodes):
            quantised = self.quantiser(maximum)
        else:
            quantised = self.quantiser(
                maximum, temperature=temperature, generator=generator, codebook=self.codebook()
            )
        return quantised

    def codebook(self) -> Tensor:
        """Return all codes, ``(n_codes, code_dim)`` of unit length.

        In evaluation mode without gradients they are computed once per weights.
        """
        quantiser = self.quantiser
        if isinstance(quantiser, ExpressionCodes):
            return quantiser.codebook()
        weights = [*quantiser.network.parameters(), *quantiser.network.buffers()]
        return self._keep("codebook", weights, quantiser.codebook)

    def code_reader(self, measured: np.ndarray) -> CodeReader | None:
        """Return how codes are read from the measured genes; ``None`` where the encoder finds them.

        Parameters
        ----------
        measured
            ``(n_genes,)`` bool.
        """
        quantiser = self.quantiser
        return quantiser.reader(measured) if isinstance(quantiser, ExpressionCodes) else None

    @property
    def bits(self) -> Tensor:
        """Binary number of each code, ``(n_codes, n_bits)`` int8."""
        return self.quantiser.bits

    def decode(
        self,
        encoded: Tensor,
        gene_ids: Tensor,
        padding: Tensor | None = None,
        *,
        vector: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the counts of all genes.

        Parameters
        ----------
        encoded, gene_ids, padding
            Tokens that the decoder sees, their positions, and where there is no token.
        vector
            ``(b, dim)``, added to every position, such as the code of a cell; not in the
            published model.

        Returns
        -------
        Mean, dispersion and dropout of a zero-inflated negative binomial, each ``(b, n_genes)``
        float32.
        """
        n_positions = self.n_genes + N_COUNT_TOKENS
        silent = self.value_embedding(encoded.new_zeros(())).to(encoded.dtype)
        tokens = silent.expand(len(encoded), n_positions + 1, -1)
        if padding is not None:  # written to a position that is dropped
            gene_ids = gene_ids.masked_fill(padding, n_positions)
        place = gene_ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        tokens = tokens.scatter(1, place, encoded)
        tokens = tokens[:, :n_positions] + self.identity()[:n_positions]
        if vector is not None:
            tokens = tokens + vector.unsqueeze(1)
        mean, dispersion, dropout = self.decoder(tokens)
        n = self.n_genes
        mean = mean[:, :n]
        if self.code_term is not None and vector is not None:
            mean = self.code_term(mean, vector)
        return mean, dispersion[:, :n], dropout[:, :n]

    def classify(self, cell_embedding: Tensor) -> dict[str, Tensor]:
        """Return logits of all property heads, by name ``(b, n_classes)``."""
        return cast("dict[str, Tensor]", self.property_heads(cell_embedding))

    @torch.no_grad()
    def attention(
        self, values: Tensor, gene_ids: Tensor, padding: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yield attention weights layer by layer; arguments as for :meth:`encode`.

        Yields
        ------
        ``(b, heads, n, n)``: rows are queries and sum to 1; nothing attends to padding.
        """
        self._check(values, gene_ids, padding)
        if padding is not None:
            values, gene_ids = self._blank(values, gene_ids, padding)
        x = self.value_embedding(values) + F.embedding(gene_ids, self.identity())
        bias = _bias(padding, x)
        for i, module in enumerate(self.layers):
            layer = cast("TransformerEncoderLayer", module)
            yield layer.attention_weights(x, bias)
            if i + 1 < len(self.layers):
                x = layer(x, bias)

    def bfloat16_agreement(self) -> float:
        """Return the mean cosine of centred tokens in bfloat16 and in float32.

        Computed once per weights, on four random cells of up to 256 genes.
        """
        weights = list(self.layers.parameters())
        return float(self._cache.get("agreement", weights, self._try_bfloat16))

    @torch.no_grad()
    def _try_bfloat16(self) -> Tensor:
        device = self.position_embedding.weight.device
        generator = torch.Generator().manual_seed(0)
        n = min(256, self.n_genes)
        genes = torch.stack([torch.randperm(self.n_genes, generator=generator)[:n]] * 4)
        values = 0.5 + 3.0 * torch.rand(4, n, generator=generator)
        counts = torch.tensor([self.n_genes, self.n_genes + 1]).expand(4, -1)
        genes = torch.cat([genes, counts], dim=1).to(device)
        values = torch.cat([values, torch.full((4, 2), 4.0)], dim=1).to(device)
        training = self.training
        self.eval()
        exact, rough = (
            self.encode(values, genes, dtype=dtype).flatten(0, 1)
            for dtype in (torch.float32, torch.bfloat16)
        )
        self.train(training)
        return F.cosine_similarity(exact - exact.mean(0), rough - rough.mean(0)).mean()

    def train(self, mode: bool = True) -> CellVQModule:
        """Switch between training and evaluation; cached tensors are dropped."""
        if mode:
            self._cache.clear()
        return super().train(mode)

    def _stack(self, dtype: torch.dtype) -> PreparedStack:
        weights = list(self.layers.parameters())
        return cast(
            "PreparedStack",
            self._cache.get(str(dtype), weights, lambda: PreparedStack(self.layers, dtype)),
        )

    def _keep(self, name: str, weights: Iterable[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """Return a cached tensor; compute it if it is new, or if gradients are needed."""
        if self.training or torch.is_grad_enabled():
            return make()
        return cast("Tensor", self._cache.get(name, weights, make))

    def _blank(self, values: Tensor, genes: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Overwrite values and positions at padding, which may be anything."""
        return values.masked_fill(padding, 0.0), genes.masked_fill(padding, self.n_genes + 2)

    def _check(self, values: Tensor, gene_ids: Tensor, padding: Tensor | None) -> None:
        if values.ndim != 2 or gene_ids.shape != values.shape:
            raise ValueError(
                f"Values are {tuple(values.shape)} and gene_ids {tuple(gene_ids.shape)}; expected "
                "both as (cells, tokens)."
            )
        known = gene_ids
        if padding is not None:
            if padding.shape != values.shape or padding.dtype != torch.bool:
                raise ValueError(
                    f"Padding is {padding.dtype} {tuple(padding.shape)}; expected bool "
                    f"{tuple(values.shape)}, true where there is no token."
                )
            if bool(padding.all(1).any()):
                raise ValueError("A cell has no tokens; leave it out.")
            known = gene_ids[~padding]
        last = self.n_genes + N_COUNT_TOKENS - 1
        if known.numel() and not 0 <= int(known.min()) <= int(known.max()) <= last:
            raise ValueError(
                f"Positions go from {int(known.min())} to {int(known.max())}; the model has genes "
                f"0 to {self.n_genes - 1} and the two count tokens {last - 1} and {last}."
            )


def _bias(padding: Tensor | None, x: Tensor) -> Tensor | None:
    """Return the bias that hides padding in attention, ``(b, n)``."""
    if padding is None:
        return None
    zeros = torch.zeros(padding.shape, device=x.device, dtype=x.dtype)
    return zeros.masked_fill(padding, -torch.inf)
