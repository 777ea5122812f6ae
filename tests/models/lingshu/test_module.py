"""The network: published sizes, its loss, its conditions, missing genes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cfm.models.lingshu import SIZES, ConditionLevels, Conditions, LingshuModule
from cfm.models.lingshu._module import MASK, MISSING

LEVELS = ConditionLevels("cell", ["B", "T"], "drug", ["x", "y"], "none", {"batch": ["1", "2"]})
SMALL = {"dim": 16, "n_layers": 2, "n_heads": 2, "ff_dim": 32, "group_size": 4, "depth": True}


def small(n_genes: int = 10, **changes) -> LingshuModule:
    torch.manual_seed(0)
    return LingshuModule(n_genes, **(SMALL | LEVELS.module_arguments() | changes))


def told(n: int, **conditions) -> Conditions:
    return LEVELS.conditions(n, **conditions)


def counts_term(seed: int = 0) -> nn.Module:
    """A term of random log-probabilities per gene."""

    class Term(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: dict = {}
            draw = torch.randn(10, 281, generator=torch.Generator().manual_seed(seed))
            self.register_buffer("table", draw.log_softmax(-1))

        def forward(self, conditions, rows, genes):
            assert len(conditions.source) > int(rows.max())
            return self.table[genes]

    return Term()


@pytest.mark.parametrize(
    ("name", "groups", "total"), [("default", 2_260, 92.1e6), ("vcc", 565, 111.8e6)]
)
def test_published_sizes(name: str, groups: int, total: float) -> None:
    with torch.device("meta"):
        module = LingshuModule(18_080, **vars(SIZES[name]), n_sources=1, n_parts=150)
    assert sum(p.numel() for p in module.trunk.parameters()) == 85_214_080
    assert module.group.n_groups == groups
    assert module.n_prefix == 2
    assert module.head.out_features == 281
    # 281 values and the mask; of each slot an unknown; a source, the control and 150 targets.
    assert module.embedding.num_embeddings == 281 + 1 + 2 + 152
    n = sum(p.numel() for p in module.parameters())
    assert n == pytest.approx(total, rel=0.005)


def literal(module: LingshuModule, tokens: torch.Tensor, conditions: Conditions) -> torch.Tensor:
    """Logits of all genes by the equations: embed, concatenate, project, trunk, project, head."""
    group = module.group
    embedded = module.embedding.weight[tokens][:, group.permutation]
    lacking = group.n_groups * group.group_size - group.n_genes
    pad = module.embedding.weight[MASK].expand(len(tokens), lacking, -1)
    x = group.down(torch.cat([embedded, pad], 1).reshape(len(tokens), group.n_groups, -1))
    if module.group_positions is not None:
        x = x + module.group_positions
    x = module.trunk(torch.cat([module.prefix(conditions), x], dim=1))[:, module.n_prefix :]
    return module.head(group.unpack(x))


@pytest.mark.parametrize("learned_positions", [False, True])
@pytest.mark.parametrize("n_genes", [8, 10])
def test_the_loss_is_the_weighted_cross_entropy_of_the_literal_network(
    n_genes: int, learned_positions: bool
) -> None:
    module = small(n_genes, learned_positions=learned_positions)
    tokens = torch.randint(0, 281, (3, n_genes))
    tokens[1, :2] = MISSING
    hidden = torch.rand(3, n_genes) < 0.6
    time = torch.tensor([0.2, 0.5, 0.9])
    conditions = told(3, source=["B", "T", "B"], perturbation=["none", "x", "x+y"])
    seen = tokens.masked_fill(hidden | (tokens == MISSING), MASK)
    scores = literal(module, seen, conditions).log_softmax(-1)
    expected = 0.0
    for i in range(3):
        measured = tokens[i] != MISSING
        chosen = (hidden[i] & measured).nonzero().squeeze(1)
        nll = -scores[i, chosen, tokens[i, chosen]].sum()
        expected = expected + nll / time[i] / measured.sum() / 3
    found = module.losses(tokens, hidden, time, conditions)["loss"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_missing_genes_are_hidden_and_not_judged() -> None:
    module = small()
    tokens = torch.randint(0, 281, (2, 10))
    other = tokens.clone()
    tokens[:, 3] = MISSING
    other[:, 3] = MASK  # what the network is shown instead
    conditions = told(2)
    torch.testing.assert_close(
        module.encode(tokens.masked_fill(tokens == MISSING, MASK), conditions),
        module.encode(other, conditions),
    )
    time, everything = torch.ones(2), torch.ones(2, 10, dtype=torch.bool)
    without = module.losses(tokens, everything & (tokens != MISSING), time, conditions)["loss"]
    torch.testing.assert_close(module.losses(tokens, everything, time, conditions)["loss"], without)


def test_conditions_reach_every_state_and_unknown_is_a_condition_of_its_own() -> None:
    module = small()
    tokens = torch.full((1, 10), MASK)
    depth = np.array([1000.0], dtype=np.float32)
    variants = [
        told(1),
        told(1, source=["B"]),
        told(1, source=["T"]),
        told(1, perturbation=["none"]),
        told(1, perturbation=["x"]),
        told(1, perturbation=["x+y"]),
        told(1, depth=depth),
        told(1, depth=2 * depth),
    ]
    states = [module.encode(tokens, c) for c in variants]
    for i, a in enumerate(states):
        for b in states[i + 1 :]:
            assert ((a - b).abs().amax(-1) > 1e-6).all()


def test_combinations_are_sums_in_any_order() -> None:
    module = small()
    one, two, both, turned = (
        module.prefix(told(1, perturbation=[p]))[:, 1] for p in ("x", "y", "x+y", "y+x")
    )
    torch.testing.assert_close(both, one + two)
    assert torch.equal(both, turned)
    with_control = module.prefix(told(1, perturbation=["none+x"]))[:, 1]
    assert torch.equal(with_control, one)


def test_features_describe_perturbations() -> None:
    module = small(n_features=3)
    module.features.copy_(torch.randn(2, 3))
    assert module.embedding.num_embeddings == small().embedding.num_embeddings - 2
    conditions = told(3, perturbation=["x", "none", "x+y"])
    prefix = module.prefix(conditions)[:, 1]
    described = module.feature_map(module.features)
    torch.testing.assert_close(prefix[0], described[0])
    torch.testing.assert_close(prefix[2], described.sum(0))
    new = torch.cat([module.features, torch.randn(1, 3)])
    asked = conditions._replace(parts=torch.full((3, 1), 4), features=new)
    torch.testing.assert_close(module.prefix(asked)[0, 1], module.feature_map(new[2]))


def test_training_with_a_count_term_starts_from_it_alone() -> None:
    module = small()
    term = counts_term()
    module.set_count_term(term)
    tokens = torch.randint(0, 281, (4, 10))
    hidden, time, conditions = torch.rand(4, 10) < 0.5, torch.full((4,), 0.5), told(4)
    rows, genes = hidden.nonzero(as_tuple=True)
    expected = -term.table[genes, tokens[rows, genes]].sum() / (0.5 * 10 * 4)
    loss = module.losses(tokens, hidden, time, conditions)["loss"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert module.head.weight.grad.abs().sum() > 0
