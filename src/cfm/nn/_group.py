"""Genes in groups: many value tokens to one trunk token, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupCompression(nn.Module):
    r"""Compress a sequence of genes by a fixed factor (Lingshu-Cell, eq. 8 and 9).

    Genes are put into one random order :math:`\pi`, drawn once and kept as a buffer, and cut into
    groups of :math:`S`; the last is padded. A group's embeddings are concatenated and mapped by
    :math:`W_\text{down}: S D \to D`; after the trunk :math:`W_\text{up}: D \to S D` gives each
    gene its own vector again. Both are shared by all groups.

    Both are applied without ever forming the ``(b, n_genes, dim)`` embeddings. There are few
    different values, so what each of them adds from each place of a group is tabulated once and
    summed (:meth:`pack`); and a linear head is multiplied into :math:`W_\text{up}`
    (:meth:`heads`). The functions are the same, up to rounding.

    Parameters
    ----------
    n_genes
        Number of genes.
    dim
        Width of the embeddings and of the tokens.
    group_size
        Genes per group, :math:`S`.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import GroupCompression
    >>> groups = GroupCompression(n_genes=10, dim=8, group_size=4)
    >>> groups.n_groups
    3
    """

    permutation: Tensor
    position: Tensor

    def __init__(self, n_genes: int, dim: int, group_size: int) -> None:
        super().__init__()
        self.n_genes = n_genes
        self.group_size = group_size
        self.n_groups = -(-n_genes // group_size)
        self.down = nn.Linear(group_size * dim, dim, bias=False)
        self.up = nn.Linear(dim, group_size * dim, bias=False)
        # Gene at each position; its inverse follows from it.
        self.register_buffer("permutation", torch.randperm(n_genes))
        self.register_buffer("position", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_load_state_dict_post_hook(_forget_position)

    def positions(self) -> Tensor:
        """Return the position of each gene in the order of the groups, ``(n_genes,)`` int64."""
        if self.position.shape != self.permutation.shape or (
            self.position.device != self.permutation.device
        ):
            with torch.inference_mode(False):  # training may use it next
                self.position = torch.argsort(self.permutation)
        return self.position

    def table(self, embedding: Tensor) -> Tensor:
        """Return what each value adds from each place, ``(group_size * v, dim)``.

        Parameters
        ----------
        embedding
            ``(v, dim)``, embedding of each value.
        """
        dim = self.up.in_features
        down = self.down.weight.view(-1, self.group_size, dim)  # (dim, s, dim)
        made = torch.matmul(embedding, down.permute(1, 2, 0))  # (s, v, dim)
        return made.reshape(-1, made.shape[-1])

    def pack(self, tokens: Tensor, table: Tensor, padding: int) -> Tensor:
        """Turn values into one token per group.

        Parameters
        ----------
        tokens
            ``(b, n_genes)`` int64, value of each gene.
        table
            What :meth:`table` returned.
        padding
            Value that fills up the last group.

        Returns
        -------
        ``(b, n_groups, dim)`` float32.
        """
        size = self.group_size
        ordered = tokens[:, self.permutation]
        lacking = self.n_groups * size - self.n_genes
        ordered = F.pad(ordered, (0, lacking), value=padding).view(-1, size)
        offset = torch.arange(size, device=tokens.device) * (len(table) // size)
        packed = F.embedding_bag(ordered + offset, table.float(), mode="sum")
        return packed.view(len(tokens), self.n_groups, -1)

    def unpack(self, x: Tensor) -> Tensor:
        """Turn tokens ``(b, n_groups, dim)`` into a vector per gene, ``(b, n_genes, dim)``."""
        made = self.up(x).view(len(x), self.n_groups * self.group_size, -1)
        return made[:, self.positions()]

    def heads(self, head: Tensor) -> Tensor:
        """Multiply a linear head ``(v, dim)`` into the way back.

        Returns
        -------
        ``(group_size, v, dim)``: for each place, from a group's token to the head's output.
        """
        return torch.matmul(head, self.up.weight.view(self.group_size, -1, self.up.in_features))


def _forget_position(groups: nn.Module, loaded: object) -> None:
    """Drop what follows from the permutation; it is computed again when it is needed."""
    groups.position = torch.empty(0, dtype=torch.int64)
