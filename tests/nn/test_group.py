"""Groups of genes: the fast ways in and out are the ones of the equations."""

from __future__ import annotations

import pytest
import torch

from cfm.nn._genes import GroupCompression


def literal_pack(group: GroupCompression, embedded: torch.Tensor, pad: torch.Tensor):
    """Concatenate the embeddings of each group and apply the down projection (eq. 8)."""
    ordered = embedded[:, group.permutation]
    lacking = group.n_groups * group.group_size - group.n_genes
    filled = torch.cat([ordered, pad.expand(len(embedded), lacking, -1)], dim=1)
    return group.down(filled.reshape(len(embedded), group.n_groups, -1))


@pytest.mark.parametrize(("n_genes", "size"), [(12, 4), (13, 4), (3, 8), (7, 1)])
def test_packing_is_the_projection_of_concatenated_embeddings(n_genes: int, size: int) -> None:
    group = GroupCompression(n_genes, 6, size)
    embedding = torch.randn(5, 6)
    tokens = torch.randint(0, 4, (3, n_genes))
    found = group.pack(tokens, group.table(embedding), padding=4)
    expected = literal_pack(group, embedding[tokens], embedding[4])
    assert found.shape == (3, -(-n_genes // size), 6)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_heads_are_the_head_after_the_way_back() -> None:
    group = GroupCompression(13, 6, 4)
    head, x = torch.randn(9, 6), torch.randn(2, group.n_groups, 6)
    expected = group.unpack(x) @ head.T
    assert expected.shape == (2, 13, 9)
    position = group.positions()
    heads = group.heads(head)
    for gene in range(13):
        state = x[:, position[gene] // 4]
        torch.testing.assert_close(
            state @ heads[position[gene] % 4].T, expected[:, gene], rtol=1e-5, atol=1e-5
        )


def test_a_gene_comes_back_to_its_own_place() -> None:
    group = GroupCompression(10, 8, 4)
    with torch.no_grad():  # each place keeps two numbers of its own
        group.down.weight.zero_()
        group.up.weight.zero_()
        for place in range(4):
            for i in range(2):
                group.down.weight[2 * place + i, 8 * place + i] = 1.0
                group.up.weight[8 * place + i, 2 * place + i] = 1.0
    embedding = torch.zeros(11, 8)
    embedding[:, :2] = torch.randn(11, 2)
    tokens = torch.arange(10)[None]
    packed = group.pack(tokens, group.table(embedding), padding=10)
    torch.testing.assert_close(group.unpack(packed)[0, :, :2], embedding[:10, :2])


def test_gradients_reach_embedding_and_projection() -> None:
    group = GroupCompression(8, 4, 4)
    embedding = torch.randn(6, 4, requires_grad=True)
    tokens = torch.randint(0, 5, (2, 8))
    group.pack(tokens, group.table(embedding), padding=5).square().sum().backward()
    fast = embedding.grad.clone(), group.down.weight.grad.clone()
    embedding.grad = group.down.weight.grad = None
    literal_pack(group, embedding[tokens], embedding[5]).square().sum().backward()
    torch.testing.assert_close(fast[0], embedding.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast[1], group.down.weight.grad, rtol=1e-4, atol=1e-5)


def test_published_lengths() -> None:
    with torch.device("meta"):
        assert GroupCompression(18_080, 4, 8).n_groups == 2_260
        assert GroupCompression(18_080, 4, 32).n_groups == 565


def test_the_order_is_random_complete_and_stored() -> None:
    torch.manual_seed(0)
    first, second = GroupCompression(50, 4, 8), GroupCompression(50, 4, 8)
    assert sorted(first.permutation.tolist()) == list(range(50))
    assert not torch.equal(first.permutation, second.permutation)
    second.positions()  # of the old order
    assert "permutation" in first.state_dict()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.permutation[second.positions()], torch.arange(50))
    assert torch.equal(second.positions(), first.positions())
