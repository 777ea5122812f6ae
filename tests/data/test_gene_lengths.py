"""The shipped table of gene lengths."""

import numpy as np
import pytest

from cfm.data._genes import gene_lengths


def test_same_gene_under_every_name():
    found = gene_lengths(["PRDM16", "prdm16", "ENSG00000142611", "ENSG00000142611.17"])
    assert found.tolist() == [9767.0] * 4


def test_unknown_names_have_no_length():
    assert np.isnan(gene_lengths(["", None, "no such gene", "ENSG09999999999", np.nan])).all()


def test_symbol_of_another_gene_than_its_id_maps_to():
    # the id of this transcript leads to another symbol in the table of identifiers
    assert gene_lengths(["JUN-DT"]).tolist() == [21091.0]


def test_a_single_text_is_no_list():
    with pytest.raises(TypeError, match="single string"):
        gene_lengths("ISG15")
