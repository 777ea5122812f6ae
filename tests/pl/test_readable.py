"""No text of a figure is cut off or covers another, whatever the numbers and the names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from anndata import AnnData

import cfm
from tests.pl._drawn import unreadable
from tests.pl._stored import (
    TYPES,
    make_predicted,
    make_scores,
    make_searched,
    with_cell_codes,
    with_drug_screen,
    with_gene_programs,
    with_host_factors,
)

pytestmark = pytest.mark.filterwarnings("ignore:The library has:UserWarning")

LONG_COMPOUND = "(2R)-a very long name of a compound hydrochloride {}"
LONG_GENE = "ENSG_a_very_long_name_of_a_gene_{}"
LONG_DONOR = "placental macrophages|early gestation|donor {i:03d}|{virus}_vs_mock"
MANY = [f"type {i}" for i in range(34)]
SCATTER, NETWORK = {"kind": "scatter"}, {"kind": "network"}
CODES = [
    partial(with_cell_codes, n, cells, types)
    for n, cells, types in [(1, 30, TYPES), (5, 400, TYPES), (60, 900, MANY), (150, 900, TYPES)]
]
#: The plot, its data and further arguments.
FIGURES: list[tuple[str, Callable[[], AnnData], dict[str, Any]]] = [
    *(
        ("cell_codes", make, {"kind": k})
        for k in ("composition", "markers", "map")
        for make in CODES
    ),
    *(
        ("drug_screen", partial(with_drug_screen, n, tied=tied, null=not tied, name=name), {})
        for n in (2, 31, 1300)
        for tied in (False, True)
        for name in ("c{}", LONG_COMPOUND)
    ),
    *(
        ("drug_screen", partial(with_drug_screen, n, name=name), SCATTER)
        for n in (2, 25, 1300)
        for name in ("c{}", LONG_COMPOUND)
    ),
    *(
        ("gene_programs", partial(with_gene_programs, *sizes, name=name), {"groupby": "virus"})
        for sizes, name in [
            (((2,), 1), "GENE{}"),
            (((30, 12, 4, 2, 2), 20), "a_long_gene_name_{}"),
            (((20,) * 15, 60), "GENE{}"),
            (((6, 5), 300), "G{}"),
        ]
    ),
    *(
        ("gene_programs", partial(with_gene_programs, sizes, name=name), NETWORK)
        for sizes, name in [
            ((2,), "GENE{}"),
            ((120, 80, 60, 40), "GENE{}"),
            ((20,) * 15, "GENE{}"),
            ((30, 12, 4, 2), "a_long_gene_name_{}"),
        ]
    ),
    *(
        (
            "host_factors",
            partial(with_host_factors, n, tied=tied, seed=n, name=name),
            {"n_genes": 60},
        )
        for n in (1, 2, 60)
        for tied in (False, True)
        for name in ("G{}", LONG_GENE)
    ),
    *(
        ("virus_probabilities", partial(make_predicted, n, k, LONG_DONOR), {"truth": "virus"})
        for n, k in [(1, 1), (2, 20), (80, 20)]
    ),
    ("embedding", partial(make_predicted, 15, name=LONG_DONOR), {"label": True}),
    *(("signature_search", make_searched, {"n_matches": n}) for n in (1, 50)),
    ("perturbation_metrics", partial(make_scores, [f"type {i}" for i in range(8)]), {}),
    (
        "host_factor_enrichment",
        partial(with_host_factors, 400),
        {
            "reference": {f"a long name of a screen, hour {i}": [f"GENE{i}"] for i in range(6)},
            "n_permutations": 20,
        },
    ),
]


@pytest.mark.parametrize(("plot", "make", "arguments"), FIGURES)
def test_no_text_is_clipped_or_covered(
    plot: str, make: Callable[[], AnnData], arguments: dict[str, Any]
) -> None:
    drawn = getattr(cfm.pl, plot)(make(), show=False, **arguments)
    ax = next(iter(drawn.values())) if isinstance(drawn, dict) else drawn
    assert unreadable(ax.figure) == []
