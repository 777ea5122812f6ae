"""``ax=``, ``show=`` and ``save=`` mean the same in every plot; files are drawn as memory is."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from cfm.pl._figure import SAVE_DPI, category_styles, label_points, pick, push_apart
from tests.pl._drawn import outside
from tests.pl._plots import DATA, KINDS, digest, draw

pytestmark = pytest.mark.filterwarnings("ignore:The library has:UserWarning")
#: UMAP takes seconds a call.
QUICK = sorted(set(KINDS) - {"perturbation_umap"})


@pytest.fixture(scope="module", params=QUICK)
def plot(request):
    """A plot of data that are made once."""
    data = DATA[KINDS[request.param][0]]()
    return lambda **given: draw(request.param, data, **given)


@pytest.fixture
def shows(monkeypatch) -> list[int]:
    """Figures that were open each time ``plt.show`` was called."""
    calls: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(len(plt.get_fignums())))
    return calls


def test_a_figure_of_ours_is_shown_saved_and_closed(plot, shows, tmp_path, monkeypatch, recwarn):
    before = dict(mpl.rcParams)
    drawn = plot(save=tmp_path / "a.png")
    assert plt.gcf() is drawn.figure  # no screen: kept for pyplot
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert shows == []
    plt.close("all")
    plot(show=False)
    assert plt.get_fignums() == []
    monkeypatch.setattr(mpl, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    plot()
    assert shows == [1]
    assert dict(mpl.rcParams) == before


def test_the_callers_axes_are_drawn_on_and_left_open(plot, shows, monkeypatch):
    monkeypatch.setattr(mpl, "get_backend", lambda: "TkAgg")
    figure = plt.figure(figsize=(10, 5))
    left, right = (part.add_subplot() for part in figure.subfigures(1, 2))
    assert plot(ax=right) is right
    assert not left.has_data()
    assert shows == []
    assert plot(ax=right, show=True) is right
    assert shows == [1]
    assert plt.fignum_exists(figure.number)
    assert figure.get_size_inches().tolist() == [10, 5]


@pytest.mark.parametrize("name", sorted(set(QUICK) - {"training", "perturbation_metrics"}))
def test_files_are_drawn_as_memory_is(name: str, tmp_path: Path) -> None:
    first, *rest = DATA[KINDS[name][0]]()
    before = digest(draw(name, (first, *rest), show=False))
    first.write_h5ad(tmp_path / "a.h5ad")
    first.write_zarr(tmp_path / "a.zarr")
    for stored in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        assert digest(draw(name, (stored, *rest), show=False)) == before


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_the_suffix_sets_the_format(tmp_path, suffix):
    path = tmp_path / f"figure.{suffix}"
    draw("top_genes", save=path, show=False)
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(start)


def test_axes_without_a_figure_are_refused():
    ax = plt.figure().add_subplot()
    ax.remove()
    with pytest.raises(ValueError, match="removed from its figure"):
        draw("virus_probabilities", ax=ax, show=False)


@pytest.mark.parametrize("save", [True, 3])
def test_save_must_be_a_file_name(save):
    with pytest.raises(TypeError, match=r"is no file name; pass one, such as 'figure\.png'"):
        draw("virus_probabilities", save=save, show=False)
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("name", "many"),
    [
        ("drug_screen", {"group": None}),
        ("host_factors", {"group": None}),
        ("host_factor_enrichment", {"group": None}),
        ("embedding", {"color": ["virus", "GENE1"]}),
        ("probe", {"metric": ["auroc", "balanced_accuracy"]}),
        ("training", {"metric": ["loss", "size"]}),
        ("perturbation_effect", {"perturbation": None}),
        ("perturbation_metrics", {"metric": None}),
    ],
)
def test_several_panels_are_a_dict_and_fit_no_single_axes(name, many):
    assert len(draw(name, show=False, **many)) > 1
    with pytest.raises(ValueError, match="ax= takes one panel, but there are"):
        draw(name, ax=plt.figure().add_subplot(), show=False, **many)


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


def test_points_are_moved_apart_inside_their_frame():
    start = 1e-2 * np.random.default_rng(0).normal(size=(6, 2))
    moved = push_apart(start, 0.4, lambda points: points.clip(-1, 1), steps=500)
    distance = np.hypot(*(moved[:, None] - moved[None]).transpose(2, 0, 1))
    assert (distance[~np.eye(6, dtype=bool)] > 0.39).all()
    assert np.abs(moved).max() <= 1


def test_names_are_picked():
    assert pick("group", None, ["a", "b"], "here") == ["a", "b"]
    assert pick("group", "b", ["a", "b"], "here") == ["b"]
    assert pick("group", ["b", "a", "b"], ["a", "b"], "here") == ["b", "a"]
    with pytest.raises(KeyError, match="group 'c' is not in here; expected one of a, b"):
        pick("group", ["a", "c"], ["a", "b"], "here")
    with pytest.raises(ValueError, match="group is an empty list"):
        pick("group", [], ["a", "b"], "here")


def test_answers_that_name_no_virus_do_not_change_the_looks_of_viruses():
    answers = ["uninfected", "unresolved", "not viral"]
    styles = category_styles(["IAV", *answers, "RSV"])
    assert len(set(styles.values())) == 5
    assert {name: styles[name] for name in ("IAV", "RSV")} == category_styles(["IAV", "RSV"])
