"""Which samples of the count files are compared with which.

Follows the caveats in the README of the data folder, and agrees with the manifest of the published
signatures on what counts as usable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CountStudy:
    """How the contrasts of one file are made.

    Attributes
    ----------
    file
        Name below ``virus_counts`` or ``stimuli``, without ``.h5ad``.
    by
        Columns of ``obs`` that cases and controls must share.
    split
        Columns that split the cases only: each value is a contrast with the same controls.
    pair
        Column within whose values (donors) cases are compared with controls; the differences are
        then averaged over it.
    keep
        Query on ``obs``: samples to use.
    unusable
        Query on ``obs``: contrasts of these cases are flagged as not usable.
    null_by
        Columns that samples of a null contrast must share; ``by`` unless given.
    nulls
        Whether to make null contrasts.
    scale
        What ``X`` holds: ``"counts"``, ``"log"`` (log2) or ``"linear"`` (log2(x + 1) is taken).
    host
        Host as in the manifest.
    organism
        For :func:`cfm.pp.map_genes`.
    agent
        Column of ``obs`` with what was given; ``"none"`` for controls.
    """

    file: str
    by: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    pair: str = ""
    keep: str = ""
    unusable: str = ""
    null_by: tuple[str, ...] | None = None
    nulls: bool = True
    scale: Literal["counts", "log", "linear"] = "counts"
    host: str = "human"
    organism: Literal["human", "mouse"] = "human"
    agent: Literal["virus", "stimulus"] = "virus"

    @property
    def folder(self) -> str:
        """Where the file is."""
        return "virus_counts" if self.agent == "virus" else "stimuli"


_VACV = {"split": ("time_h",), "unusable": "time_h < 2"}  # control = 0 h
_MOUSE = {"host": "mouse", "organism": "mouse"}

COUNT_STUDIES = (
    CountStudy("Bezemer2025_DENV_ZIKV", by=("tissue",), split=("strain",)),
    CountStudy("CHIKV_mouse_SRR68086", by=("tissue",), split=("time_h",), **_MOUSE),
    # One control library per time: null contrasts are between times.
    CountStudy("GSE110496_pseudobulk", by=("time_h",), null_by=()),
    CountStudy(
        "GSE118305_FPKM",
        split=("condition", "time_h"),
        pair="donor",
        unusable="condition == 'bystander'",  # exposed, not infected
        scale="linear",
    ),
    CountStudy(
        "GSE119117",
        split=("stage",),
        pair="donor",
        keep="condition in ('control', 'infected')",
    ),
    CountStudy("GSE144538", split=("time_h",), pair="donor"),
    CountStudy("GSE146423"),
    CountStudy("GSE147507", by=("series",)),
    CountStudy("GSE147507_lung"),
    CountStudy(
        "GSE147507_top5000_log",
        by=("series",),
        keep="series in ('Series5', 'Series7', 'Series8', 'Series9')",  # the others are above
        scale="log",
    ),
    CountStudy("GSE147507_ferret", by=("tissue", "time_h"), host="ferret"),
    CountStudy("GSE148729", by=("time_h",), keep="time_h != 12", unusable="time_h == 4"),
    # No 12 h mock: the mocks of 4 h and 24 h serve; their null contrasts are made above.
    CountStudy("GSE148729", keep="time_h == 12 or treatment == 'mock'", nulls=False),
    CountStudy("GSE155974", split=("time_h",)),
    CountStudy("GSE176480"),
    CountStudy(
        "GSE30550_h3n2_challenge",
        split=("time_h",),
        pair="donor",
        keep="clear_label",  # 0 h, or symptomatic and at least 45 h
        scale="log",
    ),
    # cord blood was not infected; donors of maternal blood are not paired
    CountStudy("GSE185557", keep="tissue == 'maternal blood'"),
    CountStudy("GSE96870_cerebellum", split=("time_h",), unusable="time_h > 0", **_MOUSE),
    CountStudy("HSV2_vaginal_explant", pair="donor", scale="log"),
    CountStudy(
        "HofbauerCells",
        by=("tissue",),
        pair="batch",  # batches differ more than infections do
        unusable="tissue == 'Hofbauer eg' and virus == 'HCMV'",
        null_by=("tissue", "batch"),
    ),
    CountStudy("Jia2020_balf"),
    CountStudy("KSHV_ORF11", split=("strain",), unusable="virus == 'KSHV'"),
    CountStudy("NiV_AGM", by=("tissue",), split=("time_h",), host="AGM"),
    CountStudy("NinaKim_IAV_mouse", by=("time_h",), pair="donor", **_MOUSE),  # donor = sex
    CountStudy(
        "P259_pDC_hrv",
        by=("experiment",),
        pair="donor",
        keep="treatment == 'none' and not low_depth",
    ),
    CountStudy("Parry2025_mcmv_mouse", split=("strain",), scale="log", **_MOUSE),
    CountStudy("REbola_USA", split=("time_h",), pair="donor"),
    CountStudy("RenHIV", by=("start_population",)),
    CountStudy("Singh2022_denv_zikv"),
    CountStudy("VACV_filone", **_VACV),
    CountStudy("VACV_yang_a", **_VACV),
    CountStudy("VACV_yang_b", **_VACV),
    CountStudy("ZIKV_mouse_brain_SRR5136882", **_MOUSE),
)

#: Cytokines, bacteria and other stimuli.
STIMULUS_STUDIES = (
    CountStudy("Alasoo2018_macrophage", pair="donor", agent="stimulus"),
    CountStudy("Boulant_T84_IL22_IFNL", by=("time_h",), agent="stimulus"),
    CountStudy("Campo_AM_MDM_Mtb", by=("tissue",), pair="donor", agent="stimulus"),
    CountStudy("Campo_MDM_IFN", pair="donor", agent="stimulus"),
    CountStudy("GSE120844_IFNg", by=("drug",), scale="linear", agent="stimulus"),
    CountStudy(
        "Griss2019_Bcell_melanoma_medium", by=("cell_type",), pair="donor", agent="stimulus"
    ),
    CountStudy("Jankowski_HPPT_IFN", agent="stimulus"),
    CountStudy("SAEC_IFN_Lee", agent="stimulus"),
)

#: Names of a virus that are not the label of the class.
VIRUS_NAMES = {"IAVdNS1": "IAV"}
