"""bulkformer-latest (v3): the numbers of the authors' code, and files that belong together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from cfm.hub._checkpoint import sha256_of_file
from cfm.models import BulkFormer, load_model
from cfm.models.bulkformer import SIZES
from tests._bulk import published, toy_log_tpm
from tests._golden import GOLDEN, assert_close, io_of

FOLDER = GOLDEN / "bulkformer_latest"
io = partial(io_of, "bulkformer_latest")
LAYER = "performer.net.layers.1."


@cache
def model() -> BulkFormer:
    return BulkFormer.from_pretrained(FOLDER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "bulkformer-latest"))


def samples() -> ad.AnnData:
    values = torch.where(io()["x"] == -10, torch.nan, io()["x"]).numpy()
    adata = ad.AnnData(values)
    adata.var_names = model().vocabulary.genes
    return adata


@pytest.mark.parametrize("gradients", [True, False])
def test_numbers_of_the_authors_code(gradients: bool) -> None:
    module, x = model().module, io()["x"]
    with torch.set_grad_enabled(gradients):
        assert_close(module.encode(x), io()["emb"])
        assert_close(module.predict(x), io()["pred"])


@pytest.mark.parametrize("tokens", [1, 37, 10_000])
def test_the_size_of_the_pieces_is_no_matter(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = model().module
    monkeypatch.setattr(module, "tokens_at_once", lambda: tokens)
    with torch.inference_mode():
        assert_close(module.encode(io()["x"]), io()["emb"])
        assert_close(module.predict(io()["x"]), io()["pred"])


def test_bfloat16_is_alike() -> None:
    with torch.inference_mode():
        found = model().module.encode(io()["x"], dtype=torch.bfloat16)
        assert model().module.bfloat16_agreement() > 0.999
    assert torch.cosine_similarity(found, io()["emb"], dim=-1).mean() > 0.999


def test_samples_are_pooled_over_their_observed_genes() -> None:
    found = model().get_latent_representation(samples(), pooling="mean", precision="float32")
    assert_close(found, io()["pooled"])
    every = model().get_latent_representation(samples(), pooling="all", precision="float32")
    np.testing.assert_array_equal(every[:, :32], found)
    seen = io()["x"][0] != -10
    expected = io()["emb"][0, seen]
    assert_close(every[0, 32:64], expected.max(0).values)
    assert_close(every[0, 64:], expected.median(0).values)
    alone = samples()
    alone.X[2] = np.nan
    with pytest.raises(ValueError, match=r"Sample 2 .* has no observed gene"):
        model().get_latent_representation(alone)


def test_sizes_are_read_off_the_weights(tmp_path: Path) -> None:
    size = model().size
    assert (size.dim, size.n_layers, size.n_heads, size.ff_mult) == (32, 2, 2, 4)
    assert (size.n_features, size.graph_dim) == (24, 8)
    again = BulkFormer.from_pretrained(model().save(tmp_path / "ours"))
    with torch.inference_mode():
        torch.testing.assert_close(again.module.predict(io()["x"]), io()["pred"])
    assert type(load_model(FOLDER)) is BulkFormer


def test_the_published_size_has_the_published_number_of_parameters() -> None:
    n_genes, dim, narrow, hidden = 19_973, 768, 192, 4 * 768
    attention = 4 * (dim * dim + dim)
    feed_forward = dim * hidden + hidden + hidden * dim + dim
    norm = 2 * dim
    graph = norm + 2 * dim * narrow + narrow * narrow + dim
    head = dim * dim + dim + dim + 1
    total = n_genes * dim + 12 * (attention + feed_forward + 2 * norm) + graph + head + 3 * norm + 1
    assert total == 101_323_778
    with torch.device("meta"):
        module = SIZES["latest"].module(n_genes)
    assert sum(p.numel() for p in module.parameters()) == total


def test_training_changes_all_weights() -> None:
    adata = toy_log_tpm()
    BulkFormer.setup_anndata(adata, study_key="study")
    small = {"dim": 16, "n_layers": 1, "n_heads": 2, "n_features": 16, "graph_dim": 8}
    trained = BulkFormer(adata, size="latest", **small)
    before = {name: p.detach().clone() for name, p in trained.module.named_parameters()}
    features = trained.module.blocks[0].layers[0].attention.features.clone()
    trained.train(max_steps=6, batch_size=16, redraw_interval=2, enable_progress_bar=False)
    after = dict(trained.module.named_parameters())
    assert not [name for name, value in before.items() if torch.equal(value, after[name])]
    assert torch.equal(features, trained.module.blocks[0].layers[0].attention.features)
    fresh = toy_log_tpm(seed=5, n=24)
    fresh.X[0, :5] = np.nan
    filled = trained.impute(fresh)
    assert (filled >= 0).all()
    np.testing.assert_array_equal(filled[1:], fresh.X[1:])
    table = pd.DataFrame(adata.varm["loadings"], index=adata.var_names)
    with pytest.raises(ValueError, match="goes with the sizes of v2"):
        BulkFormer(adata, size="latest", gene_features=table)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the payload of the weights; its digest in the manifest follows."""
    payload = torch.load(folder / "model.pt", weights_only=True)
    change(payload)
    torch.save(payload, folder / "model.pt")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.pt"]["sha256"] = sha256_of_file(folder / "model.pt")
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["G_tcga.pt", "bulkformer_gene_info.csv"])
def test_files_of_v2_beside_weights_of_v3_are_refused(folder: Path, name: str) -> None:
    older = published(folder.parent / "older")
    shutil.copy(older / name, folder / name)
    with pytest.raises(ValueError, match=rf"v3 .*{name}.* belong to v2.*edge_index.pt, edge_weig"):
        BulkFormer.from_pretrained(folder)
    for own in ("edge_index.pt", "edge_weight.pt", "gene_vocab.csv"):
        (folder / own).unlink()
    (folder / "model.pt").rename(folder / "bulkformer_new.pt")
    with pytest.raises(ValueError, match=rf"v3 .*{name}.* belong to v2"):
        BulkFormer.from_pretrained(folder)


def test_files_of_v3_beside_weights_of_v2_are_refused(folder: Path) -> None:
    older = published(folder.parent / "older")
    shutil.copy(folder / "gene_vocab.csv", older)
    with pytest.raises(ValueError, match=r"v2 .*gene_vocab.csv.* belong to v3.*G_tcga.pt"):
        BulkFormer.from_pretrained(older)


@pytest.mark.parametrize("name", ["edge_index.pt", "edge_weight.pt", "gene_vocab.csv", "model.pt"])
def test_a_file_of_another_release_is_refused(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"{name} differs from the file that manifest.json names"):
        BulkFormer.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"files": {}}', '{"files": {"edge_index.pt": 3}}'])
def test_a_damaged_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="no manifest of bulkformer-latest"):
        BulkFormer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["model"].update(extra=torch.ones(1)), "BulkFormer does not have"),
        (lambda p: p["model"].update({LAYER + "0.fn.to_z.bias": torch.ones(1)}), "does not have"),
        (lambda p: p["model"].pop("expression_scale"), "expression_scale: found nothing"),
        (lambda p: p["model"].pop("gene_embedding.weight"), "lacks weights of BulkFormer"),
        (lambda p: p["model"].pop(LAYER + "0.norm.bias"), "two versions of one tensor"),
        (
            lambda p: p["model"].update({"gene_embedding.weight": torch.ones(5, 32)}),
            "do not fit the 5 genes",
        ),
        (
            lambda p: p["model"].update({"gene_embedding.weight": torch.ones(120, 31)}),
            "contradict each other",
        ),
        (lambda p: p["model_config"].update(expression_base=50.0), "trained with expression_base"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        BulkFormer.from_pretrained(folder)


def test_without_manifest_and_gene_list(folder: Path) -> None:
    for name in ("manifest.json", "model_config.json"):
        (folder / name).unlink()
    assert BulkFormer.from_pretrained(folder).vocabulary.genes[0] == "ENSG00001000000"
    (folder / "gene_vocab.csv").write_text("canonical_ensg\nENSG1\n")
    with pytest.raises(ValueError, match="lists 1 genes"):
        BulkFormer.from_pretrained(folder)


def test_a_graph_of_other_genes_is_refused(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    torch.save(torch.tensor([[0, 120], [1, 2]]), folder / "edge_index.pt")
    torch.save(torch.ones(2), folder / "edge_weight.pt")
    with pytest.raises(ValueError, match="do not fit the 120 genes"):
        BulkFormer.from_pretrained(folder)
    (folder / "edge_index.pt").unlink()
    with pytest.raises(ValueError, match=r"no edge_index.pt beside the weights.*v3"):
        BulkFormer.from_pretrained(folder)
