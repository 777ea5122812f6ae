"""The quantiser: all binary numbers, draws at a temperature, gradients, codes kept apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfm.nn._soft_codes import SoftCodes, binary_numbers


def codes(n_bits: int = 5, **sizes: int) -> SoftCodes:
    torch.manual_seed(0)
    return SoftCodes(12, **({"n_bits": n_bits, "hidden": 16, "n_hidden": 2, "code_dim": 8} | sizes))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(n_bits=st.integers(1, 12))
def test_rows_are_the_binary_numbers_in_order(n_bits: int) -> None:
    bits = binary_numbers(n_bits)
    assert bits.shape == (2**n_bits, n_bits)
    written = ["".join(map(str, row)) for row in bits.tolist()]
    assert [int(row, 2) for row in written] == list(range(2**n_bits))


def test_statistics_run_over_the_codes() -> None:
    """In training batch norm sees all codes and nothing of the cells."""
    layer = codes().train()
    first = layer(torch.randn(3, 12)).codebook
    second = layer(100 * torch.randn(7, 12)).codebook
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(32))
    norm = layer.network[1]
    x = layer.network[0](layer.bits.float())
    for _ in range(200):
        layer.codebook()
    torch.testing.assert_close(norm.running_mean, x.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, x.var(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.eval().codebook(), first, atol=0.2, rtol=0)


def test_the_nearest_code_is_taken_at_temperature_zero() -> None:
    layer = codes().eval()
    x = torch.randn(40, 12, generator=generator())
    with torch.no_grad():
        found = layer(x)
        book = layer.codebook()
        latent = torch.nn.functional.normalize(layer.proj(x), dim=-1)
        expected = (latent @ book.T).argmax(-1)
        assert torch.equal(found.code, expected)
        torch.testing.assert_close(found.latent, latent)
        torch.testing.assert_close(found.similarity, latent @ book.T)
        torch.testing.assert_close(found.vector, layer.proj_inv(book[expected]))
        torch.testing.assert_close(found.codebook, book)
        assert found.probability is None
        alone = torch.cat([layer(row[None]).code for row in x])
    assert torch.equal(alone, found.code)


def test_a_low_temperature_draws_the_nearest_and_a_high_one_the_probabilities() -> None:
    layer = codes(3).eval()
    x = torch.randn(1, 12, generator=generator()).expand(20_000, -1)
    with torch.no_grad():
        cold = layer(x[:50], temperature=1e-6, generator=generator())
        warm = layer(x, temperature=0.5, generator=generator())
        again = layer(x, temperature=0.5, generator=generator())
        nearest = layer(x[:50]).code
    assert torch.equal(cold.code, nearest)
    assert torch.equal(warm.code, again.code)
    expected = torch.softmax(2 * warm.similarity[0] / 0.5, -1)
    torch.testing.assert_close(warm.probability[0], expected)
    share = torch.bincount(warm.code, minlength=8) / len(x)
    torch.testing.assert_close(share, expected, atol=0.02, rtol=0)
    torch.testing.assert_close(
        warm.vector, layer.proj_inv(warm.codebook[warm.code]), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.05])
def test_gradients_of_logits_do_not_grow_as_the_temperature_falls(temperature: float) -> None:
    layer = codes().eval()
    x = torch.randn(4, 12, generator=generator())
    with torch.no_grad():
        weight = torch.randn(4, 32, generator=generator(1))
    similarity = layer(x).similarity.detach().requires_grad_()
    (torch.softmax(2 * similarity / temperature, -1) * weight).sum().backward()
    plain = similarity.grad
    found = layer(x, temperature=temperature, generator=generator())
    (ours,) = torch.autograd.grad((found.probability * weight).sum(), found.similarity)
    torch.testing.assert_close(ours, temperature * plain, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 0.01, 0.5])
def test_gradients_pass_the_choice(temperature: float) -> None:
    layer = codes().train()
    x = torch.randn(6, 12, requires_grad=True)
    found = layer(x, temperature=temperature, generator=generator())
    found.vector.square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert layer.network[0].weight.grad.abs().sum() > 0
    assert layer.proj.weight.grad.abs().sum() > 0


def test_a_share_of_the_rows_passes_by_in_training_only() -> None:
    layer, x = codes(), torch.randn(4000, 12, generator=generator())
    with torch.no_grad():
        for training, temperature, expected in (
            (True, 0.4, 0.4),
            (True, 0.02, 0.0),
            (True, 0.0, 0.0),
            (False, 0.4, 0.0),
        ):
            layer.train(training)
            found = layer(x, temperature=temperature, generator=generator())
            own = layer.proj_inv(found.latent)
            share = ((found.vector - own).abs().amax(-1) < 1e-6).float().mean()
            assert abs(float(share) - expected) < 0.03


def test_separation_is_the_largest_cosine_to_another_code_and_can_be_lowered() -> None:
    layer = codes(6)
    book = layer.codebook()
    cosine = book @ book.T - 3 * torch.eye(64)
    torch.testing.assert_close(layer.separation(book), cosine.amax(-1).mean())
    (found,) = torch.autograd.grad(layer.separation(book), book, retain_graph=True)
    (expected,) = torch.autograd.grad(cosine.amax(-1).mean(), book)
    torch.testing.assert_close(found, expected)
    draws = [
        float(layer.separation(book.detach(), n_rows=8, generator=generator(i))) for i in range(60)
    ]
    assert len(set(draws)) > 30
    assert abs(sum(draws) / 60 - cosine.amax(-1).mean().item()) < 0.02
    optimiser = torch.optim.Adam(layer.parameters(), 1e-2)
    before = float(layer.separation().detach())
    for _ in range(60):
        optimiser.zero_grad()
        layer.separation().backward()
        optimiser.step()
    assert float(layer.separation().detach()) < before - 0.1


def test_lower_precision_around_it_changes_nothing() -> None:
    layer, x = codes().eval(), torch.randn(40, 12, generator=generator())
    with torch.no_grad():
        expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            for found in (layer(x), layer(x, codebook=layer.codebook())):
                assert found.similarity.dtype == torch.float32
                pairs = zip(found, expected, strict=True)
                assert all(torch.equal(a, b) for a, b in pairs if a is not None)


def test_settings_that_do_not_fit_are_refused() -> None:
    for n_bits in (0, 21):
        with pytest.raises(ValueError, match="n_bits must be from 1 to 20"):
            SoftCodes(4, n_bits=n_bits)
    for temperature in (-0.1, 1.5):
        with pytest.raises(ValueError, match="temperature must be from 0 to 1"):
            codes()(torch.randn(1, 12), temperature=temperature)


def test_numbers_of_the_codes_are_real_where_weights_are_not_yet() -> None:
    with torch.device("meta"):
        layer = SoftCodes(4, n_bits=3)
    assert layer.proj.weight.is_meta
    assert layer.bits.tolist()[5] == [1, 0, 1]
    assert "bits" not in layer.state_dict()
    assert layer.n_codes == 8
