"""The linear term of expression."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cfm.models.cellvq._additions import ExpressionTerm
from cfm.models.cellvq._module import SIZES, CellVQModule

N_GENES = 12


def _cells(expression: torch.Tensor):
    """Sentences of all genes, those that are not expressed as padding with anything in it."""
    n = len(expression)
    counts = torch.tensor([4.0, 3.0]).expand(n, -1)
    values = torch.cat([expression, counts], dim=1)
    genes = torch.arange(N_GENES + 2).expand(n, -1)
    padding = values == 0
    return values.masked_fill(padding, 99.0), genes, padding


def _two_groups(n: int = 40) -> torch.Tensor:
    torch.manual_seed(0)
    expression = torch.rand(n, N_GENES) + 0.5
    expression[: n // 2, :4] += 2.0
    return expression * (torch.rand(n, N_GENES) < 0.8)


def test_it_is_the_mean_of_the_genes_by_their_expression():
    term = ExpressionTerm(N_GENES, 3)
    with torch.no_grad():
        term.genes.normal_()
        term.mean.normal_()
    expression = _two_groups(6)
    share = expression / expression.sum(1, keepdim=True)
    expected = share @ term.genes - term.mean
    torch.testing.assert_close(term(*_cells(expression)), expected, atol=1e-5, rtol=1e-5)


def test_it_starts_from_principal_components_that_tell_groups_apart():
    term = ExpressionTerm(N_GENES, 5)
    expression = _two_groups()
    term.start([_cells(expression[:25]), _cells(expression[25:])])
    found = term(*_cells(expression)).detach()
    torch.testing.assert_close(found.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    covariance = found.T @ found / len(found)
    off = covariance - covariance.diag().diag()
    assert off.abs().max() < 1e-3
    first = found[:, 0] > 0
    assert first[:20].float().mean() > 0.8
    assert first[20:].float().mean() < 0.2


def test_the_order_of_the_cells_does_not_change_the_start():
    one, other = ExpressionTerm(N_GENES, 4), ExpressionTerm(N_GENES, 4)
    expression = _two_groups()
    one.start([_cells(expression)])
    other.start([_cells(expression.flip(0))])
    torch.testing.assert_close(one.genes, other.genes, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_cells", [1, 3])
def test_cells_that_do_not_differ_leave_it_as_it_is(n_cells):
    term = ExpressionTerm(N_GENES, 4)
    term.start([_cells(torch.ones(n_cells, N_GENES))])
    assert not term.genes.any()


def test_every_token_of_a_cell_gets_it_and_nothing_else_changes():
    torch.manual_seed(0)
    module = CellVQModule(N_GENES, size=replace(SIZES["mini"], dim=16, ff_dim=16)).eval()
    cells = _cells(_two_groups(5))
    padding = cells[2]
    with torch.no_grad():
        plain = module.encode(*cells)
        module.expression_term.genes.normal_()
        moved = module.encode(*cells)
        term = module.expression_term(*cells)
    expected = (plain + term.unsqueeze(1)).masked_fill(padding.unsqueeze(-1), 0.0)
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(module.encode(*cells), moved, atol=1e-5, rtol=1e-4)
