"""Training: what it learns, that it repeats, what it records and refuses."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import torch

from cfm.models import Pulsar
from cfm.models.pulsar._data import Batch, PretrainingStream, read_donors
from cfm.models.pulsar._module import SIZES, PulsarModule
from cfm.models.pulsar._training import agreement_loss, pretraining_losses
from tests._pulsar import GOLDEN, donors

SMALL = {"dim": 32, "encoder_layers": 1, "encoder_ff": 64, "decoder_ff": 64}
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture
def adata() -> ad.AnnData:
    adata = donors((60, 40, 50, 45, 70, 55, 48, 52), width=10)
    Pulsar.setup_anndata(adata, use_rep="X_uce", labels_key="disease")
    return adata


def curve(model: Pulsar, name: str) -> np.ndarray:
    return model.history[name].to_numpy().ravel().astype(float)


def test_both_losses_fall_and_draws_find_each_other(adata: ad.AnnData) -> None:
    model = Pulsar(adata, **SMALL)
    apart = separation(model, adata)
    model.train(100, n_cells=30, keep_share=0.3, mask_share=0.5, lr=3e-3, **QUIET)
    for name in ("train_reconstruction", "train_contrastive"):
        found = curve(model, name)
        assert found[-5:].mean() < 0.9 * found[:3].mean(), name
    assert "validation_loss" in model.history
    assert separation(model, adata) > apart
    assert model.provenance["n_donors"] == 7
    assert model.is_trained_


def separation(model: Pulsar, adata: ad.AnnData) -> float:
    """How much more alike donors of one disease are than others, in cosine."""
    z = model.get_latent_representation(adata, precision="float32")
    z = z - z.mean(axis=0)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    ill = np.arange(len(z)) >= 4
    like = z @ z.T
    same = (ill[:, None] == ill) & ~np.eye(len(z), dtype=bool)
    return float(like[same].mean() - like[ill[:, None] != ill].mean())


def test_a_term_without_weight_is_not_computed(adata: ad.AnnData) -> None:
    model = Pulsar(adata, **SMALL)
    model.train(1, n_cells=20, reconstruction_weight=0, **QUIET)
    assert "train_reconstruction" not in model.history
    assert model.provenance["use_rep"] == "X_uce"


def test_published_weights_train_on() -> None:
    adata = donors()
    Pulsar.setup_anndata(adata, use_rep="X_uce")
    model = Pulsar.from_pretrained(GOLDEN / "PULSAR-tiny", adata)
    assert not model.size.masked_input
    model.train(1, n_cells=12, **QUIET)
    assert model.size.masked_input
    assert np.isfinite(model.get_latent_representation()).all()


def test_batches_hold_what_they_say(adata: ad.AnnData) -> None:
    read = read_donors(adata, "donor_id", "X_uce", None)
    stream = PretrainingStream(
        read,
        np.arange(8),
        batch_size=8,
        n_cells=25,
        seed=0,
        labels=np.arange(8) % 3 - 1,
        keep_share=0.2,
        mask_share=0.85,
    )
    (batch,) = stream
    n_seen, n_hidden = (~batch.visible_padding).sum(1), (~batch.hidden_padding).sum(1)
    sizes = np.minimum(25, np.r_[read.n_cells // 2, read.n_cells - read.n_cells // 2])
    order = batch.donor.numpy()
    expected = np.r_[sizes[:8][order[:8]], sizes[8:][order[8:]]]
    assert (n_seen + n_hidden).tolist() == expected.tolist()
    assert n_seen.tolist() == np.round(0.2 * expected).astype(int).tolist()
    assert batch.label.tolist() == (order % 3 - 1).tolist()
    asked = batch.masked[~batch.hidden_padding].float().mean()
    assert 0.83 < asked < 0.87
    rows = {tuple(x) for x in adata.obsm["X_uce"].tolist()}
    used = [tuple(x) for x in batch.visible[~batch.visible_padding].tolist()]
    used += [tuple(x) for x in batch.hidden[~batch.hidden_padding].tolist()]
    assert set(used) <= rows
    assert len(set(used)) == len(used)  # no cell is in both draws, or both seen and hidden
    assert not torch.equal(next(iter(stream)).visible, batch.visible)


def test_only_hidden_elements_of_cells_are_reconstructed() -> None:
    torch.manual_seed(0)
    module = PulsarModule(replace(SIZES["mini"], input_dim=6)).eval()
    torch.nn.init.normal_(module.mask_element)
    hidden, masked = torch.randn(2, 3, 6), torch.zeros(2, 3, 6, dtype=torch.bool)
    masked[:, 0, 2] = masked[0, 1] = masked[1, 2] = True
    padding = torch.zeros(2, 3, dtype=torch.bool)
    padding[1, 2] = True
    seen, none = torch.randn(2, 4, 6), torch.zeros(2, 4, dtype=torch.bool)
    batch = Batch(seen, none, hidden, padding, masked, torch.arange(2), torch.full((2,), -1))
    weights = {"reconstruction_weight": 3.0, "contrastive_weight": 0.0, "temperature": 0.1}
    with torch.no_grad():
        found = pretraining_losses(module, batch, **weights)
        tokens = module.in_proj_mask_embedding(torch.where(masked, module.mask_element, hidden))
        made = module.decode_tokens(module.encode(seen)[:, 0], tokens, padding)[:, 1:]
    masked[1, 2] = False  # no cell
    expected = (made - hidden)[masked].square().mean()
    torch.testing.assert_close(found["reconstruction"], expected)
    torch.testing.assert_close(found["loss"], 3 * expected)


def test_agreement_is_about_donors_and_labels() -> None:
    donor = torch.tensor([0, 1, 2, 0, 1, 2])
    none = torch.full((6,), -1)
    z = torch.eye(3).repeat(2, 1)
    assert agreement_loss(z, donor, none, 0.1) < 1e-3
    assert agreement_loss(z.roll(1, 0), donor.sort().values, none, 0.1) > 1
    label = torch.tensor([5, 5, -1, 5, 5, -1])
    assert agreement_loss(z, donor, label, 0.1) > 1  # donors 0 and 1 belong together, and do not
    z[1] = z[4] = z[0]
    assert agreement_loss(z, donor, label, 0.1) < 1.2  # log 3, three alike
    assert agreement_loss(z[:1], donor[:1], none[:1], 0.1) == 0
    torch.manual_seed(0)
    same = torch.randn(6, 4)
    one = agreement_loss(same, donor, torch.zeros(6).long(), 0.5)
    logits = torch.nn.functional.normalize(same, dim=1)
    logits = (logits @ logits.T / 0.5).masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf)
    expected = -torch.log_softmax(logits, 1)[~torch.eye(6, dtype=torch.bool)].mean()
    torch.testing.assert_close(one, expected)


def test_what_cannot_be_trained_is_refused(adata: ad.AnnData) -> None:
    bare = Pulsar(adata, decoder_layers=0, **SMALL)
    with pytest.raises(ValueError, match="no decoder"):
        bare.train(1)
    one = adata[adata.obs["donor_id"] == "donor0"].copy()
    Pulsar.setup_anndata(one, use_rep="X_uce")
    with pytest.raises(ValueError, match="have 1 donor"):
        Pulsar(one, **SMALL).train(1)


def test_a_label_of_one_donor_is_warned_of(adata: ad.AnnData) -> None:
    adata.obs["disease"] = adata.obs["disease"].astype(str)
    adata.obs.loc[adata.obs["donor_id"] == "donor0", "disease"] = "gout"
    Pulsar.setup_anndata(adata, use_rep="X_uce", labels_key="disease")
    with pytest.warns(UserWarning, match="The label 'gout' is present in one donor only"):
        Pulsar(adata, **SMALL).train(max_steps=1, n_cells=10, **QUIET)
