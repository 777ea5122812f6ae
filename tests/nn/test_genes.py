"""Graphs, linear terms and groups of genes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from cfm.nn import GraphConvolution, LowRankLogistic, normalised_adjacency
from cfm.nn._genes import GroupCompression

# The normalised graph and the convolution over it


def random_graph(n: int = 12, n_edges: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(0, n - 1, (2, n_edges), generator=generator)  # the last has no edge
    return edges, torch.rand(n_edges, generator=generator)


def dense(edges: torch.Tensor, weights: torch.Tensor, n: int) -> torch.Tensor:
    a = torch.zeros(n, n).index_put((edges[0], edges[1]), weights, accumulate=True)
    scale = a.sum(1).clamp(min=1e-30).rsqrt() * (a.sum(1) > 0)
    return scale[:, None] * a * scale


def test_it_is_the_symmetric_normalisation_with_row_sums() -> None:
    edges, weights = random_graph()
    found = normalised_adjacency(edges, weights, 12)
    assert found.layout == torch.sparse_csr
    torch.testing.assert_close(found.to_dense(), dense(edges, weights, 12))


def test_direction_target_first() -> None:
    a = normalised_adjacency(torch.tensor([[0, 1], [1, 0]]), torch.tensor([1.0, 4.0]), 2)
    torch.testing.assert_close(a.to_dense(), torch.tensor([[0.0, 0.5], [2.0, 0.0]]))


def test_convolution_and_its_gradient_are_those_of_the_dense_product() -> None:
    edges, weights = random_graph()
    sparse, full = normalised_adjacency(edges, weights, 12), dense(edges, weights, 12)
    torch.manual_seed(0)
    layer = GraphConvolution(6)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, 12, 6, requires_grad=True)
    out = layer(x, sparse)
    expected = full @ layer.linear(x) + layer.bias
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    (found,) = torch.autograd.grad(out.square().sum(), x)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out[:, -1], layer.bias.expand(3, 6))  # no neighbours


def test_samples_do_not_mix_and_autocast_is_no_matter() -> None:
    adjacency = normalised_adjacency(*random_graph(), 12)
    layer = GraphConvolution(6)
    x = torch.randn(3, 12, 6)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, adjacency)[1:2], layer(x[1:2], adjacency))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(layer(x, adjacency)).all()


@pytest.mark.parametrize(
    ("edges", "weights", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), torch.ones(2), r"expected \(2, n_edges\)"),
        (torch.zeros(2, 2), torch.ones(2), "torch.float32; expected"),
        (torch.zeros(2, 2, dtype=torch.int64), torch.ones(3), "one weight per edge"),
        (torch.tensor([[0], [12]]), torch.ones(1), "belongs to another gene list"),
        (torch.tensor([[0], [-1]]), torch.ones(1), "belongs to another gene list"),
        (torch.tensor([[0], [1]]), torch.tensor([-1.0]), "not negative"),
        (torch.tensor([[0], [1]]), torch.tensor([float("nan")]), "must be finite"),
    ],
)
def test_graphs_that_do_not_fit_are_refused(
    edges: torch.Tensor, weights: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        normalised_adjacency(edges, weights, 12)


# The linear gene-gene term is the optimum of a penalised logistic problem


def problem(seed: int = 0, b: int = 3, n: int = 40, r: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Factors, directions that depend on them, and which are observed; in double precision."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(b, n, r, generator=generator, dtype=torch.float64)
    z = torch.randn(b, r, generator=generator, dtype=torch.float64)
    score = (factors @ z.unsqueeze(-1)).squeeze(-1)
    noise = torch.randn(b, n, generator=generator, dtype=torch.float64)
    observed = torch.rand(b, n, generator=generator) < 0.7
    return factors, (score + noise).sign(), observed


@pytest.mark.parametrize("ridge", [0.5, 2.0, 20.0])
def test_newton_reaches_sklearns_penalised_optimum(ridge: float) -> None:
    factors, direction, observed = problem()
    z = LowRankLogistic(ridge, n_newton=60).scores(factors, direction, observed)
    for i in range(len(z)):
        x, y = factors[i][observed[i]].numpy(), direction[i][observed[i]].numpy()
        model = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-10, max_iter=5000)
        model.fit(2 * x, y > 0)
        np.testing.assert_allclose(z[i].detach().numpy(), model.coef_[0], rtol=1e-4, atol=1e-5)


def test_unchanged_genes_pull_towards_no_direction() -> None:
    factors, direction, observed = problem(b=1)
    direction[:, ::3] = 0
    ridge = 2.0
    z = LowRankLogistic(ridge, n_newton=60).scores(factors, direction, observed)[0]
    f, y = factors[0][observed[0]].numpy(), direction[0][observed[0]].numpy()

    def loss(w: np.ndarray) -> float:
        s = 2 * f @ w
        target = (y + 1) / 2
        fit = np.logaddexp(0, s) - target * s
        return float(fit.sum() + 0.5 * ridge * w @ w)

    best = minimize(loss, np.zeros(f.shape[1]), tol=1e-12)
    np.testing.assert_allclose(z.detach().numpy(), best.x, atol=1e-4)


def test_without_newton_steps_it_is_ridge_regression() -> None:
    factors, direction, observed = problem()
    ridge = 3.0
    z = LowRankLogistic(ridge, n_newton=0).scores(factors, direction, observed)
    for i in range(len(z)):
        f, y = factors[i][observed[i]], direction[i][observed[i]]
        expected = torch.linalg.solve(f.T @ f + ridge * torch.eye(6, dtype=f.dtype), f.T @ y)
        torch.testing.assert_close(z[i].detach(), expected, rtol=1e-6, atol=1e-8)


def test_few_steps_are_near_the_optimum() -> None:
    """The three steps that the model takes leave directions as the optimum has them."""
    factors, direction, observed = problem(n=200, r=10)
    near = LowRankLogistic(2.0, n_newton=3)(factors, direction, observed)
    optimum = LowRankLogistic(2.0, n_newton=60)(factors, direction, observed)
    assert ((near > 0) == (optimum > 0)).double().mean() > 0.99
    assert np.corrcoef(near.detach().ravel(), optimum.detach().ravel())[0, 1] > 0.999


@given(seed=st.integers(0, 500))
def test_what_is_not_observed_is_not_read(seed: int) -> None:
    factors, direction, observed = problem(seed)
    term = LowRankLogistic()
    other = torch.where(observed, direction, -direction)
    torch.testing.assert_close(
        term(factors, direction, observed), term(factors, other, observed), rtol=0, atol=0
    )


def test_a_profile_does_not_see_its_batch() -> None:
    factors, direction, observed = problem(b=5)
    term = LowRankLogistic()
    together = term(factors, direction, observed)
    for i in range(5):
        one = slice(i, i + 1)
        alone = term(factors[one], direction[one], observed[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-9, atol=1e-10)


def test_low_precision_is_solved_in_single_precision() -> None:
    factors, direction, observed = problem()
    exact = LowRankLogistic()(factors.float(), direction.float(), observed)
    rough = LowRankLogistic()(factors.bfloat16(), direction.bfloat16(), observed)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.1


def test_the_ridge_is_learned_on_a_log_scale() -> None:
    factors, direction, observed = problem()
    term = LowRankLogistic(ridge=5.0)
    assert math.isclose(term.log_ridge.exp().item(), 5.0, rel_tol=1e-5)
    term(factors, direction, observed).square().sum().backward()
    assert term.log_ridge.grad is not None
    assert term.log_ridge.grad.abs() > 0


# Groups of genes: the fast ways in and out are the ones of the equations


def literal_pack(group: GroupCompression, embedded: torch.Tensor, pad: torch.Tensor):
    """Concatenate the embeddings of each group and apply the down projection (eq. 8)."""
    ordered = embedded[:, group.permutation]
    lacking = group.n_groups * group.group_size - group.n_genes
    filled = torch.cat([ordered, pad.expand(len(embedded), lacking, -1)], dim=1)
    return group.down(filled.reshape(len(embedded), group.n_groups, -1))


@pytest.mark.parametrize(("n_genes", "size"), [(12, 4), (13, 4), (3, 8), (7, 1)])
def test_packing_is_the_projection_of_concatenated_embeddings(n_genes: int, size: int) -> None:
    group = GroupCompression(n_genes, 6, size)
    embedding = torch.randn(5, 6)
    tokens = torch.randint(0, 4, (3, n_genes))
    found = group.pack(tokens, group.table(embedding), padding=4)
    expected = literal_pack(group, embedding[tokens], embedding[4])
    assert found.shape == (3, -(-n_genes // size), 6)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_heads_are_the_head_after_the_way_back() -> None:
    group = GroupCompression(13, 6, 4)
    head, x = torch.randn(9, 6), torch.randn(2, group.n_groups, 6)
    expected = group.unpack(x) @ head.T
    assert expected.shape == (2, 13, 9)
    position = group.positions()
    heads = group.heads(head)
    for gene in range(13):
        state = x[:, position[gene] // 4]
        torch.testing.assert_close(
            state @ heads[position[gene] % 4].T, expected[:, gene], rtol=1e-5, atol=1e-5
        )


def test_a_gene_comes_back_to_its_own_place() -> None:
    group = GroupCompression(10, 8, 4)
    with torch.no_grad():  # each place keeps two numbers of its own
        group.down.weight.zero_()
        group.up.weight.zero_()
        for place in range(4):
            for i in range(2):
                group.down.weight[2 * place + i, 8 * place + i] = 1.0
                group.up.weight[8 * place + i, 2 * place + i] = 1.0
    embedding = torch.zeros(11, 8)
    embedding[:, :2] = torch.randn(11, 2)
    tokens = torch.arange(10)[None]
    packed = group.pack(tokens, group.table(embedding), padding=10)
    torch.testing.assert_close(group.unpack(packed)[0, :, :2], embedding[:10, :2])


def test_gradients_reach_embedding_and_projection() -> None:
    group = GroupCompression(8, 4, 4)
    embedding = torch.randn(6, 4, requires_grad=True)
    tokens = torch.randint(0, 5, (2, 8))
    group.pack(tokens, group.table(embedding), padding=5).square().sum().backward()
    fast = embedding.grad.clone(), group.down.weight.grad.clone()
    embedding.grad = group.down.weight.grad = None
    literal_pack(group, embedding[tokens], embedding[5]).square().sum().backward()
    torch.testing.assert_close(fast[0], embedding.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast[1], group.down.weight.grad, rtol=1e-4, atol=1e-5)


def test_the_order_is_random_complete_and_stored() -> None:
    torch.manual_seed(0)
    first, second = GroupCompression(50, 4, 8), GroupCompression(50, 4, 8)
    assert sorted(first.permutation.tolist()) == list(range(50))
    assert not torch.equal(first.permutation, second.permutation)
    second.positions()  # of the old order
    assert "permutation" in first.state_dict()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.permutation[second.positions()], torch.arange(50))
    assert torch.equal(second.positions(), first.positions())
