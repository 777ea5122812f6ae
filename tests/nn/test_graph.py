"""The normalised graph and the convolution over it."""

from __future__ import annotations

import warnings

import pytest
import torch

from cfm.nn import GraphConvolution, normalised_adjacency


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


def test_making_it_is_quiet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normalised_adjacency(*random_graph(), 12)


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
