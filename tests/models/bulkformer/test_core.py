"""Registration, graphs, saving and loading."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import cfm
from cfm.models import BulkFormer
from cfm.models.bulkformer._compounds import CompoundHead
from tests._bulk import SIZES, TRAINING, published, toy_log_tpm, untrained


def edges_of(model: BulkFormer) -> set[tuple[int, int]]:
    return set(map(tuple, model.module.edges.T.tolist()))


def test_the_graph_is_made_of_the_data_or_taken_from_them() -> None:
    adata = toy_log_tpm()
    made = untrained(adata)
    cfm.pp.coexpression_graph(adata)
    stored = untrained(adata)
    assert edges_of(made) == edges_of(stored)
    graph = sp.coo_matrix(adata.varp["coexpression"])
    assert edges_of(made) == set(zip(graph.row.tolist(), graph.col.tolist(), strict=True))
    order = np.random.default_rng(0).permutation(adata.n_vars)
    turned = adata[:, order].copy()
    moved = untrained(turned, vocabulary=adata.var_names)
    assert edges_of(moved) == edges_of(stored)


def test_missing_values_do_not_stop_the_graph() -> None:
    adata = toy_log_tpm()
    adata.X[::7, 3] = np.nan
    adata.X[:, 5] = -10.0
    model = untrained(adata)
    assert 5 not in model.module.edges
    assert 3 in model.module.edges


def test_a_graph_may_be_given() -> None:
    edges = np.array([[0, 1, 2], [1, 2, 0]])
    pair = untrained(graph=(edges, [0.5, 0.6, 0.7]))
    matrix = sp.coo_matrix(([0.5, 0.6, 0.7], edges), shape=(80, 80))
    assert edges_of(pair) == edges_of(untrained(graph=matrix)) == {(0, 1), (1, 2), (2, 0)}
    with pytest.raises(ValueError, match="graph= is 7 × 7; the vocabulary has 80 genes"):
        untrained(graph=sp.identity(7))
    with pytest.raises(ValueError, match="belongs to another gene list"):
        untrained(graph=([[0], [80]], [1.0]))
    with pytest.raises(TypeError, match="graph= is a str"):
        untrained(graph="tcga")


def test_unrelated_genes_are_linked_to_themselves_with_a_warning() -> None:
    rng = np.random.default_rng(0)
    adata = ad.AnnData(rng.uniform(1, 3, (400, 60)).astype(np.float32))
    BulkFormer.setup_anndata(adata)
    with pytest.warns(UserWarning, match="No two genes are correlated enough"):
        model = BulkFormer(adata, **SIZES)
    assert edges_of(model) == {(i, i) for i in range(60)}


def test_gene_features_stand_for_identity(tmp_path: Path) -> None:
    table = pd.DataFrame(np.random.default_rng(0).normal(3, 9, (80, 6)), toy_log_tpm().var_names)
    model = untrained(gene_features=table.sample(frac=1, random_state=0))
    assert model.module.gene_embedding is None
    expected = (table - table.mean()) / table.std(ddof=0)
    np.testing.assert_allclose(model.module.gene_features, expected, atol=1e-5)
    loaded = BulkFormer.load(model.save(tmp_path / "saved"))
    assert torch.equal(loaded.module.gene_features, model.module.gene_features)
    with pytest.warns(UserWarning, match="rows for 25% of the model's 80 genes"):
        few = untrained(gene_features=table[:20])
    assert not few.module.gene_features[20:].any()
    table.iloc[3, 2] = np.nan
    with pytest.raises(ValueError, match="gene_features holds NaN"):
        untrained(gene_features=table)


def test_counts_are_refused_as_training_data() -> None:
    adata = toy_log_tpm()
    adata.X = np.random.default_rng(0).poisson(300, adata.shape).astype(np.float32)
    BulkFormer.setup_anndata(adata)
    with pytest.raises(ValueError, match=r"counts.*cfm\.pp\.tpm"):
        BulkFormer(adata, **SIZES)


def test_published_weights_are_saved_in_our_format(tmp_path: Path) -> None:
    model = BulkFormer.from_pretrained(published(tmp_path / "released"))
    loaded = BulkFormer.load(model.save(tmp_path / "ours"))
    assert loaded.vocabulary == model.vocabulary
    assert loaded.knows_genes
    assert torch.equal(loaded.module.edges, model.module.edges)


def test_weights_trained_further_are_not_passed_off_as_published(tmp_path: Path) -> None:
    folder = published(tmp_path / "released")
    ids = pd.read_csv(folder / "bulkformer_gene_info.csv")["ensg_id"]
    adata = ad.AnnData(
        np.random.default_rng(0).uniform(0.5, 3, (12, 160)).astype(np.float32),
        var=pd.DataFrame(index=ids),
    )
    BulkFormer.setup_anndata(adata)
    model = BulkFormer.from_pretrained(folder, adata)
    sha256, edges = model.checkpoint_sha256, model.module.edges.clone()
    model.train(max_steps=2, **(TRAINING | {"lr": 1e-4}))
    assert model.checkpoint_sha256 == ""
    assert model.provenance["started_from"] == {"name": "bulkformer_tiny", "sha256": sha256}
    assert torch.equal(model.module.edges, edges)
    assert not model.module.gene_offset.any()  # published weights do not start from the mean


def test_the_parts_beside_the_network_move_with_it() -> None:
    model = untrained()
    model.fit_linear_term(4, weight=0.5)
    model.compound_head = CompoundHead(10, 19, ["a", "b"], ["x", "y"])
    model.to_device("meta")
    for part in (model.module, model.linear_term, model.compound_head):
        assert {t.device.type for t in part.state_dict().values()} == {"meta"}
