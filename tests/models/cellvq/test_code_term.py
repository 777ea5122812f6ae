"""The bilinear term of genes and codes."""

from __future__ import annotations

import pytest
import torch

from cfm.models.cellvq._additions import CodeTerm
from cfm.models.cellvq._module import SIZES, CellVQModule
from cfm.nn._genes import LEAST_MEAN, MOST_MEAN

N_GENES = 7


@pytest.fixture
def module():
    torch.manual_seed(0)
    return CellVQModule(N_GENES, size=SIZES["mini"]).eval()


def _tokens():
    return torch.tensor([[1.0, 2.0, 4.0, 3.0]]), torch.tensor([[0, 3, N_GENES, N_GENES + 1]])


def test_an_untrained_model_starts_at_the_mean_of_each_gene(module):
    mean = torch.rand(N_GENES) * 100 + 1
    module.code_term.start(mean)
    values, genes = _tokens()
    found, _, _ = module.decode(module.encode(values, genes), genes, vector=torch.zeros(1, 64))
    torch.testing.assert_close(found[0], mean, rtol=1e-4, atol=0)


def test_expected_counts_follow_the_factors():
    term = CodeTerm(2, 3, 2)
    with torch.no_grad():
        term.base.copy_(torch.tensor([0.0, 1.0]))
        term.genes.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        term.projection.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
    found = term(torch.full((1, 2), 3.0), torch.tensor([[0.5, -1.0, 9.0]]))
    expected = 3.0 * torch.tensor([[0.5, 1.0 - 2.0]]).exp()
    torch.testing.assert_close(found, expected)


def test_means_stay_within_their_bounds():
    term = CodeTerm(2, 1, 1)
    with torch.no_grad():
        term.genes.copy_(torch.tensor([[1e6], [-1e6]]))
        term.projection.weight.fill_(1.0)
    found = term(torch.tensor([[1e5, 1.0]]), torch.ones(1, 1)).detach()
    assert found[0].tolist() == pytest.approx([MOST_MEAN, LEAST_MEAN])


def test_without_a_code_the_term_is_silent(module):
    values, genes = _tokens()
    encoded = module.encode(values, genes)
    before, _, _ = module.decode(encoded, genes)
    module.code_term.start(torch.full((N_GENES,), 50.0))
    after, _, _ = module.decode(encoded, genes)
    torch.testing.assert_close(before, after)
