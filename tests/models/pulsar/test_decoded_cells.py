"""Cells under a condition: the change of their donor, through the decoder."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import cfm
from cfm.models import Pulsar, VirtualInstrument
from tests._pulsar import GOLDEN, donors

TINY = GOLDEN / "PULSAR-tiny"
TABLE = pd.DataFrame(np.eye(2, 4), index=["IFNB1", "IL6"])


@pytest.fixture(scope="module")
def encoder() -> Pulsar:
    return Pulsar.from_pretrained(TINY)


@pytest.fixture(scope="module")
def instrument(encoder: Pulsar) -> VirtualInstrument:
    return VirtualInstrument(conditions=TABLE, donor_dim=encoder.size.dim, hidden_dim=8)


@pytest.fixture
def cells() -> ad.AnnData:
    found = donors((12, 5, 9))
    return ad.AnnData(found.obsm["X_uce"], obs=found.obs)


def under(cells: ad.AnnData, model: VirtualInstrument, what: str, **options: object) -> np.ndarray:
    made = cfm.tl.simulate_perturbation(cells, what, model=model, groupby="donor_id", **options)
    return made[[f"{name}-{what}" for name in cells.obs_names]].X


def test_cells_move_by_what_the_decoder_makes_of_the_change(
    cells: ad.AnnData, instrument: VirtualInstrument, encoder: Pulsar
) -> None:
    made = under(cells, instrument, "IL6", encoder=encoder)
    rows = np.flatnonzero(cells.obs["donor_id"] == "donor1")
    with torch.no_grad():
        encoded = encoder.module.encode(torch.from_numpy(cells.X[rows])[None])
        cls, tokens = encoded[:, 0], encoded[:, 1:]
        moved = torch.from_numpy(instrument.predict(cls.numpy(), "IL6"))
        change = encoder.module.decode(moved, tokens) - encoder.module.decode(cls, tokens)
    expected = cells.X[rows] + change[0, 1:].numpy()
    np.testing.assert_allclose(made[rows], expected, atol=1e-5)
    assert np.abs(made - cells.X).max() > 1e-3


def test_a_decoder_of_hidden_elements_reads_cells_so(cells: ad.AnnData) -> None:
    """Each element is shown in one of seven parts; the mean of the changes is taken."""
    ours = Pulsar(input_dim=cells.n_vars, standardised=True, masked_input=True, seed=1)
    module = ours.module.eval()
    torch.nn.init.normal_(module.mask_element)
    module.input_scale.fill_(2.0)
    moved = VirtualInstrument(conditions=TABLE, donor_dim=ours.size.dim, hidden_dim=8)
    made = under(cells, moved, "IL6", encoder=ours)
    rows = np.flatnonzero(cells.obs["donor_id"] == "donor0")
    own = torch.from_numpy(cells.X[rows])[None]
    expected = own.clone()
    with torch.no_grad():
        cls = module.encode(own)[:, 0]
        after = torch.from_numpy(moved.predict(cls.numpy(), "IL6"))
        for k in range(7):
            shown = module.mask_element.expand_as(own).clone()
            shown[..., k::7] = own[..., k::7] / 2.0
            tokens = module.in_proj_mask_embedding(shown)
            change = module.decode(after, tokens) - module.decode(cls, tokens)
            expected += change[:, 1:] / 7
    np.testing.assert_allclose(made[rows], expected[0], atol=1e-4)


def test_a_donor_does_not_depend_on_others_or_on_the_order(
    cells: ad.AnnData, instrument: VirtualInstrument, encoder: Pulsar
) -> None:
    made = under(cells, instrument, "IFNB1", encoder=encoder)
    turned = under(cells[::-1].copy(), instrument, "IFNB1", encoder=TINY)[::-1]
    np.testing.assert_allclose(made, turned, atol=1e-5)
    rows = np.flatnonzero(cells.obs["donor_id"] == "donor2")
    alone = under(cells[rows].copy(), instrument, "IFNB1", encoder=encoder)
    np.testing.assert_allclose(made[rows], alone, atol=1e-5)


def test_what_does_not_fit_is_refused(
    cells: ad.AnnData, instrument: VirtualInstrument, encoder: Pulsar
) -> None:
    with pytest.raises(TypeError, match="expected a Pulsar"):
        instrument.simulate(cells, ["IL6"], groupby="donor_id", encoder=instrument)
    with pytest.raises(ValueError, match="groupby= must name"):
        instrument.simulate(cells, ["IL6"], encoder=encoder)
    with pytest.raises(ValueError, match="X has 10 columns"):
        instrument.simulate(cells[:, :10].copy(), ["IL6"], groupby="donor_id", encoder=encoder)
    with pytest.raises(KeyError, match="TNF"):
        instrument.simulate(cells, ["TNF"], groupby="donor_id", encoder=encoder)
    cells.X[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        instrument.simulate(cells, ["IL6"], groupby="donor_id", encoder=encoder)
