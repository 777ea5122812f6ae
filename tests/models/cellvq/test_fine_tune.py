"""Models that go on learning: new heads, frozen encoders, weights that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cfm.models import CellVQ
from tests._planted_codes import QUIET, planted_cells, trained, untrained

EXACT: dict[str, Any] = {"precision": "float32"}
LINEAR: dict[str, Any] = {"head_input": "embedding", **QUIET}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained().save(tmp_path_factory.mktemp("models") / "trained", card="# Of planted cells")


def registered(n: int = 60, **setup: Any) -> Any:
    cells = planted_cells(n, seed=11)
    CellVQ.setup_anndata(cells, **setup)
    return cells


def state(model: CellVQ) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}


@pytest.mark.parametrize("alone", [False, True])
def test_a_frozen_encoder_keeps_codes_and_embeddings(folder: Path, alone: bool) -> None:
    cells = registered(labels_keys=["even"])
    model = CellVQ.from_pretrained(folder, cells)
    before, codes = state(model), model.get_cell_codes(cells, **EXACT)
    embedding = model.get_latent_representation(cells, **EXACT)
    model.set_properties({"even": ["no", "yes"]})
    before |= {k: v for k, v in state(model).items() if k.startswith("property_heads.1")}
    weight = 0.0 if alone else 1.0
    model.train(max_steps=40, freeze="encoder", reconstruction_weight=weight, lr=2e-2, **LINEAR)
    after = state(model)
    assert changed(before, after) == (
        {"property_heads"} if alone else {"property_heads", "decoder", "code_term"}
    )
    assert torch.equal(before["property_heads.0.means"], after["property_heads.0.means"])
    assert not torch.equal(before["property_heads.1.weight"], after["property_heads.1.weight"])
    again = model.get_cell_codes(cells, **EXACT)
    np.testing.assert_array_equal(codes.code, again.code)
    np.testing.assert_array_equal(embedding, model.get_latent_representation(cells, **EXACT))
    assert all(p.requires_grad for p in model.module.parameters())
    unseen = planted_cells(80, seed=12)
    named = model.predict_properties(unseen)["even"].idxmax(axis=1)
    assert (named.to_numpy() == unseen.obs["even"].to_numpy()).mean() > 0.9
    assert set(model.properties) == {"cell_type", "even"}


def test_an_open_encoder_goes_on_from_where_cells_are(folder: Path) -> None:
    cells = registered(labels_keys=["cell_type"], study_key="study")
    model = CellVQ.from_pretrained(folder, cells)
    before = model.get_cell_codes(cells, **EXACT)
    weights = state(model)
    model.train(max_steps=2, lr=1e-6, **QUIET)
    after = model.get_cell_codes(cells, **EXACT)
    assert changed(weights, state(model)) >= {"layers", "quantiser", "decoder", "property_heads"}
    cosine = (before.latent * after.latent).sum(axis=1)
    assert np.median(cosine) > 0.9  # the very same place, but for the centre of other cells
    assert (before.code == after.code).mean() > 0.8
    assert model.checkpoint_name == ""
    assert model.card is None
    assert model.provenance["started_from"]["name"] == "trained"
    assert set(model.provenance["training_studies"]) == {"s0", "s1", "s2", "s3"}


def test_registered_properties_get_heads(folder: Path) -> None:
    model = CellVQ.from_pretrained(folder, registered(labels_keys=["even", "cell_type"]))
    model.train(max_steps=1, freeze="encoder", reconstruction_weight=0.0, lr=1e-9, **LINEAR)
    assert model.properties == {"cell_type": ["T0", "T1", "T2", "T3"], "even": ["no", "yes"]}


def test_classes_that_a_head_does_not_know_are_refused(folder: Path) -> None:
    cells = planted_cells(20)
    cells.obs["cell_type"] = cells.obs["cell_type"].replace("T1", "T9")
    CellVQ.setup_anndata(cells, labels_keys=["cell_type"])
    model = CellVQ.from_pretrained(folder, cells)
    with pytest.raises(KeyError, match=r"does not have \(\['T9'\].*set_properties"):
        model.train(max_steps=1, **QUIET)
    model.set_properties({"cell_type": ["T9", "T0", "T2", "T3"]})
    model.train(max_steps=1, **QUIET)
    assert model.properties["cell_type"][0] == "T9"


def test_weights_of_properties_and_classes() -> None:
    model = untrained(labels_keys=["cell_type", "even"])
    before = state(model)
    weight = {"cell_type": 0.0}
    model.train(max_steps=1, property_weight=weight, class_weights=True, weight_decay=0.0, **LINEAR)
    after = state(model)
    assert torch.equal(before["property_heads.0.weight"], after["property_heads.0.weight"])
    assert not torch.equal(before["property_heads.1.weight"], after["property_heads.1.weight"])
    with pytest.raises(KeyError, match="no heads \\['tissue'\\]"):
        model.train(max_steps=1, property_weight={"tissue": 1.0}, **QUIET)


def test_labels_may_shape_the_codes() -> None:
    model = untrained(labels_keys=["cell_type"])
    model.train(max_steps=2, code_label_weight=1.0, **QUIET)
    assert {"train_code_property_cell_type", "validation_code_accuracy_cell_type"} <= set(
        model.history
    )
    assert not any("code_heads" in k for k in model.module.state_dict())


def test_the_published_shape_trains_at_a_reduced_depth() -> None:
    """Relations of all genes, the codes of 12 bits, no term of codes; narrow and shallow."""
    cells = planted_cells(10)
    CellVQ.setup_anndata(cells, labels_keys=["cell_type"])
    reduced = {"dim": 24, "n_heads": 2, "ff_dim": 48, "n_layers": 1, "codebook_dim": 32}
    decoder = {"decoder_dim": 16, "decoder_layers": 1, "decoder_heads": 2}
    model = CellVQ(cells, size="published", **reduced, **decoder)
    assert model.size.n_codes == 4096
    assert model.module.relation.shape == (62, 62)
    assert model.module.code_term is None
    before = state(model)
    model.train(max_steps=2, batch_size=4, **LINEAR)
    assert {"relation", "layers", "quantiser", "decoder"} <= changed(before, state(model))
    assert CellVQ(cells, size="mini").module.relation is None


def test_curves_of_a_new_property_begin_where_it_began() -> None:
    model = untrained()
    model.train(max_epochs=2, **QUIET)
    model.attach(registered(labels_keys=["even"]))
    model.train(max_epochs=1, **QUIET)
    assert model.history["train_reconstruction"].index.tolist() == [0, 1, 2]
    curve = model.history["train_property_even"]
    assert curve.index.tolist() == [2]
    assert np.isfinite(curve.to_numpy(dtype=float)).all()


def test_the_linear_term_starts_from_principal_components_once() -> None:
    model = untrained()
    model.train(max_steps=1, lr=1e-9, **QUIET)
    started = model.module.expression_term.genes.detach().clone()
    assert started.norm(dim=0).max() > 1.0  # a step of this rate moves nothing
    with torch.no_grad():
        model.module.expression_term.genes.mul_(0.5)
    model.train(max_steps=1, lr=1e-9, **QUIET)
    torch.testing.assert_close(model.module.expression_term.genes.detach(), 0.5 * started)
