"""``show=`` and ``save=`` mean the same in every plot."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.pl._figure import SAVE_DPI, label_points
from tests.pl._drawn import outside
from tests.pl._explained import with_drug_screen, with_gene_programs, with_host_factors

HISTORY = pd.DataFrame({"train_loss": np.arange(3.0), "validation_loss": np.arange(3.0)})
PLOTS = {
    "virus_probabilities": lambda adata, **kw: cfm.pl.virus_probabilities(adata, **kw),
    "embedding": lambda adata, **kw: cfm.pl.embedding(adata, color="virus", **kw),
    "top_genes": lambda adata, **kw: cfm.pl.top_genes(adata, 0, **kw),
    "training": lambda adata, **kw: cfm.pl.training(HISTORY, **kw),
    "host_factors": lambda adata, **kw: cfm.pl.host_factors(with_host_factors(), **kw),
    "enrichment": lambda adata, **kw: cfm.pl.host_factor_enrichment(
        with_host_factors(), ["GENE1", "GENE5"], n_permutations=20, **kw
    ),
    "heatmap": lambda adata, **kw: cfm.pl.gene_programs(with_gene_programs(), **kw),
    "network": lambda adata, **kw: cfm.pl.gene_programs(with_gene_programs(), kind="network", **kw),
    "bars": lambda adata, **kw: cfm.pl.drug_screen(with_drug_screen(9), **kw),
    "waterfall": lambda adata, **kw: cfm.pl.drug_screen(with_drug_screen(), **kw),
    "scatter": lambda adata, **kw: cfm.pl.drug_screen(with_drug_screen(), kind="scatter", **kw),
}


@pytest.fixture(params=list(PLOTS))
def plot(request, predicted):
    adata = predicted(6)
    return lambda **kw: PLOTS[request.param](adata, **kw)


@pytest.fixture
def shows(monkeypatch) -> list[int]:
    """Figures that were open each time ``plt.show`` was called."""
    calls: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(len(plt.get_fignums())))
    return calls


def test_show_true_shows_the_open_figure(plot, shows):
    plot(show=True)
    assert shows == [1]


def test_default_without_a_screen_keeps_the_figure_for_pyplot(plot, shows, recwarn):
    ax = plot()
    assert shows == []
    assert plt.gcf() is ax.figure
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_default_with_a_screen_shows(plot, shows, monkeypatch):
    monkeypatch.setattr(mpl, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    plot()
    assert shows == [1]


def test_the_callers_figure_is_shown_only_when_asked(plot, shows, monkeypatch):
    monkeypatch.setattr(mpl, "get_backend", lambda: "TkAgg")
    ax = plt.figure().add_subplot()
    plot(ax=ax)
    assert shows == []
    plot(ax=ax, show=True)
    assert shows == [1]


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_save_goes_where_it_is_told(plot, tmp_path, suffix):
    path = tmp_path / f"figure.{suffix}"
    plot(save=path, show=False)
    assert path.stat().st_size > 1000
    assert plt.get_fignums() == []


def test_no_setting_of_matplotlib_changes(plot):
    before = dict(mpl.rcParams)
    plot(show=False)
    assert dict(mpl.rcParams) == before


def test_subfigures_work(plot):
    figure = plt.figure(figsize=(10, 5))
    ax = figure.subfigures(1, 2)[1].add_subplot()
    assert plot(ax=ax, show=False) is ax
    assert plt.fignum_exists(figure.number)


def test_axes_without_a_figure_are_refused(predicted):
    ax = plt.figure().add_subplot()
    ax.remove()
    with pytest.raises(ValueError, match="removed from its figure"):
        cfm.pl.virus_probabilities(predicted(3), ax=ax, show=False)


@pytest.mark.parametrize("save", [True, 3])
def test_save_must_be_a_file_name(predicted, save):
    with pytest.raises(TypeError, match=r"is no file name; pass one, such as 'figure\.png'"):
        cfm.pl.virus_probabilities(predicted(4), save=save, show=False)
    assert not plt.get_fignums()


def test_names_of_points_stay_inside_at_the_resolution_of_saved_pictures():
    """Letters are whole pixels, so that a text is wider at some resolutions."""
    figure = plt.figure(figsize=(4, 3), dpi=100)
    ax = figure.add_axes((0, 0, 0.9, 1), xlim=(0, 360), ylim=(0, 300))
    name = "Series3|RSV_vs_none"
    width = figure.text(0, 0, name, fontsize=7.5).get_window_extent().width
    start = 360 - width - 6 * 100 / 72 - 1
    label_points(ax, np.array([[start, 150.0]]), [name])
    figure.dpi = SAVE_DPI
    assert [text.get_text() for text in ax.texts] == [name]
    assert outside(ax.texts, ax.get_window_extent()) == []
    plt.close(figure)
