"""datasets.gdsc reads the files of DeepCDR."""

from __future__ import annotations

import numpy as np
import pandas as pd

import cfm


def test_files_become_lines_with_responses(tmp_path, monkeypatch) -> None:
    def no_download(*args: object, **kwargs: object) -> None:
        raise AssertionError("the files are there")

    monkeypatch.setattr("requests.get", no_download)
    lines = [f"ACH-00000{i}" for i in range(5)]
    ccle, gdsc = tmp_path / "CCLE", tmp_path / "GDSC"
    ccle.mkdir()
    gdsc.mkdir()
    values = np.arange(8.0).reshape(4, 2)
    expression = pd.DataFrame(values, index=lines[:4], columns=["TP53", "A2M"])
    expression.to_csv(ccle / "genomic_expression_561celllines_697genes_demap_features.csv")
    response = pd.DataFrame(
        [[1.5, np.nan, -2.0], [0.0, 3.0, 1.0]], index=["GDSC:1", "GDSC:1007"], columns=lines[2:]
    )
    response.to_csv(ccle / "GDSC_IC50.csv")
    drugs = pd.DataFrame(
        {
            "drug_id": [1, 3, 1007],
            "Name": ["Erlotinib", "Rapamycin", "Docetaxel"],
            "Synonyms": ["Tarceva", np.nan, np.nan],
            "Targets": ["EGFR", "MTORC1", np.nan],
            "Target pathway": ["EGFR signaling", "PI3K/MTOR signaling", "Mitosis"],
            "PubCHEM": ["176870", "5284616", "148124, 9831652"],
        }
    )
    drugs.to_csv(gdsc / "1.Drug_listMon Jun 24 09_00_55 2019.csv", index=False)
    adata = cfm.datasets.gdsc(tmp_path)
    assert adata.obs_names.tolist() == lines[2:4]
    assert adata.to_df().loc["ACH-000003", "A2M"] == 7
    found = adata.obsm["ln_ic50"]
    assert found.columns.tolist() == ["1", "1007"]
    assert found.loc["ACH-000002", "1"] == 1.5
    assert np.isnan(found.loc["ACH-000003", "1"])
    names = adata.uns["drugs"]
    assert names["name"].to_dict() == {"1": "Erlotinib", "1007": "Docetaxel"}
    assert names.loc["1007", "targets"] == ""
    assert names["pathway"].str.get_dummies().loc[found.columns].shape == (2, 2)
    adata.write_h5ad(tmp_path / "a.h5ad")


def test_missing_files_are_downloaded_from_the_address(tmp_path, monkeypatch) -> None:
    asked = []

    def retrieve(url: str, known_hash: None, fname: str, path: object) -> None:
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr("cfm.datasets._gdsc.pooch.retrieve", retrieve)
    try:
        cfm.datasets.gdsc(tmp_path)
    except OSError as error:
        assert "no network" in str(error)
    assert len(asked) == 1
    assert "/DeepCDR/master/data/CCLE/" in asked[0]
