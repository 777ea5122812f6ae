"""The network: what reaches a prediction, and what never does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cfm.models.cellpulse import CellPulseModule
from cfm.models.cellpulse._module import (
    MASKED,
    PADDING,
    UP,
    Tokens,
    agreement_loss,
    mask_tokens,
)

N_GENES = 60
N_FACTORS = 7


def module(seed: int = 0, **sizes) -> CellPulseModule:
    """A network whose every part matters: nothing is left at zero."""
    torch.manual_seed(seed)
    sizes = {"dim": 32, "n_heads": 2, "n_layers": 2, "n_factors": N_FACTORS} | sizes
    network = CellPulseModule(N_GENES, **sizes)
    network.set_gene_factors(torch.randn(N_GENES, N_FACTORS), torch.arange(N_FACTORS) % 3)
    network.usual_size.copy_(torch.randn(N_GENES) / 3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def batch(b: int = 3, n: int = 20, seed: int = 1) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    gene = torch.stack([torch.randperm(N_GENES, generator=generator)[:n] for _ in range(b)])
    state = torch.randint(0, 3, (b, n), generator=generator)
    magnitude = torch.rand(b, n, generator=generator) * 2
    return Tokens(gene, state, magnitude)


def padded(tokens: Tokens, n: int) -> Tokens:
    b = len(tokens.gene)
    return Tokens(
        torch.cat([tokens.gene, torch.zeros(b, n, dtype=torch.int64)], 1),
        torch.cat([tokens.state, torch.full((b, n), PADDING)], 1),
        torch.cat([tokens.magnitude, torch.full((b, n), float("nan"))], 1),
    )


def outputs(network: CellPulseModule, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    encoded = network.encode(tokens)
    return encoded.summary, *network.predict_tokens(encoded)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_order_of_tokens_carries_no_meaning() -> None:
    network, tokens = module(), mask_tokens(batch(), torch.full((3,), 0.4))[0]
    order = torch.randperm(20)
    moved = Tokens(*(t[:, order] for t in tokens))
    summary, logits, size = outputs(network, tokens)
    moved_summary, moved_logits, moved_size = outputs(network, moved)
    assert_close(moved_summary, summary)
    assert_close(moved_logits, logits[:, order])
    assert_close(moved_size, size[:, order])


def test_padding_and_batch_do_not_matter() -> None:
    network, tokens = module(), batch()
    summary, logits, size = outputs(network, tokens)
    wide = outputs(network, padded(tokens, 9))
    assert_close(wide[0], summary)
    assert_close(wide[1][:, :20], logits)
    assert_close(wide[2][:, :20], size)
    for i in range(3):
        alone = outputs(network, Tokens(*(t[i : i + 1] for t in tokens)))
        assert_close(alone[0][0], summary[i])
        assert_close(alone[1][0], logits[i])
        assert_close(alone[2][0], size[i])


def test_padding_gets_no_attention() -> None:
    weights = module().attention(padded(batch(), 4))
    assert (weights[..., -4:] == 0).all()
    assert_close(weights.sum(-1), torch.ones(3, 2, 2, 25))


def test_flipping_all_directions_changes_the_embedding() -> None:
    network, tokens = module(), batch()
    flipped = tokens._replace(state=2 - tokens.state)
    assert (network.encode(flipped).summary - network.encode(tokens).summary).abs().max() > 0.1


def test_what_is_hidden_never_leaks() -> None:
    """Any other truth at the hidden places gives exactly the same predictions."""
    network, target = module(), batch()
    share = torch.full((3,), 0.5)
    hidden, masked = mask_tokens(target, share, torch.Generator().manual_seed(3))
    other = Tokens(
        target.gene,
        torch.where(masked, 2 - target.state, target.state),
        torch.where(masked, target.magnitude * 3 + 1, target.magnitude),
    )
    hidden_again, masked_again = mask_tokens(other, share, torch.Generator().manual_seed(3))
    assert torch.equal(masked, masked_again)
    assert 0.3 < masked.float().mean() < 0.7
    for found, expected in zip(
        outputs(network, hidden_again), outputs(network, hidden), strict=True
    ):
        assert torch.equal(found, expected)


def test_the_factor_mask_takes_factors_away() -> None:
    """A factor that a profile is not to be predicted with may hold anything."""
    network, tokens = module(), batch()
    mask = torch.ones(3, N_FACTORS)
    mask[0, 2:5] = 0
    before = network.encode(tokens, mask)
    with torch.no_grad():
        network.gene_factors[:, 2:5] = 7 * torch.randn(N_GENES, 3)
    after = network.encode(tokens, mask)
    for name in ("summary", "tokens", "linear", "genes"):
        assert_close(getattr(after, name)[0], getattr(before, name)[0])
        assert (getattr(after, name) - getattr(before, name))[1:].abs().max() > 0.1


def test_rotating_the_factors_changes_nothing() -> None:
    network, tokens = module(), mask_tokens(batch(), torch.full((3,), 0.4))[0]
    summary, logits, size = outputs(network, tokens)
    rotation, _ = torch.linalg.qr(torch.randn(N_FACTORS, N_FACTORS))
    network.rotate_factors(rotation)
    found = outputs(network, tokens)
    assert_close(found[0], summary)
    assert_close(found[1], logits)
    assert_close(found[2], size)
    assert_close(network.scaled_factors(), network.gene_factors)  # relevances are absorbed
    assert network.log_relevance.shape == (1,)


def test_before_training_the_linear_term_speaks_alone() -> None:
    torch.manual_seed(0)
    network = CellPulseModule(N_GENES, n_factors=N_FACTORS, dim=32, n_heads=2)
    network.set_gene_factors(torch.randn(N_GENES, N_FACTORS), torch.zeros(N_FACTORS).long())
    tokens = mask_tokens(batch(), torch.full((3,), 0.4))[0]
    logits, size = network.eval().predict_tokens(network.encode(tokens))
    linear, _, _ = network.linear_scores(tokens)
    assert_close(logits, torch.stack([-linear, 0 * linear, linear], -1))
    assert_close(size, network.size_line(tokens))


def test_the_size_line_follows_the_level_and_the_usual_size() -> None:
    network = module()
    gene = torch.arange(40).unsqueeze(0)
    usual = network.usual_size[gene]
    magnitude = 1.5 + usual
    hidden = torch.zeros_like(gene, dtype=torch.bool)
    hidden[:, ::3] = True
    tokens = Tokens(gene, torch.where(hidden, MASKED, UP), magnitude.masked_fill(hidden, torch.nan))
    line = network.size_line(tokens)
    assert torch.corrcoef(torch.stack([line[hidden], magnitude[hidden]]))[0, 1] > 0.999
    flat = magnitude[~hidden].median() - magnitude[hidden]
    assert (line[hidden] - magnitude[hidden]).abs().mean() < 0.5 * flat.abs().mean()
    blind = tokens._replace(magnitude=torch.full_like(magnitude, torch.nan))
    assert (network.size_line(blind) == 0).all()


def test_losses_have_gradients_everywhere() -> None:
    network = module(learn_gene_embedding=True)
    target = batch(b=6)
    hidden, masked = mask_tokens(target, torch.full((6,), 0.5))
    losses = network.losses(hidden, target, masked, groups=torch.tensor([0, 0, 1, 1, 2, 3]))
    assert set(losses) == {"direction", "magnitude", "summary", "agreement"}
    torch.stack(list(losses.values())).sum().backward()
    missing = [k for k, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_batch_that_asks_nothing_teaches_nothing() -> None:
    """Not NaN, which would destroy the weights."""
    network, target = module(), batch()
    nothing = torch.zeros_like(target.state, dtype=torch.bool)
    losses = network.losses(target, target, nothing)
    assert all(v == 0 for v in losses.values())
    assert network.linear_loss(target, target, nothing) == 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_agreement_pulls_profiles_of_a_sample_together() -> None:
    summary = torch.randn(6, 8)
    groups = torch.tensor([0, 0, 1, 1, 2, 3])
    apart = agreement_loss(summary, groups)
    summary[1], summary[3] = summary[0], summary[2]
    together = agreement_loss(summary, groups)
    assert together < apart
    z = torch.nn.functional.normalize(summary, dim=-1)
    logits = (z @ z.T / 0.1).fill_diagonal_(float("-inf"))
    expected = -torch.stack(
        [logits.log_softmax(1)[i, j] for i, j in [(0, 1), (1, 0), (2, 3), (3, 2)]]
    )
    assert_close(together, expected.mean())


def test_factors_of_other_genes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of 5 genes; expected 60"):
        module().set_gene_factors(torch.zeros(5, 3), torch.zeros(3).long())
