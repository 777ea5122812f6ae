"""The network: samples do not mix, what is kept is renewed, and the summary says what it should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfm.models.bulkformer import BulkFormerModule

N = 60


def network(**arguments) -> BulkFormerModule:
    torch.manual_seed(0)
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "attention_dropout": 0.3, "ff_dropout": 0.3}
    made = BulkFormerModule(N, **(sizes | arguments)).eval()
    made.set_graph(torch.randint(0, N, (2, 200)), torch.rand(200))
    return made


def samples(n: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = 5.0 * torch.rand(n, N, generator=generator)
    x[torch.rand(n, N, generator=generator) < 0.2] = 0.0
    x[torch.rand(n, N, generator=generator) < 0.2] = -10.0
    return x


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "arguments", [{}, {"centred": True}, {"n_blocks": 2}, {"n_gene_features": 5}]
)
def test_in_pieces_and_at_once_are_the_same(arguments: dict) -> None:
    module = network(**arguments)
    if "n_gene_features" in arguments:
        module.set_gene_features(torch.randn(N, 5))
    module.gene_offset.uniform_()
    x = samples()
    expected = module.encode(x), module.predict(x)
    with torch.no_grad():
        for found, wanted in zip((module.encode(x), module.predict(x)), expected, strict=True):
            assert_near(found, wanted.detach())


@given(st.integers(1, 6), st.integers(0, 50))
def test_a_sample_does_not_depend_on_the_others(n: int, seed: int) -> None:
    module, x = network(), samples(n, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        together = module.predict(x)
        assert_near(module.predict(x[order]), together[order])
        for i in range(n):
            assert_near(module.predict(x[i : i + 1]), together[i : i + 1])


def test_each_sample_tells_its_own_share_of_missing_genes() -> None:
    module, x = network(), samples()
    with torch.no_grad():
        found = module.encode(x)[:, 0, -3:]
    observed = x != -10
    torch.testing.assert_close(found[:, 0], 1 - observed.float().mean(1))
    mean = (x * observed).sum(1) / observed.sum(1)
    torch.testing.assert_close(found[:, 1], mean)
    torch.testing.assert_close(found[:, 2], (x != 0).float().mean(1))
    rate = torch.tensor([0.1, 0.2, 0.3, 0.4])
    with torch.no_grad():
        torch.testing.assert_close(module.encode(x, rate)[:, 5, -3], rate)
        assert (module.encode(x, 0.25)[..., -3] == 0.25).all()


def test_missing_genes_are_corrected_for_the_error_of_the_observed() -> None:
    module, x = network(), samples()
    with torch.no_grad():
        embedded = module.encode(x)
        out = module.predict(x)
        raw = torch.relu(module.head(embedded).squeeze(-1))
    observed = x != -10
    torch.testing.assert_close(out[observed], raw[observed])
    for i in range(len(x)):
        excess = (raw[i] - x[i])[observed[i]].mean()
        expected = (raw[i] - excess)[~observed[i]]
        torch.testing.assert_close(out[i][~observed[i]], expected, rtol=1e-4, atol=1e-5)


def test_a_sample_without_any_gene_has_a_finite_answer() -> None:
    module = network()
    nothing = torch.full((1, N), -10.0)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert torch.isfinite(module.predict(nothing)).all()
            assert torch.isfinite(module.encode(nothing)).all()


def test_what_is_kept_is_renewed_when_weights_or_graph_change() -> None:
    module, x = network(), samples()

    def fresh() -> torch.Tensor:
        copy = BulkFormerModule(N, dim=16, n_layers=2, n_heads=2).eval()
        copy.edges, copy.edge_weights = module.edges.clone(), module.edge_weights.clone()
        copy.load_state_dict(module.state_dict())
        with torch.no_grad():
            return copy.encode(x)

    with torch.inference_mode():
        module.encode(x)
    with torch.no_grad():
        module.gene_embedding.weight.mul_(2.0)
        assert torch.equal(module.encode(x), fresh())
        module.gene_projection[0].bias.add_(1.0)
        assert torch.equal(module.encode(x), fresh())
        module.set_graph(torch.randint(0, N, (2, 90)), torch.rand(90))
        assert torch.equal(module.encode(x), fresh())
        module.edge_weights.mul_(torch.rand(90))
        assert torch.equal(module.encode(x), fresh())


def test_a_graph_is_copied_and_one_in_the_same_memory_is_another() -> None:
    module, edges = network(), torch.tensor([[0], [1]])
    for number in (1, 2):
        module.set_graph(edges * number, torch.ones(1))
        assert module.adjacency().to_dense().nonzero().tolist() == [[0, number]]
    module.set_graph(edges, torch.ones(1))
    edges.zero_()
    assert module.edges.tolist() == [[0], [1]]


def test_using_it_does_not_stand_in_the_way_of_training() -> None:
    module, x = network(), samples()
    with torch.inference_mode():
        module.predict(x)
    module.train()
    hidden = (x != -10) & (torch.rand(x.shape) < 0.3)
    module.losses(x, hidden)["loss"].backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_hidden_entries_are_not_seen() -> None:
    module, x = network(), samples()
    hidden = torch.zeros_like(x, dtype=torch.bool)
    hidden[0, 3] = x[0, 3] != -10
    hidden[1, 5] = x[1, 5] != -10
    assert hidden.sum() == 2
    changed = x.clone()
    changed[hidden] = 9.0
    with torch.no_grad():
        seen = x.masked_fill(hidden, -10.0)
        prediction = module.predict(seen)[hidden]
        for values in (x, changed):
            expected = (prediction - values[hidden]).square().mean()
            torch.testing.assert_close(module.losses(values, hidden)["loss"], expected)


@pytest.mark.parametrize("recompute", [True, False])
def test_recomputing_changes_memory_and_no_gradient(recompute: bool) -> None:
    module = network(attention_dropout=0.0, ff_dropout=0.0).train()
    x = samples()
    hidden = (x != -10) & (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.3)
    module.losses(x, hidden)["loss"].backward()
    before = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    module.recompute = recompute
    module.losses(x, hidden)["loss"].backward()
    after = [p.grad for p in module.parameters() if p.grad is not None]
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_model_that_starts_from_the_mean_predicts_it() -> None:
    module = network(centred=True)
    mean = 3.0 * torch.rand(N)
    module.start_from(mean)
    x = samples()
    with torch.no_grad():
        out = module.predict(x)
    observed = x != -10
    torch.testing.assert_close(out[observed], mean.expand(4, N)[observed])


def test_the_trial_of_bfloat16_sees_weights_that_cannot_bear_it() -> None:
    module = network()
    assert module.bfloat16_agreement() > 0.999
    with torch.no_grad():
        first, _, second = module.input_projection
        first.bias.fill_(500.0)  # what matters is behind the digits that bfloat16 keeps
        second.weight.sub_(second.weight.mean(1, keepdim=True))
    assert module.bfloat16_agreement() < 0.999


@pytest.mark.parametrize("shape", [(N,), (2, N + 1), (1, 2, N)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"expected \(samples, {N}\)"):
        network().encode(torch.zeros(shape))


def test_a_network_without_a_graph_says_so() -> None:
    with pytest.raises(ValueError, match="has no gene graph"):
        BulkFormerModule(N, dim=16, n_layers=1, n_heads=2).encode(torch.zeros(1, N))
