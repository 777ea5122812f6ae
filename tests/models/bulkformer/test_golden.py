"""Published weights give the published numbers, through the calls that a user makes."""

from __future__ import annotations

import json
from functools import cache, partial

import pytest
import torch

from cfm.models import BulkFormer
from tests._bulk import GOLDEN
from tests._golden import assert_close, io_of

io = partial(io_of, "bulkformer")


@cache
def model() -> BulkFormer:
    return BulkFormer.from_pretrained(GOLDEN)


@cache
def mask_rate() -> float:
    return json.loads((GOLDEN / "config.json").read_text())["mask_prob"]


@pytest.mark.parametrize("gradients", [True, False])
def test_embeddings_and_predictions(gradients: bool) -> None:
    """Both ways through the network: all at once with gradients, in pieces without."""
    module, x = model().module, io()["x"]
    with torch.set_grad_enabled(gradients):
        assert_close(module.encode(x, missing_rate=mask_rate()), io()["emb"])
        assert_close(module.encode(x, missing_rate=0.0), io()["emb_noprob"])
        assert_close(module.predict(x, missing_rate=mask_rate()), io()["pred"])


def test_without_a_rate_each_sample_has_its_own() -> None:
    x = io()["x"]
    with torch.no_grad():
        found = model().module.encode(x)
    own = (x == -10).float().mean(1)
    assert own.unique().numel() > 1
    torch.testing.assert_close(found[..., -3], own.unsqueeze(1).expand(-1, 160))
    assert_close(found[..., :-3], io()["emb"][..., :-3])


@pytest.mark.parametrize("tokens", [37, 160])
def test_the_size_of_the_pieces_is_no_matter(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = model().module
    monkeypatch.setattr(module, "tokens_at_once", lambda: tokens)
    with torch.inference_mode():
        assert_close(module.encode(io()["x"], mask_rate()), io()["emb"])
        assert_close(module.predict(io()["x"], mask_rate()), io()["pred"])


def test_sizes_are_read_off_the_weights() -> None:
    size = model().size
    assert (size.dim, size.n_layers, size.n_heads, size.n_blocks, size.ff_mult) == (32, 2, 4, 1, 4)
    assert len(model().vocabulary) == 160
    assert not size.centred
