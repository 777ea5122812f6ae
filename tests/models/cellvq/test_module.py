"""Cells as sets of tokens: what matters to a cell, what is kept, what is refused."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cfm.models.cellvq._module import SIZES, CellVQModule, CellVQSize

N_GENES = 30
PROPERTIES = {"cell_type": list("abcd"), "values": ["yes", "no"]}
#: Classes of the authors' heads.
PUBLISHED_HEADS = {"cell_type": 831, "tissue": 377, "disease": 150, "sex": 3, "age": 184}


def size(**changes) -> CellVQSize:
    small = {"dim": 16, "n_layers": 2, "n_heads": 4, "ff_dim": 24, "decoder_dim": 16}
    small |= {"decoder_layers": 1, "decoder_heads": 2, "n_bins": 6, "n_bits": 5, "relation": "full"}
    small |= {"code_term": False, "expression_term": False, "expression_codes": False}
    return replace(SIZES["mini"], **(small | changes))


@cache
def module() -> CellVQModule:
    """Not to be changed by a test."""
    torch.manual_seed(0)
    made = CellVQModule(N_GENES, size=size(), properties=PROPERTIES).eval()
    with torch.no_grad():
        made.relation.add_(0.1 * torch.randn_like(made.relation))
    return made


def fresh(**changes) -> CellVQModule:
    torch.manual_seed(0)
    return CellVQModule(N_GENES, size=size(**changes), properties=PROPERTIES)


def cells(numbers: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Values and positions of cells with so many expressed genes, count tokens last."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for n in numbers:
        genes = torch.randperm(N_GENES, generator=generator)[:n].sort().values
        values = 4 * torch.rand(n, generator=generator)
        count = torch.tensor([4.0, 3.0 + n / 30])
        made.append((torch.cat([values, count]), torch.cat([genes, N_GENES + torch.arange(2)])))
    return made


def padded(made: list[tuple[Tensor, Tensor]], more: int = 0, value: float = 0.0, gene: int = 0):
    """Cells side by side; what stands at padding is given."""
    width = max(len(v) for v, _ in made) + more
    values = torch.full((len(made), width), value)
    genes = torch.full((len(made), width), gene)
    padding = torch.ones(len(made), width, dtype=torch.bool)
    for i, (v, g) in enumerate(made):
        values[i, : len(v)], genes[i, : len(v)], padding[i, : len(v)] = v, g, False
    return values, genes, padding


def everything(model: CellVQModule, values: Tensor, genes: Tensor, padding: Tensor | None):
    """All outputs of a batch but the tokens."""
    encoded = model.encode(values, genes, padding)
    cell, maximum = model.pool(encoded, padding)
    found = model.quantize(maximum)
    decoded = model.decode(encoded, genes, padding, vector=found.vector)
    return [cell, maximum, found.vector, *model.classify(cell).values(), *decoded], found.code


@given(
    numbers=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    more=st.integers(0, 4),
    value=st.sampled_from([0.0, -7.0, float("nan")]),
    gene=st.sampled_from([0, N_GENES + 2, 999, -5]),
    gradients=st.booleans(),
)
def test_a_cell_does_not_depend_on_neighbours_or_padding(
    numbers, more, value, gene, gradients
) -> None:
    made = cells(numbers)
    with torch.set_grad_enabled(gradients):
        together, codes = everything(module(), *padded(made, more, value, gene))
    with torch.no_grad():
        for i, (v, g) in enumerate(made):
            alone, code = everything(module(), v[None], g[None], None)
            assert code == codes[i]
            for found, expected in zip(together, alone, strict=True):
                torch.testing.assert_close(found[i].detach(), expected[0], atol=2e-5, rtol=1e-4)


@given(order=st.permutations(range(9)))
def test_the_order_of_genes_does_not_matter(order: list[int]) -> None:
    """Tokens move with their genes; count tokens stay last."""
    ((v, g),) = cells([9])
    place = torch.tensor([*order, 9, 10])
    with torch.no_grad():
        first, again = (
            module().encode(values[None], genes[None])
            for values, genes in ((v, g), (v[place], g[place]))
        )
        torch.testing.assert_close(again, first[:, place], atol=1e-5, rtol=1e-4)
        (one, code), (two, other) = (
            everything(module(), values[None], genes[None], None)
            for values, genes in ((v, g), (v[place], g[place]))
        )
    assert code == other
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_pooling_takes_the_count_tokens_and_sums_up_the_genes() -> None:
    encoded = torch.randn(2, 6, 16)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, [1, 5]] = True  # also in the middle
    cell, maximum = module().pool(encoded, padding)
    for i, (genes, before, last) in enumerate((([0, 1, 2, 3], 4, 5), ([0, 2], 3, 4))):
        x = encoded[i]
        expected = [x[last], x[before], x[genes].amax(0), x[genes].mean(0)]
        torch.testing.assert_close(cell[i], torch.cat(expected))
        torch.testing.assert_close(maximum[i], x[[*genes, before, last]].amax(0))
    for empty in (encoded[:, :2], encoded[:, 2:4]):
        with pytest.raises(ValueError, match="no expressed gene"):
            module().pool(empty)
    padding[1] = torch.tensor([0, 0, 1, 1, 1, 1], dtype=torch.bool)
    with pytest.raises(ValueError, match="no expressed gene"):
        module().pool(encoded, padding)


@pytest.mark.parametrize("relation", ["full", "none", 3])
def test_relations_are_a_row_per_position_through_a_projection(relation) -> None:
    made = fresh(relation=relation).eval()
    with torch.no_grad():
        table = made.identity()
        expected = made.position_embedding.weight.clone()
        if relation != "none":
            expected[:-1] += made.relation_projection(made.relation)
            assert made.relation.shape == (32, 32 if relation == "full" else 3)
        torch.testing.assert_close(table, expected)
        assert made.identity().data_ptr() == table.data_ptr()
    values, genes, padding = padded(cells([5, 3]))
    made.train().encode(values, genes, padding).sum().backward()
    if relation != "none":
        assert made.relation.grad.abs().sum() > 0


def test_what_is_computed_once_follows_the_weights() -> None:
    made = fresh().eval()
    ((v, g),) = cells([9])

    def tokens() -> Tensor:
        with torch.no_grad():
            made.codebook()
            return made.encode(v[None], g[None])

    first = tokens()
    assert torch.equal(tokens(), first)
    with torch.no_grad():
        book = made.codebook()
        assert made.codebook().data_ptr() == book.data_ptr()
        made.relation.mul_(2.0)
        second = tokens()
        assert not torch.allclose(first, second)
        made.layers[0].ff_in.weight.mul_(2.0)
        assert not torch.allclose(second, tokens())
        made.quantiser.network[1].running_mean.add_(1.0)
        assert not torch.allclose(book, made.codebook())
    made.load_state_dict(fresh().state_dict())
    torch.testing.assert_close(tokens(), first)
    copied = deepcopy(made)
    with torch.no_grad():
        copied.relation.zero_()
        assert not torch.allclose(copied.encode(v[None], g[None]), tokens())
    made.train()
    assert not made._cache._found
    made.double().eval()
    with torch.no_grad():
        found = made.encode(v[None].double(), g[None])
        torch.testing.assert_close(found.float(), first, atol=1e-4, rtol=1e-3)


def test_attention_is_what_the_encoder_uses() -> None:
    values, genes, padding = padded(cells([9, 4]), 2, float("nan"), 999)
    maps = list(module().attention(values, genes, padding))
    assert [m.shape for m in maps] == [(2, 4, 13, 13)] * 2
    real = ~padding
    for weights in maps:
        rows = weights.sum(-1).transpose(1, 2)[real]
        torch.testing.assert_close(rows, torch.ones_like(rows))
        assert (weights.transpose(1, 3)[padding] == 0).all()
    with torch.no_grad():  # the last layer by hand, from the weights
        blank = values.masked_fill(padding, 0.0), genes.masked_fill(padding, 0)
        x = module().value_embedding(blank[0]) + module().identity()[blank[1]]
        bias = torch.zeros(2, 13).masked_fill(padding, -torch.inf)
        first, last = module().layers
        x = first(x, bias)
        v = last.qkv(x).chunk(3, -1)[2].unflatten(-1, (4, 4)).transpose(1, 2)
        x = last.attention_norm(x + last.out((maps[1] @ v).transpose(1, 2).flatten(2)))
        x = module().norm(last.ff_norm(x + last.ff_out(last.ff_in(x).relu())))
        expected = module().encode(values, genes, padding)
    torch.testing.assert_close(x[real], expected[real], atol=1e-5, rtol=1e-4)


def test_one_loss_reaches_every_weight() -> None:
    made = fresh().train()
    values, genes, padding = padded(cells([9, 4, 7]))
    encoded = made.encode(values, genes, padding)
    cell, maximum = made.pool(encoded, padding)
    found = made.quantize(maximum, temperature=0.3)
    parts = [*made.decode(encoded, genes, padding, vector=found.vector)]
    parts += made.classify(cell).values()
    sum(p.log_softmax(-1).square().sum() for p in parts).backward()
    missing = [n for n, p in made.named_parameters() if p.grad is None]
    assert missing == []


def test_the_published_size_has_the_published_numbers() -> None:
    heads = {name: [str(i) for i in range(n)] for name, n in PUBLISHED_HEADS.items()}
    with torch.device("meta"):
        made = CellVQModule(19_264, size=SIZES["published"], properties=heads)
    sizes = {name: p.numel() for name, p in made.named_parameters()}
    assert round(sum(sizes.values()) / 1e6, 1) == 514.3
    assert round(sizes["relation"] / 1e6, 1) == 371.2
    assert round(sum(n for k, n in sizes.items() if k.startswith("layers.")) / 1e6, 1) == 85.1
    assert len(made.bits) == 4096


def test_input_that_does_not_fit_is_refused() -> None:
    values, genes, padding = padded(cells([5, 3]))
    for arguments, message in (
        ((values, genes[:1], padding), "expected both as"),
        ((values, genes, padding[:, 1:]), "Padding is"),
        ((values, genes, padding.float()), "expected bool"),
        ((values, genes + 30, padding), "genes 0 to 29 and the two count tokens 30 and 31"),
        ((values, genes - 31, padding), "Positions go from"),
        ((values, genes, torch.ones_like(padding)), "no tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            module().encode(*arguments)
        with pytest.raises(ValueError, match=message):
            list(module().attention(*arguments))
    with pytest.raises(ValueError, match="n_genes must be at least 1"):
        CellVQModule(0, size=size())
