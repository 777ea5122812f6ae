"""``cfm.pl.training`` finds the curves of a history whatever way it is handed over."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import cfm

EPOCHS = pd.RangeIndex(6, name="epoch")
TRAIN = np.linspace(2.0, 1.0, 6)
VALIDATION = np.linspace(2.2, 1.4, 6)


@pytest.fixture
def history() -> dict[str, pd.DataFrame]:
    return {
        "train_loss_step": pd.DataFrame({"train_loss_step": np.zeros(60)}),
        "train_loss_epoch": pd.DataFrame({"train_loss_epoch": TRAIN}, index=EPOCHS),
        "validation_loss": pd.DataFrame({"validation_loss": VALIDATION}, index=EPOCHS),
        "magnitude_train": pd.DataFrame({"magnitude_train": TRAIN / 2}, index=EPOCHS),
    }


def curves(ax) -> dict[str, np.ndarray]:
    return {line.get_label().split()[0]: line.get_ydata() for line in ax.get_lines()}


def test_model_history_and_frame_draw_the_same(history):
    frame = pd.DataFrame({"train_loss": TRAIN, "val_loss": VALIDATION}, index=EPOCHS)
    for source in (SimpleNamespace(history=history), history, frame):
        ax = cfm.pl.training(source, show=False)
        drawn = curves(ax)
        np.testing.assert_allclose(drawn["train"], TRAIN)
        np.testing.assert_allclose(drawn["validation"], VALIDATION)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")


def test_curves_differ_in_more_than_colour(history):
    train, validation = cfm.pl.training(history, show=False).get_lines()
    assert train.get_linestyle() != validation.get_linestyle()
    assert train.get_marker() != validation.get_marker()


def test_a_curve_that_does_not_say_on_what_it_was_measured_is_not_called_training(history):
    history |= {"n_live_codes": pd.DataFrame({"n_live_codes": TRAIN}, index=EPOCHS)}
    (line,) = cfm.pl.training(history, metric="n_live_codes", show=False).get_lines()
    assert line.get_label() == "n live codes (last 1)"


def test_several_metrics(history):
    axes = cfm.pl.training(history, metric=["loss", "magnitude"], log=True, show=False)
    assert list(axes) == ["loss", "magnitude"]
    assert axes["magnitude"].get_yscale() == "log"
    assert plt.get_fignums() == []


def test_one_epoch(history):
    ax = cfm.pl.training({"validation_loss": history["validation_loss"].iloc[:1]}, show=False)
    assert ax.get_xlim() == (-1, 1)
