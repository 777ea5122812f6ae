"""Virtual instrument: published numbers, what it learns, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import cfm
from cfm.models import PerturbationModel, VirtualInstrument, load_model
from cfm.models.pulsar import InstrumentSize
from tests._pulsar import GOLDEN
from tests._small import CONDITIONS, N_DONORS, paired

WEIGHTS = GOLDEN / "virtual_instrument.pt"


@pytest.fixture(scope="module")
def trained() -> VirtualInstrument:
    adata = paired()
    VirtualInstrument.setup_anndata(adata, "cytokine")
    model = VirtualInstrument(adata, conditions=CONDITIONS, hidden_dim=64)
    model.train(
        control="none", max_epochs=30, batch_size=8, validation_share=0.2, enable_progress_bar=False
    )
    return model


def test_published_weights_give_the_published_numbers() -> None:
    io = load_file(GOLDEN / "io.safetensors")
    for load in (VirtualInstrument.from_pretrained, load_model):
        model = load(WEIGHTS)
        donor, condition = io["donor_embedding"], io["instrument_condition"]
        expected = io["instrument_output"]
        with torch.no_grad():
            for found in (
                model.module(donor, condition),
                model.module(torch.cat([donor, condition], dim=1)),
            ):
                assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert model.size.hidden_dim == 24
        assert model.size.condition_dim == 40
        assert len(model.checkpoint_sha256) == 64
        rows = [model.predict(d[None], c)[0] for d, c in zip(donor, condition.numpy(), strict=True)]
        np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_it_learns_what_conditions_do(trained: VirtualInstrument) -> None:
    """Of donors it has not seen, and depending on the donor."""
    history = trained.history
    error = float(history["validation_loss"].iloc[-1].iloc[0])
    unchanged = float(history["validation_unchanged"].iloc[-1].iloc[0])
    assert error < 0.3 * unchanged
    assert isinstance(trained, PerturbationModel)
    assert trained.provenance["n_pairs"] == 57  # 19 of 24 donors under three conditions
    assert len(trained.provenance["training_donors"]) == 19


def test_it_answers_through_simulate_perturbation(trained: VirtualInstrument) -> None:
    adata = paired()
    found = cfm.tl.simulate_perturbation(
        adata, ["A", "B"], model=trained, key="cytokine", control="none"
    )
    base = adata[adata.obs["cytokine"] == "none"].X
    shift = sum(trained.predict(base, name) - base for name in ("A", "B"))
    np.testing.assert_allclose(found.X, base + shift, atol=1e-4)
    assert found.n_obs == N_DONORS
    again = trained.simulate(adata, ["B"], batch_size=7)
    np.testing.assert_allclose(again.X, trained.predict(adata.X, "B"), atol=1e-5)


def test_saved_models_know_their_conditions(trained: VirtualInstrument, tmp_path: Path) -> None:
    loaded = load_model(trained.save(tmp_path / "instrument"))
    pd.testing.assert_frame_equal(loaded.conditions, trained.conditions, check_names=False)
    x = paired().X
    loaded.add_conditions(pd.DataFrame(np.ones((1, 5)), index=["D"]))
    assert loaded.conditions.index.tolist() == ["A", "B", "C", "D"]
    assert np.isfinite(loaded.predict(x, "D")).all()


def test_donors_without_a_pair_are_left_out_with_a_warning() -> None:
    adata = paired()
    adata = adata[~((adata.obs["donor_id"] == "donor3") & (adata.obs["cytokine"] == "none"))].copy()
    VirtualInstrument.setup_anndata(adata, "cytokine")
    model = VirtualInstrument(adata, conditions=CONDITIONS, hidden_dim=4)
    with pytest.warns(UserWarning, match="1 of 24 donors are not there both"):
        model.train(control="none", max_epochs=1, enable_progress_bar=False)


@pytest.mark.parametrize(
    ("control", "conditions", "alone", "error", "message"),
    [
        ("PBS", CONDITIONS, False, KeyError, "control='PBS' is no condition"),
        ("none", CONDITIONS.iloc[:2], False, KeyError, r"does not have the conditions \['C'\]"),
        ("none", CONDITIONS, True, ValueError, "No donor is there both"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    control: str, conditions: pd.DataFrame, alone: bool, error: type[Exception], message: str
) -> None:
    adata = paired()
    if alone:
        adata.obs["donor_id"] = adata.obs_names
    VirtualInstrument.setup_anndata(adata, "cytokine")
    model = VirtualInstrument(adata, conditions=conditions, hidden_dim=4)
    with pytest.raises(error, match=message):
        model.train(control=control)


def test_what_does_not_fit_is_refused(trained: VirtualInstrument, tmp_path: Path) -> None:
    x = paired().X
    with pytest.raises(KeyError, match="add_conditions"):
        trained.predict(x, "IL99")
    with pytest.raises(ValueError, match="expected 6 and 5"):
        trained.predict(x[:, :4], "A")
    with pytest.raises(ValueError, match="X has 4 columns"):
        trained.simulate(paired()[:, :4].copy(), ["A"])
    for table, message in (
        (pd.DataFrame(np.ones((1, 9)), index=["A"]), "9 columns"),
        (pd.DataFrame(np.ones((2, 5)), index=["A", "A"]), "once"),
        (pd.DataFrame(np.full((1, 5), np.nan), index=["A"]), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            trained.add_conditions(table)
    with pytest.raises(TypeError, match="expected a DataFrame"):
        VirtualInstrument(conditions=np.ones((2, 3)))
    with pytest.raises(ValueError, match="differ"):
        InstrumentSize(donor_dim=4, output_dim=5)
    state = torch.load(WEIGHTS, weights_only=True)
    del state["output_net.1.bias"]
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"output_net.1.bias: found nothing"):
        VirtualInstrument.from_pretrained(tmp_path / "x.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="does not hold the weights of a virtual instrument"):
        VirtualInstrument.from_pretrained(tmp_path / "x.pt")
