"""Sets of cells: padding, neighbours and order do not matter; attention can be read."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfm.models.pulsar import PulsarModule, PulsarSize

SIZE = PulsarSize(
    input_dim=12,
    dim=16,
    encoder_layers=2,
    encoder_heads=4,
    encoder_ff=32,
    decoder_layers=1,
    decoder_heads=2,
    decoder_ff=32,
    n_cell_states=3,
    standardised=True,
    templates=False,
)


@cache
def module() -> PulsarModule:
    torch.manual_seed(3)
    made = PulsarModule(SIZE)
    made.set_head(2)
    made.eval()
    made.input_mean.copy_(torch.randn(12))
    made.input_scale.copy_(torch.rand(12) + 0.5)
    return made


def sets(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 12, generator=generator) for n in lengths]


def padded(cells: list[torch.Tensor], width: int, fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.full((len(cells), width, 12), fill)
    padding = torch.ones(len(cells), width, dtype=torch.bool)
    for i, part in enumerate(cells):
        out[i, : len(part)], padding[i, : len(part)] = part, False
    return out, padding


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    more=st.integers(0, 6),
    fill=st.sampled_from([0.0, 7.0, float("nan")]),
)
def test_a_donor_does_not_depend_on_neighbours_or_padding(lengths, more, fill) -> None:
    cells = sets(lengths)
    batch, padding = padded(cells, max(lengths) + more, fill)
    with torch.no_grad():
        together = module().encode(batch, padding)
        packed = module().embed(cells)
        for i, part in enumerate(cells):
            alone = module().encode(part[None])[0]
            assert (together[i, : len(part) + 1] - alone).abs().max() < 1e-5
            assert (packed[i] - alone[0]).abs().max() < 1e-5
        assert (together[:, 1:][padding] == 0).all()


def test_attention_is_read_out_and_sums_to_one() -> None:
    cells = sets([7, 4])
    batch, padding = padded(cells, 9, float("nan"))
    found = module().attention(batch, padding)
    every = module().attention(batch, padding, every=True)
    assert found.shape == (2, 2, 4, 10)
    assert every.shape == (2, 2, 4, 10, 10)
    torch.testing.assert_close(found, every[:, :, :, 0])
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 2, 4))
    assert (found[:, 0, :, 8:] == 0).all()
    alone = module().attention(cells[1][None])
    torch.testing.assert_close(found[:, 1:, :, :5], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(torch.zeros(1, 3, 13)), r"expected \(donors, cells, 12\)"),
        (lambda m: m.encode(torch.zeros(1, 0, 12)), "no cells"),
        (lambda m: m.encode(torch.zeros(1, 3, 12), torch.ones(1, 3).bool()), "no cells"),
        (lambda m: m.encode(torch.zeros(1, 3, 12), torch.ones(1, 3)), "expected bool"),
        (
            lambda m: m.decode(torch.zeros(1, 16), torch.zeros(1, 2, 16), torch.zeros(1, 2).long()),
            "without cell states",
        ),
        (lambda m: m.transform(torch.zeros(1, 16)), "cls_transform"),
        (lambda m: PulsarModule(SIZE).predict(torch.zeros(1, 2, 12)), "no head"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(module())
