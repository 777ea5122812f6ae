"""Terms that stand beside the network: the distribution of counts that conditions alone give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from cfm.models.lingshu._conditions import Conditions


class CountTerm(Protocol):
    """What a module needs to be the ``count_term`` of a network.

    It is an :class:`torch.nn.Module`; its tensors are stored with the network's, and ``sizes``
    in the configuration: a class of :data:`TERMS` is made again by ``TERMS[kind](**sizes)``.
    """

    sizes: dict[str, Any]

    def __call__(self, conditions: Conditions, rows: Tensor, genes: Tensor) -> Tensor:
        """Return log-probabilities of the 281 values of some genes of some cells.

        Parameters
        ----------
        conditions
            Of ``b`` cells.
        rows
            ``(m,)`` int64, cells (0 to ``b - 1``).
        genes
            ``(m,)`` int64, genes of the vocabulary.

        Returns
        -------
        ``(m, 281)`` float32, for ``rows[i]`` and ``genes[i]``. They are added to the logits.
        """


#: Classes of terms by the name under which checkpoints know them.
TERMS: dict[str, type[nn.Module]] = {}
