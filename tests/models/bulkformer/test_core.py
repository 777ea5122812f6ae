"""Registration, graphs, saving and loading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from safetensors.torch import load_file, save_file

import cfm
from cfm.models import BulkFormer, load_model
from cfm.models.bulkformer._compounds import CompoundHead
from tests._bulk import SIZES, TRAINING, published, toy_bulkformer, toy_log_tpm, untrained


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


def test_gene_features_stand_for_identity() -> None:
    table = pd.DataFrame(np.random.default_rng(0).normal(3, 9, (80, 6)), toy_log_tpm().var_names)
    model = untrained(gene_features=table.sample(frac=1, random_state=0))
    assert model.module.gene_embedding is None
    expected = (table - table.mean()) / table.std(ddof=0)
    np.testing.assert_allclose(model.module.gene_features, expected, atol=1e-5)
    with pytest.warns(UserWarning, match="rows for 25% of the model's 80 genes"):
        few = untrained(gene_features=table[:20])
    assert not few.module.gene_features[20:].any()
    table.iloc[3, 2] = np.nan
    with pytest.raises(ValueError, match="gene_features holds NaN"):
        untrained(gene_features=table)


def test_registering_checks_layer_and_column() -> None:
    adata = toy_log_tpm()
    with pytest.raises(KeyError, match=r"no column 'batch'; it has \['study'\]"):
        BulkFormer.setup_anndata(adata, study_key="batch")
    with pytest.raises(KeyError, match="no layer 'log_tpm'"):
        BulkFormer.setup_anndata(adata, layer="log_tpm")
    adata.obs.loc["sample3", "study"] = None
    with pytest.raises(ValueError, match=r"is missing in 1 of 96 rows"):
        BulkFormer.setup_anndata(adata, study_key="study")


def test_a_model_needs_genes_and_registered_data() -> None:
    with pytest.raises(ValueError, match="needs adata or vocabulary"):
        BulkFormer()
    with pytest.raises(ValueError, match=r"set up your AnnData with .*setup_anndata"):
        BulkFormer(toy_log_tpm())
    with pytest.raises(ValueError, match="Unknown size 'huge'; expected one of"):
        untrained(size="huge")


def test_counts_are_refused_as_training_data() -> None:
    adata = toy_log_tpm()
    adata.X = np.random.default_rng(0).poisson(300, adata.shape).astype(np.float32)
    BulkFormer.setup_anndata(adata)
    with pytest.raises(ValueError, match=r"counts.*cfm\.pp\.tpm"):
        BulkFormer(adata, **SIZES)


@pytest.mark.parametrize("with_features", [True, False])
def test_saving_and_loading_keeps_every_number(tmp_path: Path, with_features: bool) -> None:
    adata = toy_log_tpm()
    model = toy_bulkformer()
    if with_features:
        table = pd.DataFrame(np.random.default_rng(0).normal(size=(80, 6)), adata.var_names)
        model = untrained(gene_features=table)
    folder = model.save(tmp_path / "saved", card="# Card")
    for load in (BulkFormer.load, BulkFormer.from_pretrained, load_model):
        loaded = load(folder)
        assert loaded.vocabulary == model.vocabulary
        assert loaded.size == model.size
        assert loaded.card == "# Card"
        assert loaded.checkpoint_name == "saved"
        assert loaded.provenance == model.provenance
        for method in ("get_latent_representation", "impute", "predict_expression"):
            found, expected = getattr(loaded, method)(adata), getattr(model, method)(adata)
            np.testing.assert_array_equal(found, expected)
    if not with_features:
        assert loaded.history["train_loss"].shape == model.history["train_loss"].shape


def test_compact_checkpoints_are_half_the_size(tmp_path: Path) -> None:
    model, adata = toy_bulkformer(), toy_log_tpm()
    folders = [model.save(tmp_path / str(c), compact=c) for c in (False, True)]
    sizes = [(f / "model.safetensors").stat().st_size for f in folders]
    assert sizes[1] < 0.75 * sizes[0]
    full, compact = (
        BulkFormer.load(f).predict_expression(adata, precision="float32") for f in folders
    )
    assert np.abs(full - compact).to_numpy().mean() < 0.01


def test_published_weights_are_saved_in_our_format(tmp_path: Path) -> None:
    model = BulkFormer.from_pretrained(published(tmp_path / "released"))
    loaded = BulkFormer.load(model.save(tmp_path / "ours"))
    assert loaded.vocabulary == model.vocabulary
    assert loaded.knows_genes
    assert torch.equal(loaded.module.edges, model.module.edges)


def test_data_are_not_saved_and_folders_not_replaced_unasked(tmp_path: Path) -> None:
    model = toy_bulkformer()
    with pytest.raises(TypeError, match=r"does not take \['save_anndata'\]"):
        model.save(tmp_path / "x", save_anndata=True)
    model.save(tmp_path / "x")
    with pytest.raises(FileExistsError, match="overwrite"):
        model.save(tmp_path / "x")


def test_loading_with_data_attaches_them(tmp_path: Path) -> None:
    folder = toy_bulkformer().save(tmp_path / "x")
    adata = toy_log_tpm(seed=5)
    BulkFormer.setup_anndata(adata, study_key="study")
    model = BulkFormer.from_pretrained(folder, adata)
    assert model.adata is adata
    assert len(model.get_latent_representation()) == adata.n_obs


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    toy_bulkformer().save(folder)
    header = json.loads((folder / "config.json").read_text())
    change(header)
    (folder / "config.json").write_text(json.dumps(header))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 32}, "do not fit the sizes"),
        ({"dim": 15}, "garbles a setting"),
        ({"dim": 10**9}, "garbles a setting|do not fit"),
        ({"n_layers": 10**9}, "more layers than"),
        ({"n_blocks": 10**9}, "more layers than"),
        ({"ff_mult": 10**6}, "do not fit the sizes"),
        ({"n_heads": "2"}, "n_heads=.*; expected a whole number"),
        ({"ff_dropout": 1.0}, "ff_dropout must be at least 0"),
        ({"centred": "yes"}, "centred=.yes.; expected True or False"),
        ({"width": 3}, "garbles a setting.*width"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = edited(tmp_path / "x", lambda h: h["config"]["size"].update(change))
    with pytest.raises(ValueError, match=message):
        BulkFormer.load(folder)


@pytest.mark.parametrize("key", ["size", "n_gene_features", "knows_genes"])
def test_missing_settings_are_refused(tmp_path: Path, key: str) -> None:
    folder = edited(tmp_path / "x", lambda h: h["config"].pop(key))
    with pytest.raises(ValueError, match=f"lacks or garbles a setting.*{key}"):
        BulkFormer.load(folder)


def test_a_graph_beyond_the_genes_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x"

    def change(header: dict[str, Any]) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["edges"][0, 0] = 80
        save_file(tensors, path)
        header["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    edited(folder, change)
    with pytest.raises(ValueError, match="belongs to another gene list"):
        BulkFormer.load(folder)


def test_checkpoints_of_other_models_are_refused(tmp_path: Path) -> None:
    folder = edited(tmp_path / "x", lambda h: h.update(model="CellPulse"))
    with pytest.raises(ValueError, match="holds a CellPulse model; expected BulkFormer"):
        BulkFormer.load(folder)


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
