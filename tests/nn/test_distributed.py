"""Losses over processes: the value of the whole batch, and gradients whose mean is its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cfm.nn import _distributed as distributed
from cfm.nn._soft_codes import SoftCodes
from tests._together import together

#: Which of seven rows are whose; the first process has more, the last one.
PARTS = (slice(0, 4), slice(4, 6), slice(6, 7))
ROWS = torch.arange(14, dtype=torch.float64).view(7, 2) / 3.0


def test_alone_nothing_is_exchanged() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert distributed.process_number() == (0, 1)
    assert distributed.all_gather_int(3) == [3]
    assert distributed.gathered(x) is x
    assert distributed.summed(x) is x
    mean, none = distributed.means_over_processes((x.sum(), 2), (x.sum() * 0, 0))
    assert (mean.item(), none.item()) == (1.5, 0.0)
    assert distributed.on_rank_zero(lambda: 5) == 5
    with distributed.common_numbers(torch.device("cpu")) as generator:
        assert generator is None
    seed = torch.initial_seed()
    distributed.offset_seed_by_rank()
    assert torch.initial_seed() == seed


def gradients(loss: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], torch.Tensor]:
    """Return the loss in each process, and the mean of the gradients of a weight."""

    def work(number: int) -> tuple[float, torch.Tensor]:
        weight = torch.tensor([0.5, -0.3], dtype=torch.float64, requires_grad=True)
        value = loss(ROWS[PARTS[number]] * weight)
        value.backward()
        return float(value.detach()), weight.grad

    found = together(3, work, monkeypatch)
    return [v for v, _ in found], torch.stack([g for _, g in found]).mean(0)


def alone(loss: Any) -> tuple[float, torch.Tensor]:
    """Return the loss of the whole batch in one process, and its gradient."""
    weight = torch.tensor([0.5, -0.3], dtype=torch.float64, requires_grad=True)
    value = loss(ROWS * weight)
    value.backward()
    return float(value.detach()), weight.grad


def mean_of_some(x: torch.Tensor) -> torch.Tensor:
    """A mean over entries of which the processes have different numbers, one of them none."""
    chosen = x[(x > -0.9) & (x < 0.6)]
    return distributed.means_over_processes((chosen.square().sum(), chosen.numel()))[0]


def pairs(x: torch.Tensor) -> torch.Tensor:
    """Something of all pairs of rows."""
    x = distributed.gathered(x)
    return torch.logsumexp(x @ x.T, dim=1).mean()


def standardised(x: torch.Tensor) -> torch.Tensor:
    """A mean of rows that are centred and scaled over the batch."""
    n = sum(distributed.all_gather_int(len(x)))
    mean = distributed.summed(x.sum(0)) / n
    variance = distributed.summed((x - mean).square().sum(0)) / n
    made = ((x - mean) * (variance + 0.1).rsqrt() + mean.square()).tanh()
    return distributed.means_over_processes((made.pow(3).sum(), len(x)))[0]


@pytest.mark.parametrize("loss", [mean_of_some, pairs, standardised])
def test_values_and_gradients_are_those_of_the_whole_batch(
    loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, gradient = alone(loss)
    values, mean = gradients(loss, monkeypatch)
    assert values == pytest.approx([value] * 3, rel=1e-12)
    assert len(set(values)) == 1
    torch.testing.assert_close(mean, gradient, rtol=1e-10, atol=1e-12)


def test_a_mean_of_nothing_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values, gradient = gradients(
        lambda x: distributed.means_over_processes((x[:0].sum(), 0))[0], monkeypatch
    )
    assert values == [0.0] * 3
    assert gradient.tolist() == [0.0, 0.0]


def test_weights_below_one_count_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def weighted(x: torch.Tensor) -> torch.Tensor:
        return distributed.means_over_processes((0.01 * x.sum(), 0.01 * len(x)))[0]

    assert gradients(weighted, monkeypatch)[0][0] == pytest.approx(alone(weighted)[0])
    assert alone(weighted)[0] == pytest.approx(
        float((ROWS @ torch.tensor([0.5, -0.3]).double()).mean())
    )


def test_common_numbers_are_the_next_of_the_first_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(4)
    expected = torch.rand(6)
    torch.manual_seed(4)

    def work(number: int) -> torch.Tensor:
        drawn = []
        for _ in range(2):
            with distributed.common_numbers(torch.device("cpu")) as generator:
                drawn.append(torch.rand(3, generator=generator))
        return torch.cat(drawn)

    # threads share the random numbers of torch: only that of the first may go on
    for drawn in together(3, work, monkeypatch):
        assert torch.equal(drawn, expected)


def test_processes_drop_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    for number in range(3):
        monkeypatch.setattr(distributed, "process_number", lambda n=number: (n, 3))
        with torch.random.fork_rng():
            torch.manual_seed(7)
            distributed.offset_seed_by_rank()
            seeds.append(torch.initial_seed())
    assert seeds[0] == 7
    assert len(set(seeds)) == 3


def test_the_on_rank_zero_it_and_all_know(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def act() -> str:
        done.append(1)
        return "made"

    assert together(3, lambda _: distributed.on_rank_zero(act), monkeypatch) == ["made"] * 3
    assert len(done) == 1


def test_what_the_first_process_fails_at_fails_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> None:
        raise FileExistsError("There is something.")

    def work(number: int) -> str:
        with pytest.raises(FileExistsError, match="There is something"):
            distributed.on_rank_zero(act)
        return "told"

    assert together(2, work, monkeypatch) == ["told", "told"]


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_codes_are_drawn_for_the_whole_batch(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    codes = SoftCodes(6, n_bits=4, hidden=8, n_hidden=1, code_dim=3).train()
    x = torch.randn(7, 6)
    torch.manual_seed(11)
    whole = codes(x, temperature=temperature)
    torch.manual_seed(11)
    book = codes.codebook()
    parts = together(
        3,
        lambda i: codes(x[PARTS[i]], temperature=temperature, codebook=book),
        monkeypatch,
    )
    assert torch.equal(torch.cat([p.code for p in parts]), whole.code)
    torch.testing.assert_close(torch.cat([p.vector for p in parts]), whole.vector)
    assert len(whole.code.unique()) > 1
