"""Published weights give the published numbers, through the calls that a user makes."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest
import torch

from cfm.models import UCE
from tests._golden import assert_close, io_of
from tests._uce import GOLDEN, N_HEADS

io = partial(io_of, "uce")


@cache
def model() -> UCE:
    return UCE.from_pretrained(GOLDEN, n_heads=N_HEADS)


@pytest.mark.parametrize("gradients", [True, False])
def test_outputs(gradients: bool) -> None:
    with torch.set_grad_enabled(gradients):
        genes, cells = model().module(io()["tokens"], io()["mask"])
        assert_close(genes, io()["gene_output"])
        assert_close(cells, io()["cell_embedding"])
        logits = model().module.predict(io()["cell_embedding"], io()["tokens"][:, 1])
        assert_close(logits, io()["expression_logit_of_token1"])


def test_the_quirks_are_there() -> None:
    """Only a sentence without padding is embedded as it is alone."""
    tokens, expected = io()["tokens"], io()["cell_embedding"]
    lengths = io()["mask"].sum(1).int().tolist()
    assert lengths == [30, 25, 21]
    alone = model().module.embed([t[:n] for t, n in zip(tokens, lengths, strict=True)])
    assert_close(alone[:1], expected[:1])
    assert (alone[1:] - expected[1:]).abs().max() > 1e-3
    with torch.no_grad():
        scaled = model().module.token_projection(model().module.token_embedding(tokens))
        assert not torch.allclose(scaled * 32**0.5, model().module.tokens(tokens), atol=1e-3)


def test_neither_neighbours_nor_pieces_matter() -> None:
    sentences = [t[:n] for t, n in zip(io()["tokens"], (30, 25, 21), strict=True)]
    together = model().module.embed(sentences)
    for i, sentence in enumerate(sentences):
        assert_close(model().module.embed([sentence]), together[i : i + 1])
    assert_close(model().module.embed(sentences[::-1]), together.flip(0))


def test_sizes_are_read_off_the_weights() -> None:
    size = model().size
    assert (size.dim, size.n_layers, size.n_heads, size.ff_dim) == (32, 2, 4, 48)
    assert (size.n_tokens, size.token_dim, size.output_dim, size.head_dim) == (60, 24, 16, 24)
    assert size.expression_dims == (32, 16, 8)


def test_tokens_that_do_not_fit_are_refused() -> None:
    module = model().module
    with pytest.raises(ValueError, match="tokens 0 to 59"):
        module(torch.full((1, 3), 60), torch.ones(1, 3))
    with pytest.raises(ValueError, match="expected both as"):
        module(torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 4))
    with pytest.raises(ValueError, match="positions for 1536"):
        module.embed([torch.ones(1537, dtype=torch.int64)])


def test_positions_of_a_new_model_are_the_published() -> None:
    new = UCE(size=model().size)
    np.testing.assert_array_equal(new.module.positions, model().module.positions)
