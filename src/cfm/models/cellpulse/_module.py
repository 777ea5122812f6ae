"""CellPulse, tensor side: tokens of a differential-expression profile in, predictions out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm._arguments import Dropout, check_fields
from cfm.nn import DirectionBlock, LowRankLogistic, MagnitudeEmbedding
from cfm.nn._distributed import gathered, means_over_processes

if TYPE_CHECKING:
    from cfm.models._streams import Drawn

# States of a token: the direction of a gene's effect, or why there is none.
DOWN, UNCHANGED, UP = 0, 1, 2
N_DIRECTIONS = 3
#: The direction is masked, and to be predicted.
MASKED = 3
#: The summary token, whose output is the embedding of the profile.
SUMMARY = 4
N_STATES = 5
#: Padding of short profiles; attention gives it exactly zero weight.
PADDING = N_STATES


#: Layers of the network that read gene factors.
_FACTOR_PROJECTIONS = ("gene_projection", "signed_projection", "summary_projection")


@dataclass(frozen=True)
class CellPulseSize:
    """Sizes of the network; see :class:`CellPulseModule`. ``n_tokens`` is the context."""

    n_tokens: int
    n_factors: int
    dim: int
    n_layers: int
    n_heads: int
    ff_mult: int = 4
    dropout: Dropout = 0.1
    attention_dropout: Dropout = 0.0
    learn_gene_embedding: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def module_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments of the module."""
        arguments = asdict(self)
        del arguments["n_tokens"]
        return arguments


#: ``mini`` is what ships with cfm; ``published`` has the scale that the abstract of CellPulse
#: implies (no size is published): 2,048 genes of context and over 100 million parameters.
SIZES = {
    "mini": CellPulseSize(
        n_tokens=1024, n_factors=128, dim=128, n_layers=1, n_heads=4, attention_dropout=0.1
    ),
    "small": CellPulseSize(n_tokens=1024, n_factors=128, dim=256, n_layers=4, n_heads=8),
    "base": CellPulseSize(
        n_tokens=2048, n_factors=256, dim=512, n_layers=8, n_heads=8, learn_gene_embedding=True
    ),
    "published": CellPulseSize(
        n_tokens=2048, n_factors=256, dim=768, n_layers=14, n_heads=12, learn_gene_embedding=True
    ),
}


class Tokens(NamedTuple):
    """A batch of tokenised profiles.

    ``gene`` ``(b, n)`` int64 positions in the vocabulary (0 at padding), ``state`` ``(b, n)`` int64
    token states, ``magnitude`` ``(b, n)`` float32 log1p(|log2FC|), ``NaN`` where unknown or masked.
    """

    gene: Tensor
    state: Tensor
    magnitude: Tensor

    def to(self, device: torch.device | str) -> Tokens:
        """Move all three tensors."""
        return Tokens(*(t.to(device, non_blocking=True) for t in self))


@dataclass
class Encoded:
    """Output of the encoder for a batch of profiles.

    ``summary`` ``(b, dim)`` embedding of each profile, ``tokens`` ``(b, n, dim)``, ``linear``
    ``(b, n)`` direction of every token's gene as the linear gene-gene term scores it, ``genes``
    ``(b, n, dim)`` identity embedding of every token's gene, ``size`` ``(b, n)`` magnitude of every
    token as the size line predicts it.
    """

    summary: Tensor
    tokens: Tensor
    linear: Tensor
    genes: Tensor
    size: Tensor


class CellPulseModule(nn.Module):
    """Transformer over the strongest effects of a profile, with a linear gene-gene term inside.

    A token is the sum of a gene, a direction and a magnitude embedding. Attention is
    direction-aware (:class:`cfm.nn.DirectionAttention`). A linear term
    (:class:`cfm.nn.LowRankLogistic`) predicts every gene from the visible ones; its prediction is
    both an input feature of the transformer and a term of the direction logits, so that the
    transformer is only fitted to what the linear term does not explain.

    Parameters
    ----------
    n_genes
        Size of the vocabulary.
    n_factors
        Rank of the linear gene-gene term.
    dim, n_layers, n_heads, ff_mult, dropout, attention_dropout
        Size of the transformer.
    learn_gene_embedding
        Add a free embedding per gene to the projection of its factors.
    """

    gene_factors: Tensor
    factor_group: Tensor
    correction_weight: Tensor
    usual_size: Tensor
    size_correction_weight: Tensor

    def __init__(
        self,
        n_genes: int,
        *,
        n_factors: int = 128,
        dim: int = 128,
        n_layers: int = 1,
        n_heads: int = 4,
        ff_mult: int = 4,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        learn_gene_embedding: bool = False,
    ) -> None:
        super().__init__()
        self.n_genes = n_genes
        self.dim = dim
        # in closed form, see CellPulse.fit_gene_factors; only their relevance is trained
        self.register_buffer("gene_factors", torch.zeros(n_genes, n_factors))
        self.register_buffer("factor_group", torch.zeros(n_factors, dtype=torch.int64))
        self.log_relevance = nn.Parameter(torch.zeros(1))
        self.linear = LowRankLogistic()
        self.linear_weight = nn.Parameter(torch.tensor(1.0))
        # How much of the transformer's correction is used; fitted on studies held out of training.
        self.register_buffer("correction_weight", torch.tensor(1.0))
        # log1p(|log2FC|) of a gene relative to its profile, a mean over known profiles.
        self.register_buffer("usual_size", torch.zeros(n_genes))
        self.register_buffer("size_correction_weight", torch.tensor(1.0))
        self.gene_projection = nn.Linear(n_factors, dim)
        self.gene_embedding = nn.Embedding(n_genes, dim) if learn_gene_embedding else None
        self.state_embedding = nn.Embedding(N_STATES + 1, dim, padding_idx=PADDING)
        self.magnitude_embedding = MagnitudeEmbedding(dim)
        self.signed_projection = nn.Linear(n_factors, dim, bias=False)
        self.linear_feature = nn.Linear(2, dim)
        self.summary_projection = nn.Linear(n_factors, dim)
        self.blocks = nn.ModuleList(
            DirectionBlock(dim, n_heads, N_STATES, ff_mult, dropout, attention_dropout)
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.direction_head = nn.Linear(dim, N_DIRECTIONS)
        self.magnitude_head = nn.Linear(dim, 1)
        self.summary_head = nn.Linear(dim, dim)
        for embedding in (self.state_embedding, self.gene_embedding):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=0.02)
        # The correction starts at 0: before training the prediction is that of the linear term.
        nn.init.zeros_(self.direction_head.weight)
        nn.init.zeros_(self.direction_head.bias)
        nn.init.zeros_(self.magnitude_head.weight)
        nn.init.zeros_(self.magnitude_head.bias)

    def set_gene_factors(self, values: Tensor, group: Tensor) -> None:
        """Set closed-form gene factors and the group of each, whose relevance is learned.

        Parameters
        ----------
        values
            ``(n_genes, n_factors)``; ``n_factors`` may differ from before: the projections that
            read factors are then made anew.
        group
            ``(n_factors,)`` int64 ids from 0.
        """
        if values.shape[0] != self.n_genes:
            raise ValueError(f"Gene factors of {values.shape[0]} genes; expected {self.n_genes}.")
        device = self.gene_factors.device
        n_factors = values.shape[1]
        if n_factors != self.gene_factors.shape[1]:
            for name in _FACTOR_PROJECTIONS:
                old = getattr(self, name)
                layer = nn.Linear(n_factors, self.dim, bias=old.bias is not None)
                setattr(self, name, layer.to(device))
        self.gene_factors = values.to(device)
        self.factor_group = group.to(device)
        relevance = torch.zeros(int(group.max()) + 1, device=device)
        self.log_relevance = nn.Parameter(relevance)

    def scaled_factors(self) -> Tensor:
        """Return the gene factors times their learned relevance, ``(n_genes, n_factors)``."""
        return self.gene_factors * self.log_relevance.exp()[self.factor_group]

    @torch.no_grad()
    def rotate_factors(self, rotation: Tensor) -> None:
        """Replace factors by ``factors @ rotation``, and all that reads them accordingly.

        Parameters
        ----------
        rotation
            ``(n_factors, rank)`` with orthonormal columns; learned relevances are absorbed.
        """
        values = self.scaled_factors() @ rotation
        for name in _FACTOR_PROJECTIONS:
            old = getattr(self, name)
            layer = nn.Linear(rotation.shape[1], self.dim, bias=old.bias is not None)
            layer.to(rotation.device).weight.copy_(old.weight @ rotation)
            if old.bias is not None:
                layer.bias.copy_(old.bias)
            setattr(self, name, layer)
        self.gene_factors = values
        self.factor_group = torch.zeros(rotation.shape[1], dtype=torch.int64).to(values.device)
        self.log_relevance = nn.Parameter(torch.zeros(1, device=values.device))

    def linear_scores(
        self, tokens: Tokens, factor_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the linear term on the visible tokens.

        Parameters
        ----------
        tokens
            A batch; masked tokens are predicted, not read.
        factor_mask
            ``(b, n_factors)`` of 0 and 1: factors that a profile may be predicted with.

        Returns
        -------
        ``(b, n)`` linear score of every token, ``(b, n, r)`` factors of the tokens and ``(b, r)``
        factor scores of the profiles.
        """
        visible = tokens.state < N_DIRECTIONS
        factors = self.scaled_factors()[tokens.gene]  # (b, n, r)
        if factor_mask is not None:
            factors = factors * factor_mask.unsqueeze(1)
        z = self.linear.scores(factors, tokens.state - 1, visible)  # (b, r)
        return (factors @ z.unsqueeze(-1)).squeeze(-1), factors, z

    @torch.no_grad()
    def size_line(self, tokens: Tokens) -> Tensor:
        """Predict magnitudes from the level of the visible ones and each gene's usual size.

        Within a profile the visible magnitudes are regressed on the usual sizes of their genes;
        the line, with a slope between 0 and 1, is read off at every token. 0 where no magnitude
        is visible.

        Returns
        -------
        ``(b, n)`` log1p(|log2FC|).
        """
        known = ~torch.isnan(tokens.magnitude)
        usual = self.usual_size[tokens.gene]  # (b, n)
        own = tokens.magnitude.nan_to_num(0.0)
        n = known.sum(1, keepdim=True).clamp(min=1)
        spread = (usual - (usual * known).sum(1, keepdim=True) / n) * known
        # One pseudo-observation per unit of variance keeps the slope of a short profile near 0.
        slope = (spread * own).sum(1, keepdim=True) / (spread.square().sum(1, keepdim=True) + 1.0)
        unknown = torch.full_like(usual, float("nan"))
        middle = torch.where(known, usual, unknown).nanmedian(1, keepdim=True).values
        level = tokens.magnitude.nanmedian(1, keepdim=True).values
        return (level + slope.clamp(0.0, 1.0) * (usual - middle)).nan_to_num(0.0)

    def encode(self, tokens: Tokens, factor_mask: Tensor | None = None) -> Encoded:
        """Run the transformer over a batch of tokens.

        Parameters
        ----------
        tokens, factor_mask
            See :meth:`linear_scores`.
        """
        x, state, linear, genes = self._embed(tokens, factor_mask)
        for block in self.blocks:
            x = block(x, state)
        x = self.norm(x)
        return Encoded(x[:, 0], x[:, 1:], linear, genes, self.size_line(tokens))

    def _embed(
        self, tokens: Tokens, factor_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embed tokens behind a summary token.

        Returns ``(b, n + 1, dim)`` tokens, ``(b, n + 1)`` states, ``(b, n)`` linear scores and
        ``(b, n, dim)`` gene embeddings.
        """
        state = tokens.state
        visible = state < N_DIRECTIONS
        linear, factors, z = self.linear_scores(tokens, factor_mask)
        sign = (state - 1).to(factors.dtype) * visible  # −1, 0, 1
        majority = sign.sum(1) / visible.sum(1).clamp(min=1)  # (b,)
        context = torch.stack([linear, majority.unsqueeze(1).expand_as(linear)], dim=-1)
        genes = self.gene_projection(factors)  # (b, n, dim)
        if self.gene_embedding is not None:
            genes = genes + self.gene_embedding(tokens.gene)
        x = (
            genes
            + self.state_embedding(state)
            + self.signed_projection(factors) * sign.unsqueeze(-1)
            + self.magnitude_embedding(tokens.magnitude, ~torch.isnan(tokens.magnitude))
            + self.linear_feature(context)
        )  # (b, n, dim)
        summary_state = torch.full_like(state[:, :1], SUMMARY)
        summary = self.state_embedding(summary_state) + self.summary_projection(z).unsqueeze(1)
        x = torch.cat([summary, x], dim=1)  # (b, n + 1, dim)
        return x, torch.cat([summary_state, state], dim=1), linear, genes

    def attention(self, tokens: Tokens) -> Tensor:
        """Return attention weights, ``(b, layers, heads, n + 1, n + 1)``; position 0 = summary."""
        x, state, _, _ = self._embed(tokens)
        maps = []
        for block in self.blocks:
            maps.append(cast("DirectionBlock", block).attention_weights(x, state))
            x = block(x, state)
        return torch.stack(maps, dim=1)

    def attention_rollout(self, tokens: Tokens) -> Tensor:
        r"""Return the summary's row of the attention rollout, ``(b, n + 1)``; position 0 = summary.

        The heads of a layer are averaged, the residual stream is counted as attention to itself,
        and layers are multiplied (Abnar & Zuidema 2020): :math:`R = \prod_l (A_l + I) / 2`.
        """
        x, state, _, _ = self._embed(tokens)
        rolled: Tensor | None = None  # (b, n + 1, n + 1)
        blocks = [cast("DirectionBlock", block) for block in self.blocks]
        for block in blocks[:-1]:
            mean = block.attention_weights(x, state).mean(dim=1)
            step = 0.5 * (mean + torch.eye(mean.shape[-1], device=mean.device))
            rolled = step if rolled is None else step @ rolled
            x = block(x, state)
        # of the last layer only the summary's row is computed
        last = blocks[-1].attention
        q, k, _ = last.queries_keys_values(blocks[-1].attention_norm(x), state)
        row = torch.softmax(q[:, :, :1] @ k.transpose(-1, -2) / last.head_dim**0.5, dim=-1)
        row = 0.5 * row.mean(dim=1)  # (b, 1, n + 1)
        row[:, :, 0] += 0.5
        return (row if rolled is None else row @ rolled)[:, 0]

    def predict_tokens(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Predict the direction and magnitude of every token.

        Returns
        -------
        ``(b, n, 3)`` logits of down, unchanged and up, and ``(b, n)`` log1p(|log2FC|).
        """
        tilt = self.linear_weight * encoded.linear  # (b, n)
        signed = torch.stack([-tilt, torch.zeros_like(tilt), tilt], dim=-1)
        correction = self.direction_head(encoded.tokens)  # (b, n, 3)
        logits = signed + self.correction_weight * correction
        correction = self.magnitude_head(encoded.tokens).squeeze(-1)  # (b, n)
        return logits, encoded.size + self.size_correction_weight * correction

    def predict_genes(self, tokens: Tokens, genes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict genes, ``(m,)`` positions in the vocabulary, from the tokens of profiles.

        Returns
        -------
        ``(b, m)`` log-odds of up against down, and ``(b, m)`` log1p(|log2FC|).
        """
        logits, magnitude = self.predict_tokens(self.encode(append_masked(tokens, genes)))
        n = tokens.gene.shape[1]
        return (logits[..., UP] - logits[..., DOWN])[:, n:], magnitude[:, n:]

    def losses(
        self,
        tokens: Tokens,
        target: Tokens,
        masked: Tensor,
        *,
        groups: Tensor | None = None,
        factor_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the pretraining losses of a batch.

        Parameters
        ----------
        tokens
            Tokens with a part of the states set to ``MASKED``.
        target
            The same tokens before masking.
        masked
            ``(b, n)`` bool, the masked ones.
        groups
            ``(b,)`` ids of the infected sample; profiles of one sample are made to agree.
        factor_mask
            See :meth:`linear_scores`.

        Returns
        -------
        ``direction`` (cross-entropy over down, unchanged, up), ``magnitude`` (Huber, log1p scale),
        ``summary`` (direction of masked genes from the summary alone) and, with groups,
        ``agreement`` (InfoNCE). Processes that train together take all over the profiles of all.
        """
        encoded = self.encode(tokens, factor_mask)
        logits, size = self.predict_tokens(encoded)
        direction = F.cross_entropy(logits[masked], target.state[masked], reduction="none")
        sized = masked & ~torch.isnan(target.magnitude)
        error = F.huber_loss(size[sized], target.magnitude[sized], delta=0.5, reduction="none")
        moved = masked & (target.state != UNCHANGED)
        recalled = torch.einsum("bd,bnd->bn", self.summary_head(encoded.summary), encoded.genes)
        recalled = recalled / self.dim**0.5
        up = (target.state[moved] == UP).to(recalled.dtype)
        surprise = F.binary_cross_entropy_with_logits(recalled[moved], up, reduction="none")
        parts = {"direction": direction, "magnitude": error, "summary": surprise}
        sums = ((part.sum(), part.numel()) for part in parts.values())
        out = dict(zip(parts, means_over_processes(*sums), strict=True))
        if groups is not None:
            # in validation every process has the whole batch
            pair = encoded.summary, groups
            pair = (gathered(pair[0]), gathered(pair[1])) if self.training else pair
            out["agreement"] = agreement_loss(*pair)
        return out

    def linear_loss(
        self, tokens: Tokens, target: Tokens, masked: Tensor, factor_mask: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy of the linear term alone on the masked genes that move."""
        linear, _, _ = self.linear_scores(tokens, factor_mask)
        moved = masked & (target.state != UNCHANGED)
        sign = (target.state[moved] - 1).to(linear.dtype)
        loss = F.softplus(-2.0 * self.linear_weight * linear[moved] * sign)
        return means_over_processes((loss.sum(), loss.numel()))[0]

    forward = encode


def append_masked(tokens: Tokens, genes: Tensor) -> Tokens:
    """Append masked tokens of ``genes``, last and in their order, to every profile."""
    gene = genes.expand(len(tokens.gene), -1)
    magnitude = torch.full_like(gene, float("nan"), dtype=torch.float32)
    added = Tokens(gene, torch.full_like(gene, MASKED), magnitude)
    return Tokens(*(torch.cat(pair, dim=1) for pair in zip(tokens, added, strict=True)))


def subsample(
    tokens: Tokens, n: int, generator: torch.Generator, drawn: Drawn | None = None
) -> Tokens:
    """Keep ``n`` random tokens of each profile, padding last; see :func:`mask_tokens`."""
    if tokens.gene.shape[1] <= n:
        return tokens
    order = _draw(tokens, generator, drawn) + (tokens.state == PADDING) * 2.0
    keep = order.argsort(dim=1)[:, :n]
    return Tokens(*(t.gather(1, keep) for t in tokens))


def mask_tokens(
    tokens: Tokens,
    share: Tensor,
    generator: torch.Generator | None = None,
    drawn: Drawn | None = None,
) -> tuple[Tokens, Tensor]:
    """Mask the state and magnitude of a random part of each profile's tokens.

    Parameters
    ----------
    tokens
        Tokens without masks.
    share
        ``(b,)`` share of tokens to mask per profile.
    generator
        Source of randomness.
    drawn
        Part of the batch, if processes share it; the numbers are drawn for the whole batch.

    Returns
    -------
    The tokens with a part masked, and ``(b, n)`` bool, the masked ones.
    """
    real = tokens.state != PADDING
    draw = _draw(tokens, generator, drawn).to(tokens.state.device)
    masked = real & (draw < share.unsqueeze(1))
    state = torch.where(masked, torch.full_like(tokens.state, MASKED), tokens.state)
    magnitude = tokens.magnitude.masked_fill(masked, float("nan"))
    return Tokens(tokens.gene, state, magnitude), masked


def _draw(tokens: Tokens, generator: torch.Generator | None, drawn: Drawn | None) -> Tensor:
    """Draw a number for each token, ``(b, n)``."""
    if drawn is None:
        return torch.rand(tokens.state.shape, generator=generator)
    whole = torch.rand(len(drawn.rows), tokens.state.shape[1], generator=generator)
    return whole[drawn.part]


def mean_or_zero(values: Tensor) -> Tensor:
    """Return the mean, or 0 if there is no value."""
    return values.sum() / max(1, values.numel())


def agreement_loss(summary: Tensor, groups: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE between profiles that share a group, against the rest of the batch.

    Profiles alone in their group serve as negatives only; 0 if no two profiles share a group.
    """
    z = F.normalize(summary, dim=-1)
    logits = z @ z.T / temperature  # (b, b)
    eye = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = logits.masked_fill(eye, float("-inf"))
    same = (groups.unsqueeze(0) == groups.unsqueeze(1)) & ~eye
    paired = same.any(dim=1)
    if not bool(paired.any()):
        return summary.sum() * 0.0
    log_p = torch.log_softmax(logits, dim=1).masked_fill(eye, 0.0)
    return -((log_p * same).sum(1)[paired] / same.sum(1)[paired]).mean()
