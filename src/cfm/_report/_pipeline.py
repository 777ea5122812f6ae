"""The main job: counts, contrasts, embedding, virus call, figures, report."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pandas as pd

from cfm import datasets, hub, pp, tl
from cfm._fields import (
    CONTRASTS,
    MAP_GENES,
    MATCHES,
    PARAMS,
    VIRAL,
    VIRUS_KEY,
)
from cfm._report import _explanation as explanation
from cfm._report import _figures as figures
from cfm._report._html import card_excerpt, render, versions
from cfm._report._read import Orientation, read_counts
from cfm._report._summary import agreement, overview, summarize
from cfm._tables import text_is_written
from cfm.models.cellpulse._classifier import MIN_RESPONSE_SUPPORT, MIN_STUDIES, MIN_SUPPORT
from cfm.pl._figure import SIGNIFICANT
from cfm.pl._virus import stored_prediction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from cfm._report._summary import Agreement, Call

logger = logging.getLogger(__name__)

_BASIS = "X_cellpulse"
#: How many unmapped gene names the report lists; the file of contrasts has all.
_LISTED_GENES = 60


@dataclass(frozen=True)
class DemoOptions:
    """What ``cfm demo`` was asked to do; see ``cfm demo --help`` for each field."""

    output: Path
    counts: Path | None = None
    metadata: Path | None = None
    orientation: Orientation = "auto"
    sample_column: str | None = None
    groupby: str = "virus"
    control: str = "none"
    by: tuple[str, ...] = ()
    mode: Literal["replicates", "test"] = "replicates"
    units: Literal["counts", "log"] = "counts"
    sample_key: str | None = None
    organism: Literal["auto", "human", "mouse"] = "auto"
    model: str = "cellpulse-virus"
    embedding_model: str = "cellpulse-mini"


@dataclass(frozen=True)
class DemoResult:
    """What came out: the contrasts with all fields, the calls in words, and the report's path."""

    contrasts: AnnData
    calls: list[Call]
    agreement: Agreement
    report: Path


def run_demo(options: DemoOptions) -> DemoResult:
    """Run the whole chain and write ``report.html``, tables, ``contrasts.h5ad`` and figures.

    Files of the same names in ``options.output`` are replaced.

    Raises
    ------
    OSError
        If the output folder cannot be written to, or an input file does not exist.
    ValueError, KeyError, TypeError
        From the step that refused its input.
    """
    folder = _writable(options.output)
    for model in (options.model, options.embedding_model):
        hub.resolve(model)  # a misspelt name is noticed before the work, not after it
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        counts, source = _counts(options)
        logger.info("%d samples by %d genes read", *counts.shape)
        contrasts = _contrasts(counts, options)
        logger.info("%d contrasts made; embedding and calling them", contrasts.n_obs)
        tl.embed(contrasts, options.embedding_model, key_added=_BASIS)
        tl.predict_virus(contrasts, options.model, key_added=VIRUS_KEY)
        refused = explanation.compute(
            contrasts,
            groupby=options.groupby,
            model=options.model,
            embedding_model=options.embedding_model,
        )
    notes = _own_notes(caught)
    for note in notes:
        logger.warning("warning: %s", note)
    checkpoint = hub.load_checkpoint(options.model)
    calls = summarize(
        contrasts,
        key=VIRUS_KEY,
        groupby=options.groupby,
        training_studies=checkpoint.config.get("classifier_studies"),
    )
    logger.info("drawing figures and writing the report to %s", folder)
    counted = agreement(calls, contrasts.uns[VIRUS_KEY]["classes"])
    with _full_disk_in_words(folder):
        _write_contrasts(contrasts, folder / "contrasts.h5ad")
        _calls_table(contrasts).to_csv(folder / "calls.csv", index_label="contrast")
        contrasts.uns[VIRUS_KEY][MATCHES].to_csv(folder / "matches.csv", index=False)
        pictures = _pictures(contrasts, options, folder, checkpoint.files)
        sections = explanation.write_up(contrasts, refused, folder, groupby=options.groupby)
    page = render(
        {
            "source": source,
            "calls": calls,
            "overview": overview(calls),
            "agreement": counted,
            "rule": {
                "share": MIN_SUPPORT,
                "response_share": MIN_RESPONSE_SUPPORT,
                "n_studies": MIN_STUDIES,
                "fdr": SIGNIFICANT,
            },
            "options": asdict(options),
            "notes": notes,
            "pictures": pictures,
            "sections": sections,
            "checkpoint": checkpoint,
            "card": card_excerpt(checkpoint.card or ""),
            "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "versions": versions(),
            **_how_made(contrasts, sections),
        }
    )
    report = folder / "report.html"
    with _full_disk_in_words(folder):
        report.write_text(page, encoding="utf-8")
    return DemoResult(contrasts, calls, counted, report)


def _counts(options: DemoOptions) -> tuple[AnnData, dict[str, Any]]:
    """Read the input, or take the bundled one; with a description for the report."""
    if options.counts is None:
        adata = datasets.blanco_melo()
        name, digest = "GSE147507, bundled (cfm.datasets.blanco_melo)", ""
    else:
        adata = read_counts(
            options.counts,
            metadata=options.metadata,
            orientation=options.orientation,
            sample_column=options.sample_column,
        )
        name, digest = options.counts.name, _sha256(options.counts)
    citation = adata.uns.get("source", "")
    source = {
        "name": name,
        "sha256": digest,
        "n_samples": adata.n_obs,
        "n_genes": adata.n_vars,
        "citation": citation if isinstance(citation, str) else "",
    }
    return adata, source


def _contrasts(counts: AnnData, options: DemoOptions) -> AnnData:
    """Map genes and subtract controls."""
    merge: Literal["mean", "sum"] = "mean" if options.units == "log" else "sum"
    mapped = cast(
        "AnnData",
        pp.map_genes(counts, organism=options.organism, aggregate=merge, copy=True),
    )
    by = list(options.by)
    contrasts = cast(
        "AnnData",
        pp.contrasts(
            mapped,
            options.groupby,
            _level(mapped, options.groupby, options.control),
            by=by or None,
            mode=options.mode,
            units=options.units,
            sample_key=options.sample_key,
        ),
    )
    contrasts.uns.setdefault(MAP_GENES, mapped.uns[MAP_GENES])
    return contrasts


def _level(adata: AnnData, groupby: str, control: str) -> Any:
    """Give back the level that reads like ``control``: a command line has only text."""
    if groupby not in adata.obs:
        return control
    return {str(level): level for level in adata.obs[groupby].unique()}.get(control, control)


def _pictures(
    contrasts: AnnData, options: DemoOptions, output: Path, files: dict[str, str]
) -> dict[str, Any]:
    folder = output / "figures"
    folder.mkdir(exist_ok=True)
    groupby = options.groupby
    history = files.get("history.csv")
    return {
        "probabilities": figures.draw_probabilities(
            contrasts, folder, key=VIRUS_KEY, truth=groupby
        ),
        "embedding": figures.draw_embedding(
            contrasts, folder, key=VIRUS_KEY, basis=_BASIS, groupby=groupby
        ),
        "genes": list(figures.draw_genes(contrasts, folder)),
        "training": None if history is None else figures.draw_training(history, folder),
    }


def _how_made(contrasts: AnnData, sections: list[explanation.Section]) -> dict[str, Any]:
    """Collect the records that each step left in ``uns``."""
    mapping = contrasts.uns[MAP_GENES]
    made = contrasts.uns[CONTRASTS]
    unmapped = [str(name) for name in mapping["unmapped"]]
    steps = {
        "cfm.pp.map_genes": mapping[PARAMS],
        "cfm.pp.contrasts": made[PARAMS],
        "cfm.tl.embed": contrasts.uns[_BASIS][PARAMS],
        "cfm.tl.predict_virus": contrasts.uns[VIRUS_KEY][PARAMS],
        **{section.step: section.params for section in sections if not section.refused},
    }
    return {
        "steps": steps,
        "prediction": contrasts.uns[VIRUS_KEY][PARAMS],
        "skipped": pd.DataFrame(made["skipped"]).to_dict("records"),
        "mapping": {name: mapping[name] for name in ("n_mapped", "n_unmapped", "n_merged")},
        "unmapped": unmapped[:_LISTED_GENES],
        "n_more_unmapped": max(0, len(unmapped) - _LISTED_GENES),
    }


def _calls_table(contrasts: AnnData) -> pd.DataFrame:
    stored = stored_prediction(contrasts, VIRUS_KEY)
    kinds = stored.response_proba.add_prefix("P(").add_suffix(")")
    viruses = stored.virus_proba.add_prefix("P(").add_suffix(f" | {VIRAL})")
    return pd.concat([contrasts.obs, kinds, viruses], axis=1)


def _own_notes(caught: list[warnings.WarningMessage]) -> list[str]:
    """Keep what this package had to say; other packages' warnings are for developers."""
    here = str(Path(__file__).resolve().parent.parent)
    said = [
        str(w.message)
        for w in caught
        if issubclass(w.category, UserWarning) and str(Path(w.filename).resolve()).startswith(here)
    ]
    return list(dict.fromkeys(said))


def _sha256(path: Path) -> str:
    """Hash a file in pieces, or of a folder (zarr) the names and hashes of its files."""
    if not path.is_dir():
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = (f"{_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return sha256("".join(lines).encode()).hexdigest()


def _write_contrasts(contrasts: AnnData, path: Path) -> None:
    """Write the file in full, or leave what was there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with text_is_written():
            contrasts.write_h5ad(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _full_disk_in_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # h5py puts the number into its text only
        if error.errno != errno.ENOSPC and os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(
            errno.ENOSPC,
            f"the disk is full, and the results could not be written to {folder}; free some "
            "space, or choose another folder with --output.",
        ) from error


def _writable(folder: Path) -> Path:
    """Make the folder and try to write there, before minutes of work are lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to the output folder {folder} ({os.strerror(error.errno or 0)}); "
            "choose another one with --output."
        ) from error
    return folder
