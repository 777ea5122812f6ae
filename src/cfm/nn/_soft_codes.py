"""Quantiser whose codebook is a network over all binary numbers of a length."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.nn._distributed import all_gather_int, common_numbers, process_number

#: Below this temperature no row of a batch bypasses the quantiser.
LEAST_SHORTCUT = 0.02
#: Codes whose nearest neighbours are looked for at once.
_CHUNK = 1024


class Quantised(NamedTuple):
    """Codes of ``b`` vectors.

    Attributes
    ----------
    code
        ``(b,)`` int64 number of the code, 0 to ``n_codes`` - 1.
    vector
        ``(b, dim)``: its code, back in the width of the input.
    latent
        ``(b, code_dim)`` of unit length: where it lies among the codes.
    similarity
        ``(b, n_codes)`` cosine to every code.
    probability
        ``(b, n_codes)`` that codes were drawn with; ``None`` at temperature 0, where the nearest
        one is taken.
    codebook
        ``(n_codes, code_dim)`` of unit length, the codes that were used.
    """

    code: Tensor
    vector: Tensor
    latent: Tensor
    similarity: Tensor
    probability: Tensor | None
    codebook: Tensor


class SoftCodes(nn.Module):
    r"""Quantiser over the :math:`2^L` codes that a network makes of all binary numbers.

    The code of the binary number :math:`b \in \{0, 1\}^L` is :math:`c_b = f(b) / \|f(b)\|`, with
    :math:`f` a network of linear layers, batch norm over the codes, and ReLU; so no code is
    unused for lack of gradients. A vector is projected to :math:`h` of unit length, and at
    temperature :math:`\tau` its code is drawn with probabilities

    .. math:: A = \mathrm{softmax}(2 h C^\top / \tau),

    of whose logits only the part :math:`2 h C^\top` carries gradients, so that they do not grow as
    :math:`\tau` falls. The choice passes gradients straight through to :math:`A` and :math:`h`.

    Parameters
    ----------
    dim
        Width of what is quantised.
    n_bits
        Length *L* of the binary numbers.
    hidden, n_hidden
        Width and number of the hidden layers of *f*.
    code_dim
        Width of the codes.

    References
    ----------
    Gao et al. 2024, FoldToken (SoftCVQ), whose layer CellVQ uses under the name SCD.
    """

    bits: Tensor

    def __init__(
        self,
        dim: int,
        *,
        n_bits: int = 12,
        hidden: int = 1024,
        n_hidden: int = 5,
        code_dim: int = 32,
    ) -> None:
        super().__init__()
        if not 1 <= n_bits <= 20:
            raise ValueError(f"n_bits must be from 1 to 20; found {n_bits!r}.")
        # Always on a real device: loading does not bring it, because it follows from n_bits.
        self.register_buffer("bits", binary_numbers(n_bits), persistent=False)
        layers: list[nn.Module] = []
        width = n_bits
        for _ in range(n_hidden):
            layers += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
            width = hidden
        self.network = nn.Sequential(*layers, nn.Linear(width, code_dim))
        self.proj = nn.Linear(dim, code_dim)
        self.proj_inv = nn.Linear(code_dim, dim)

    @property
    def n_codes(self) -> int:
        """Number of codes."""
        return len(self.bits)

    def codebook(self) -> Tensor:
        """Return all codes, ``(n_codes, code_dim)`` of unit length."""
        weight = self.proj.weight
        with torch.autocast(weight.device.type, enabled=False):
            return F.normalize(self.network(self.bits.to(weight.dtype)), dim=-1)

    def forward(
        self,
        x: Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        codebook: Tensor | None = None,
    ) -> Quantised:
        """Quantise vectors.

        Parameters
        ----------
        x
            ``(b, dim)``.
        temperature
            Of the draw, up to 1; 0 takes the nearest code. In training and above 0.02 it is also
            the share of the rows, drawn by chance, that keep their own ``latent``.
        generator
            Source of randomness, on the device of ``x``.
        codebook
            Result of :meth:`codebook`, if computed before.
        """
        if not 0.0 <= temperature <= 1.0:
            raise ValueError(f"temperature must be from 0 to 1; found {temperature!r}.")
        codes = self.codebook() if codebook is None else codebook
        with torch.autocast(x.device.type, enabled=False):  # cosines to many codes lie close
            return self._quantise(x.to(codes.dtype), temperature, generator, codes)

    def _quantise(
        self, x: Tensor, temperature: float, generator: torch.Generator | None, codes: Tensor
    ) -> Quantised:
        latent = F.normalize(self.proj(x), dim=-1)
        similarity = latent @ codes.T
        probability = kept = None
        if temperature > 0.0:
            fixed = 2.0 * (1.0 / temperature - 1.0) * similarity.detach()
            probability = torch.softmax((fixed + 2.0 * similarity).float(), dim=-1)
            code, kept = self._draw(probability, temperature, generator)
            chosen = F.one_hot(code, len(codes)).to(probability.dtype)
            mixed = (probability + (chosen - probability).detach()).to(codes.dtype) @ codes
        else:
            code = similarity.argmax(dim=-1)
            mixed = codes[code]
        quantised = latent + mixed - latent.detach()
        if kept is not None:
            quantised = torch.where(kept, latent, quantised)
        vector = self.proj_inv(quantised)
        return Quantised(code, vector, latent, similarity, probability, codes)

    def _draw(
        self, probability: Tensor, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """Draw codes, and in training which rows bypass the quantiser, ``(b, 1)`` bool.

        Processes that train together draw for all rows, and use their own.
        """
        n, device = len(probability), probability.device
        passes_by = self.training and temperature > LEAST_SHORTCUT
        if not self.training or generator is not None or process_number()[1] == 1:
            code = torch.multinomial(probability, 1, generator=generator).squeeze(-1)
            if not passes_by:
                return code, None
            return code, torch.rand(n, 1, generator=generator, device=device) < temperature
        sizes = all_gather_int(n)
        start = sum(sizes[: process_number()[0]])
        own = slice(start, start + n)
        with common_numbers(device) as common:
            # as torch.multinomial draws one
            noise = probability.new_empty(sum(sizes), probability.shape[1])
            noise.exponential_(generator=common)
            code = (probability.detach() / noise[own]).argmax(-1)
            if not passes_by:
                return code, None
            drawn = torch.rand(sum(sizes), 1, generator=common, device=device)
            return code, drawn[own] < temperature

    def separation(
        self,
        codebook: Tensor | None = None,
        *,
        n_rows: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the mean over codes of the largest cosine to another code; small is good.

        Parameters
        ----------
        codebook
            ``(n_codes, code_dim)`` of unit length, if computed before.
        n_rows
            The mean over this many codes, drawn by chance, instead of all; each is still compared
            with all others.
        generator
            Source of randomness for that, on the CPU.
        """
        codes = self.codebook() if codebook is None else codebook
        rows = torch.arange(len(codes), device=codes.device)
        if n_rows is not None and n_rows < len(codes):
            drawn = torch.randperm(len(codes), generator=generator)[:n_rows]
            rows = drawn.to(codes.device)
        nearest = nearest_codes(codes.detach(), rows)
        return (codes[rows] * codes[nearest]).sum(-1).mean()


def binary_numbers(n_bits: int) -> Tensor:
    """Return all binary numbers of a length in order, ``(2 ** n_bits, n_bits)`` int8."""
    numbers = torch.arange(2**n_bits, device="cpu")
    found = torch.empty(2**n_bits, n_bits, dtype=torch.int8, device="cpu")
    for i in range(n_bits):  # a column at a time, as all in int64 would take 170 MB
        found[:, i] = (numbers >> (n_bits - 1 - i)) & 1
    return found


def nearest_codes(codes: Tensor, rows: Tensor) -> Tensor:
    """Return the nearest other code of each of some codes, ``(n_rows,)`` int64."""
    found = []
    for part in rows.split(_CHUNK):
        cosine = codes[part] @ codes.T
        cosine[torch.arange(len(part), device=codes.device), part] = -torch.inf
        found.append(cosine.argmax(dim=-1))
    return torch.cat(found)
