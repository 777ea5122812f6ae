"""Linear layers on the fastest kernel of the device, and a cache of derived weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Tokens whose hidden values stay in the cache of a core.
CHUNK = 512
#: Networks of less width run on one thread.
_SHARED_WIDTH = 256


@contextmanager
def one_thread_if_small(width: int, device: torch.device) -> Iterator[None]:
    """Keep a small network on a CPU to one thread.

    Its products are too small to share, and on a busy machine threads that wait for each other
    take a hundred times as long.

    Parameters
    ----------
    width
        Width of the tokens.
    device
        Device of the network.
    """
    before = torch.get_num_threads()
    alone = device.type == "cpu" and width < _SHARED_WIDTH
    if alone:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if alone:
            torch.set_num_threads(before)


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    # torch 2.6 does not have it
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def prepare_linear(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """Return a function that applies a linear layer, without gradients.

    In float32 on a CPU with AVX-512 it calls oneDNN instead of MKL, which on AMD processors runs
    at half that speed. oneDNN allocates half a megabyte for each new number of rows, up to about a
    gigabyte; so on a CPU rows of zeros are added up to one of eight numbers per octave.

    Parameters
    ----------
    weight, bias
        ``(n_out, n_in)`` and ``(n_out,)``.
    dtype
        Dtype of the product and of the output.

    Returns
    -------
    A function from ``(..., n_in)`` to ``(..., n_out)``.
    """
    weight = weight.detach().to(dtype).contiguous()
    bias = None if bias is None else bias.detach().to(dtype)
    product = _onednn if dtype == torch.float32 and prefers_onednn(weight.device) else F.linear
    if weight.device.type != "cpu":
        return lambda x: product(x.to(dtype), weight, bias)

    def run(x: Tensor) -> Tensor:
        flat = x.to(dtype).reshape(-1, x.shape[-1])
        n = len(flat)
        more = rounded_up(n) - n
        out = product(F.pad(flat, (0, 0, 0, more)) if more else flat, weight, bias)[:n]
        return out.view(*x.shape[:-1], out.shape[-1])

    return run


def attend_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend head by head in chunks of queries, so that attention weights stay in the cache.

    Parameters
    ----------
    q
        ``(1, heads, n, head_dim)``.
    k, v
        ``(1, heads, m, head_dim)``.

    Returns
    -------
    ``(1, heads, n, head_dim)``, without gradients.
    """
    product = _onednn if q.dtype == torch.float32 and prefers_onednn(q.device) else F.linear
    q = q / q.shape[-1] ** 0.5
    out = torch.empty_like(q)
    step = CHUNK * torch.get_num_threads()
    for head in range(q.shape[1]):
        key, value = k[0, head].contiguous(), v[0, head].T.contiguous()
        for start in range(0, q.shape[2], step):
            part = q[0, head, start : start + step]
            n = len(part)
            weights = product(F.pad(part, (0, 0, 0, rounded_up(n) - n)), key, None)
            torch.softmax(weights, dim=-1, out=weights)
            out[0, head, start : start + n] = product(weights, value, None)[:n]
    return out


def rounded_up(n: int) -> int:
    """Round up to one of eight numbers per octave.

    Examples
    --------
    >>> [rounded_up(n) for n in (7, 16, 17, 1000, 1025)]
    [7, 16, 18, 1024, 1152]
    """
    step: int = 1 << max(0, n.bit_length() - 4)
    return -(-n // step) * step


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply by a weight matrix, with gradients, on the kernel of :func:`prepare_linear`.

    Parameters
    ----------
    x
        ``(..., n_in)``.
    weight
        ``(n_out, n_in)``.

    Returns
    -------
    ``(..., n_out)``; under autocast in its dtype.
    """
    plain = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    compiling = torch.compiler.is_compiling()
    if plain and x.numel() and not compiling and prefers_onednn(x.device):
        return _OneDNNLinear.apply(x, weight)
    return F.linear(x, weight)


class Linear(nn.Linear):
    """A linear layer without bias that is trained on the kernel of :func:`prepare_linear`."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., n_in)`` to ``(..., n_out)``."""
        return linear(x, self.weight)


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (out,) = gradients
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            by_x = _onednn(out, weight.T, None)
        if ctx.needs_input_grad[1]:
            flat = out.reshape(-1, out.shape[-1])
            by_weight = _onednn(flat.T, x.reshape(-1, x.shape[-1]).T, None)
        return by_x, by_weight


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.compiler.is_compiling():  # the compiler cannot lower the operator, and has its own
        return F.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    out = torch.ops.mkldnn._linear_pointwise(flat, weight, bias, "none", [], "")
    return out.view(*x.shape[:-1], out.shape[-1])


def prepare(layer: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Prepare an :class:`torch.nn.Linear`; see :func:`prepare_linear`."""
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"Found a {type(layer).__name__}; expected a Linear layer.")
    return prepare_linear(layer.weight, layer.bias, dtype)


def prefers_onednn(device: torch.device) -> bool:
    """Return whether oneDNN multiplies float32 matrices at least as fast as torch by default."""
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    )


class WeightCache:
    """Cache of values that are derived from weights, until these change.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn._kernels import WeightCache
    >>> cache, weight = WeightCache(), torch.ones(2)
    >>> float(cache.get("sum", [weight], weight.sum))
    2.0
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[object, Any]] = {}

    def get(self, name: str, weights: Iterable[Tensor], make: Callable[[], Any]) -> Any:
        """Return the cached result of ``make``, without gradients; recompute it for new weights."""
        used = list(weights)
        if any(w.is_inference() for w in used):  # these have no version counter
            return make()
        version = tuple((w.data_ptr(), w._version, w.device, w.dtype) for w in used)
        if name not in self._found or self._found[name][0] != version:
            self._found.pop(name, None)
            # Not inference tensors: training may use them next.
            with torch.inference_mode(False), torch.no_grad():
                self._found[name] = version, make()
        return self._found[name][1]

    def clear(self) -> None:
        """Drop everything."""
        self._found.clear()

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return type(self), ()  # a copy of the module has weights of its own
