"""Virtual instrument: published numbers, what it learns, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import cfm
from cfm.models import PerturbationModel, VirtualInstrument, load_model
from cfm.models.pulsar import InstrumentModule, InstrumentSize
from tests._pulsar import GOLDEN

WEIGHTS = GOLDEN / "virtual_instrument.pt"
N_DONORS, WIDTH = 24, 6
#: What conditions do: a shift each, and the second half of the donors answers the other way.
CONDITIONS = pd.DataFrame(np.eye(3, 5), index=["A", "B", "C"])


def paired(seed: int = 0) -> ad.AnnData:
    """Donors under no condition and three, ``X`` their embeddings."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(N_DONORS, WIDTH))
    base[:, 0] = np.where(np.arange(N_DONORS) % 2, 3.0, -3.0)
    shifts = 2 * rng.normal(size=(3, WIDTH))
    direction = np.where(base[:, :1] > 0, 1.0, -1.0)
    rows, obs = [base], [("none", i) for i in range(N_DONORS)]
    for name, shift in zip(CONDITIONS.index, shifts, strict=True):
        rows.append(base + direction * shift)
        obs += [(name, i) for i in range(N_DONORS)]
    x = np.concatenate(rows).astype(np.float32)
    frame = pd.DataFrame(obs, columns=["cytokine", "person"])
    frame["donor_id"] = "donor" + frame.pop("person").astype(str)
    frame.index = frame["donor_id"] + "-" + frame["cytokine"]
    return ad.AnnData(x, obs=frame.astype("category"), obsm={"X_pulsar": x.copy()})


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


def test_parameters_of_the_published_size() -> None:
    with torch.device("meta"):
        module = InstrumentModule(InstrumentSize())
    assert sum(p.numel() for p in module.parameters()) == 12_597_248


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
    np.testing.assert_array_equal(loaded.predict(x, "C"), trained.predict(x, "C"))
    assert loaded.provenance == trained.provenance
    assert list(loaded.history) == list(trained.history)
    loaded.add_conditions(pd.DataFrame(np.ones((1, 5)), index=["D"]))
    assert loaded.conditions.index.tolist() == ["A", "B", "C", "D"]
    assert np.isfinite(loaded.predict(x, "D")).all()


def test_a_compact_checkpoint_says_nearly_the_same(
    trained: VirtualInstrument, tmp_path: Path
) -> None:
    small = VirtualInstrument.from_pretrained(trained.save(tmp_path / "small", compact=True))
    donors = paired().X[:4]
    exact = trained.predict(donors, "B")
    np.testing.assert_allclose(small.predict(donors, "B"), exact, atol=0.02)
    sizes = [
        (trained.save(tmp_path / name, compact=name == "half") / "model.safetensors").stat().st_size
        for name in ("half", "whole")
    ]
    assert sizes[0] < 0.6 * sizes[1]


def test_it_trains_on_from_a_checkpoint(trained: VirtualInstrument, tmp_path: Path) -> None:
    adata = paired(1)
    VirtualInstrument.setup_anndata(adata, "cytokine")
    more = VirtualInstrument.from_pretrained(trained.save(tmp_path / "first"), adata)
    before = more.predict(adata.X[:3], "A")
    more.train(control="none", max_epochs=2, enable_progress_bar=False)
    assert np.abs(more.predict(adata.X[:3], "A") - before).max() > 0
    assert more.provenance["started_from"]["name"] == "first"


def test_pairs_start_from_the_donor_without_a_condition() -> None:
    adata = paired()
    VirtualInstrument.setup_anndata(adata, "cytokine")
    model = VirtualInstrument(adata, conditions=CONDITIONS, hidden_dim=4)
    before, condition, after, donors = model._pairs("none")
    rows = pd.DataFrame(adata.X, index=adata.obs_names)
    names = CONDITIONS.index[condition.argmax(axis=1)]
    np.testing.assert_allclose(before, rows.loc[[f"{d}-none" for d in donors]])
    np.testing.assert_allclose(
        after, rows.loc[[f"{d}-{c}" for d, c in zip(donors, names, strict=True)]]
    )


def test_donors_without_a_pair_are_left_out_with_a_warning() -> None:
    adata = paired()
    adata = adata[~((adata.obs["donor_id"] == "donor3") & (adata.obs["cytokine"] == "none"))].copy()
    VirtualInstrument.setup_anndata(adata, "cytokine")
    model = VirtualInstrument(adata, conditions=CONDITIONS, hidden_dim=4)
    with pytest.warns(UserWarning, match="1 of 24 donors are not there both"):
        model.train(control="none", max_epochs=1, enable_progress_bar=False)


def test_what_cannot_be_learned_is_refused() -> None:
    adata = paired()
    VirtualInstrument.setup_anndata(adata, "cytokine")
    model = VirtualInstrument(adata, conditions=CONDITIONS, hidden_dim=4)
    with pytest.raises(KeyError, match="control='PBS' is no condition"):
        model.train(control="PBS")
    with pytest.raises(KeyError, match=r"does not have the conditions \['C'\]"):
        VirtualInstrument(adata, conditions=CONDITIONS.iloc[:2], hidden_dim=4).train(control="none")
    with pytest.raises(ValueError, match="no data"):
        VirtualInstrument(conditions=CONDITIONS, donor_dim=4, hidden_dim=4).train(control="none")
    adata.obs["donor_id"] = adata.obs_names
    VirtualInstrument.setup_anndata(adata, "cytokine")
    with pytest.raises(ValueError, match="No donor is there both"):
        VirtualInstrument(adata, conditions=CONDITIONS, hidden_dim=4).train(control="none")
    with pytest.raises(KeyError, match="no column 'dose'"):
        VirtualInstrument.setup_anndata(adata, "dose")


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
