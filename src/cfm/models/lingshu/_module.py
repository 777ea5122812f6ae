"""Lingshu-Cell, tensor side: masked discrete diffusion over count tokens, and its sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm._arguments import check_fields
from cfm.models.count_model._module import CONTROL, FIRST_PART, UNKNOWN, Conditions
from cfm.models.lingshu._counts import N_VALUES
from cfm.nn._diffusion import absorbing_loss
from cfm.nn._genes import GroupCompression
from cfm.nn._kernels import linear
from cfm.nn._transformers import LlamaTrunk

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Token of what is hidden, or not measured.
MASK = N_VALUES
#: In what is given for training: a gene that is not measured.
MISSING = -1
#: Depth has a vector at each half octave from 2**4 to 2**20, and is interpolated between.
_DEPTH_KNOTS = 33
_FIRST_OCTAVE, _KNOTS_PER_OCTAVE = 4.0, 2.0


@dataclass(frozen=True)
class LingshuSize:
    """Sizes of the network.

    Attributes
    ----------
    dim, n_layers, n_heads, ff_dim
        Width, layers, attention heads and hidden feed-forward width of the trunk.
    group_size
        Genes per token of the trunk.
    depth
        Whether the library size of a cell is one of its conditions.
    learned_positions
        Whether each group of genes has a learned vector beside its rotary position.
    """

    dim: int
    n_layers: int
    n_heads: int
    ff_dim: int
    group_size: int
    depth: bool = False
    learned_positions: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dim % (2 * self.n_heads):
            raise ValueError(
                f"dim={self.dim} does not split into n_heads={self.n_heads} heads of even width."
            )


#: ``vcc`` and ``default`` are published (85,214,080 parameters in the trunk; 18,080 genes make 565
#: and 2,260 groups): the first for genetic perturbations, the second for everything else. ``mini``
#: is for laptops and small data.
SIZES = {
    "mini": LingshuSize(128, 4, 4, 512, 16, depth=True, learned_positions=True),
    "default": LingshuSize(640, 13, 10, 2560, 8),
    "vcc": LingshuSize(640, 13, 10, 2560, 32),
}


class LingshuModule(nn.Module):
    """Network of Lingshu-Cell (arXiv 2603.25240).

    Value tokens are embedded, compressed in groups of genes, given the conditions as a prefix, run
    through a bidirectional trunk, expanded again, and scored gene by gene. What a gene is follows
    from its place alone.

    Parameters
    ----------
    n_genes
        Number of genes.
    dim, n_layers, n_heads, ff_dim, group_size, depth, learned_positions
        See :class:`LingshuSize`.
    n_sources
        Levels of the source; 0 leaves the slot out.
    n_parts
        Single perturbations without the control; ``None`` leaves the slot out.
    covariate_sizes
        Levels of each covariate.
    n_features
        Features by which perturbations are described; 0 gives each a vector of its own.

    Notes
    -----
    The embedding table holds 281 values, the mask, and for each slot of the prefix *unknown* and
    its levels. The head of 281 values is a matrix of its own.
    """

    features: Tensor
    depth_quantiles: Tensor
    largest: Tensor

    def __init__(
        self,
        n_genes: int,
        *,
        dim: int,
        n_layers: int,
        n_heads: int,
        ff_dim: int,
        group_size: int,
        depth: bool = False,
        learned_positions: bool = False,
        n_sources: int = 0,
        n_parts: int | None = None,
        covariate_sizes: Sequence[int] = (),
        n_features: int = 0,
    ) -> None:
        super().__init__()
        self.n_genes = n_genes
        self.has_source = n_sources > 0
        self.has_perturbation = n_parts is not None
        self.has_depth = depth
        own_parts = 0 if n_features else (n_parts or 0)
        slots = [n_sources + 1] * self.has_source
        slots += [FIRST_PART + own_parts] * self.has_perturbation
        slots += [n + 1 for n in covariate_sizes]
        slots += [_DEPTH_KNOTS + 1] * depth
        #: First row of each slot of the prefix in the embedding table.
        self.offsets = list(accumulate(slots[:-1], initial=N_VALUES + 1))[: len(slots)]
        self.embedding = nn.Embedding(N_VALUES + 1 + sum(slots), dim)
        self.group = GroupCompression(n_genes, dim, group_size)
        self.group_positions = (
            nn.Parameter(torch.zeros(self.group.n_groups, dim)) if learned_positions else None
        )
        self.trunk = LlamaTrunk(dim, n_layers, n_heads, ff_dim)
        self.head = nn.Linear(dim, N_VALUES, bias=False)
        self.feature_map = nn.Linear(n_features, dim, bias=False) if n_features else None
        if n_features:
            self.register_buffer("features", torch.zeros(n_parts or 0, n_features))
        # Library sizes in training at evenly spaced ranks: of all cells, then of each source.
        self.register_buffer("depth_quantiles", torch.zeros(1 + n_sources, 65 if depth else 0))
        # Largest value that a gene is given when cells are made.
        self.register_buffer("largest", torch.full((n_genes,), N_VALUES - 1, dtype=torch.int32))
        #: Added to the logits; the network then learns the rest.
        self.count_term: Any = None
        self._initialise(0.5 / math.sqrt(dim))

    def _initialise(self, std: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
        if self.group_positions is not None:
            nn.init.normal_(self.group_positions, std=std)
        if self.feature_map is not None:
            nn.init.normal_(
                self.feature_map.weight, std=std / math.sqrt(self.feature_map.in_features)
            )

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.embedding.embedding_dim

    @property
    def n_prefix(self) -> int:
        """Number of condition tokens."""
        return len(self.offsets)

    def set_count_term(self, term: nn.Module | None) -> None:
        """Set the term added to the logits; the head is set to zero, and starts from it alone."""
        self.count_term = term
        if term is not None:
            nn.init.zeros_(self.head.weight)

    def prefix(self, conditions: Conditions) -> Tensor:
        """Embed conditions, ``(b, n_prefix, dim)``: source, perturbation, covariates, depth."""
        table, made = self.embedding.weight, []
        offsets = iter(self.offsets)
        if self.has_source:
            made.append(F.embedding(next(offsets) + conditions.source, table))
        if self.has_perturbation:
            made.append(self._perturbations(conditions, next(offsets)))
        made += [F.embedding(next(offsets) + level, table) for level in conditions.covariates.T]
        if self.has_depth:
            made.append(self._depth(conditions.depth, next(offsets)))
        if not made:
            return table.new_empty(len(conditions.source), 0, self.dim)
        return torch.stack(made, dim=1)

    def _perturbations(self, conditions: Conditions, offset: int) -> Tensor:
        """Sum the embeddings of the parts of each perturbation, ``(b, dim)``."""
        parts = conditions.parts
        if self.feature_map is None:
            known = self.embedding(offset + parts.clamp(min=0))
        else:
            features = self.features if conditions.features is None else conditions.features
            token = self.embedding(offset + parts.clamp(UNKNOWN, CONTROL))
            if not len(features):
                known = token
            else:
                described = self.feature_map(features[(parts - FIRST_PART).clamp(min=0)])
                known = torch.where((parts >= FIRST_PART).unsqueeze(-1), described, token)
        return known.masked_fill((parts < 0).unsqueeze(-1), 0.0).sum(1)

    def _depth(self, depth: Tensor, offset: int) -> Tensor:
        """Interpolate between the vectors of neighbouring depths, ``(b, dim)``."""
        octave = torch.log2(depth.nan_to_num(1.0).clamp(min=1.0))
        place = ((octave - _FIRST_OCTAVE) * _KNOTS_PER_OCTAVE).clamp(0.0, _DEPTH_KNOTS - 1.0)
        low = place.floor().clamp(max=_DEPTH_KNOTS - 2)
        share = (place - low).unsqueeze(-1)
        first = offset + 1 + low.long()
        table = self.embedding.weight
        ends = F.embedding(first, table), F.embedding(first + 1, table)
        between = torch.lerp(*ends, share.to(table.dtype))
        return torch.where(depth.isnan().unsqueeze(-1), table[offset], between)

    def value_table(self) -> Tensor:
        """Return what each value adds to a group from each place; see :class:`GroupCompression`."""
        return self.group.table(self.embedding.weight[: N_VALUES + 1])

    def inputs(self, tokens: Tensor, prefix: Tensor, table: Tensor) -> Tensor:
        """Join prefix and groups into the input of the trunk, ``(b, n_prefix + n_groups, dim)``."""
        packed = self.group.pack(tokens, table, MASK)
        if self.group_positions is not None:
            packed = packed + self.group_positions
        return torch.cat([prefix.to(packed.dtype), packed], dim=1)

    def encode(self, tokens: Tensor, conditions: Conditions) -> Tensor:
        """Run the trunk.

        Parameters
        ----------
        tokens
            ``(b, n_genes)`` int64, 0 to 280, and 281 for what is hidden or missing.
        conditions
            Of the ``b`` cells.

        Returns
        -------
        ``(b, n_groups, dim)``, the final states of the groups.
        """
        x = self.inputs(tokens, self.prefix(conditions), self.value_table())
        return self.trunk(x)[:, self.n_prefix :]

    def logits(
        self, states: Tensor, conditions: Conditions, rows: Tensor, genes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score the values of some genes.

        Parameters
        ----------
        states
            ``(b, n_groups, dim)``, what :meth:`encode` returned.
        conditions
            Of the cells, for the count term.
        rows, genes
            ``(m,)`` int64, which cells and which genes.

        Returns
        -------
        logits
            ``(m, 281)`` float32, in another order.
        order
            ``(m,)`` int64: ``logits[i]`` is of ``rows[order[i]]`` and ``genes[order[i]]``.
        """
        made, order = place_scores(
            states, self.group, self.group.heads(self.head.weight), rows, genes
        )
        made = made.float()
        if self.count_term is not None:
            made = made + self.count_term(conditions, rows[order], genes[order])
        return made, order

    def losses(
        self, tokens: Tensor, hidden: Tensor, time: Tensor, conditions: Conditions
    ) -> dict[str, Tensor]:
        """Return the diffusion loss of a batch (eq. 2), per gene.

        Parameters
        ----------
        tokens
            ``(b, n_genes)`` int64, 0 to 280; −1 = not measured.
        hidden
            ``(b, n_genes)`` bool, what is hidden; missing genes are in any case.
        time
            ``(b,)``, share that was hidden in expectation.
        conditions
            Of the cells.
        """
        measured = tokens != MISSING
        hidden = hidden & measured
        states = self.encode(tokens.masked_fill(hidden | ~measured, MASK), conditions)
        rows, genes = hidden.nonzero(as_tuple=True)
        logits, order = self.logits(states, conditions, rows, genes)
        rows, genes = rows[order], genes[order]
        nll = F.cross_entropy(logits, tokens[rows, genes], reduction="none")
        return {"loss": absorbing_loss(nll, rows, time, measured.sum(1))}


def place_scores(
    states: Tensor, group: GroupCompression, heads: Tensor, rows: Tensor, genes: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply the head of each gene's place to the state of its group.

    Parameters
    ----------
    states
        ``(b, n_groups, dim)``.
    group
        Where genes lie.
    heads
        ``(group_size, v, dim)``, what :meth:`GroupCompression.heads` returned.
    rows, genes
        ``(m,)`` int64.

    Returns
    -------
    ``(m, v)``, sorted by place, and the order: see :meth:`LingshuModule.logits`.
    """
    position = group.positions()[genes]
    place = position % group.group_size
    order = torch.argsort(place, stable=True)
    sizes = torch.bincount(place, minlength=group.group_size).tolist()
    # Not states[rows, groups], whose gradient threads sum up in any order.
    place_of = rows * group.n_groups + position // group.group_size
    chosen = states.flatten(0, 1).index_select(0, place_of[order])  # (m, dim)
    made = [linear(x, head) for x, head in zip(chosen.split(sizes), heads, strict=True)]
    return torch.cat(made), order
