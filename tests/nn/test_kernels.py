"""Prepared linear layers give the numbers of plain ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfm.nn import _kernels
from cfm.nn._kernels import Linear, linear, one_thread_if_small, prepare_linear, rounded_up


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (1, 7)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_float32(
    monkeypatch: pytest.MonkeyPatch, onednn: bool, shape: tuple[int, ...], with_bias: bool
) -> None:
    onednn = onednn and torch.backends.mkldnn.is_available()
    monkeypatch.setattr(_kernels, "prefers_onednn", lambda device: onednn)
    weight, bias = torch.randn(11, 7), torch.randn(11) if with_bias else None
    x = torch.randn(*shape)
    found = prepare_linear(weight, bias, torch.float32)(x)
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16() -> None:
    weight, bias, x = torch.randn(11, 7), torch.randn(11), torch.randn(5, 7)
    found = prepare_linear(weight, bias, torch.bfloat16)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.float(), torch.nn.functional.linear(x, weight, bias), rtol=0.05, atol=0.1
    )


def test_strided_input() -> None:
    weight, x = torch.randn(4, 6), torch.randn(3, 5, 12)[:, ::2, ::2]
    found = prepare_linear(weight, None, torch.float32)(x)
    torch.testing.assert_close(found, x @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("onednn", [True, False])
def test_gradients_are_those_of_a_plain_layer(
    monkeypatch: pytest.MonkeyPatch, onednn: bool
) -> None:
    onednn = onednn and torch.backends.mkldnn.is_available()
    monkeypatch.setattr(_kernels, "prefers_onednn", lambda device: onednn)
    x, weight = torch.randn(2, 5, 7), torch.randn(11, 7)
    made = []
    for function in (linear, torch.nn.functional.linear):
        inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
        function(*inputs).sin().sum().backward()
        made.append([t.grad for t in inputs])
    for found, expected in zip(*made, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_only_what_is_asked_for_is_differentiated() -> None:
    x, weight = torch.randn(5, 7), torch.randn(3, 7, requires_grad=True)
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(3, 7), rtol=1e-5, atol=1e-5)
    assert linear(torch.randn(0, 7), weight).shape == (0, 3)


def test_autocast_decides_the_dtype() -> None:
    layer = Linear(7, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 7)).dtype == torch.bfloat16
    assert layer(torch.randn(2, 7)).dtype == torch.float32


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_the_compiler_sees_plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    # It cannot lower the operator of oneDNN.
    monkeypatch.setattr(_kernels, "prefers_onednn", lambda device: True)
    torch._dynamo.reset()
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        seen.append(graph.code)
        return graph.forward

    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    prepared = prepare_linear(weight, None, torch.float32)
    for function in (lambda x: linear(x, weight), prepared):
        torch.testing.assert_close(torch.compile(function, backend=backend)(x), x @ weight.T)
    assert len(seen) == 2
    assert not any("mkldnn" in code for code in seen)


@given(n=st.integers(1, 5000))
def test_numbers_of_rows_are_few_and_hardly_larger(n: int) -> None:
    found = rounded_up(n)
    assert n <= found <= 1.125 * n
    assert rounded_up(found) == found


def test_few_shapes_reach_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    # oneDNN keeps memory for each number of rows that it ever saw.
    seen = set()

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.add(len(x))
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(_kernels, "prefers_onednn", lambda device: True)
    monkeypatch.setattr(_kernels, "_onednn", product)
    weight = torch.randn(3, 4)
    run = prepare_linear(weight, None, torch.float32)
    for n in range(256, 512):
        x = torch.randn(n, 4)
        torch.testing.assert_close(run(x), x @ weight.T)
    assert len(seen) == 9


@pytest.mark.parametrize(
    ("width", "device", "n_threads"), [(64, "cpu", 1), (768, "cpu", 2), (64, "meta", 2)]
)
def test_small_networks_run_on_one_thread(width: int, device: str, n_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread_if_small(width, torch.device(device)):
            assert torch.get_num_threads() == n_threads
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), one_thread_if_small(width, torch.device(device)):
            _ = 1 / 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
