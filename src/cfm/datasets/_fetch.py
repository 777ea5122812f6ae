"""Public studies that are downloaded once, and the list of them."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Hashable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd
import pooch
import requests

from cfm._arguments import checks_arguments

# A folder that has the files already, laid out as in the column `file` of list_datasets().
FOLDER_VARIABLE = "CFM_DATA"
# An address below which the same layout is served.
URL_VARIABLE = "CFM_DATA_URL"


def list_datasets() -> pd.DataFrame:
    """Public infection studies that :func:`fetch` downloads.

    Returns
    -------
    pandas.DataFrame
        One row per file, index `name`: ``study`` (files of one study stay on one side of any
        split), ``organism``, ``viruses`` (samples of each), ``n_obs``, ``n_vars``, ``units``,
        ``description``, ``caveat``, ``accession``, ``citation``, ``origin`` (repository that the
        table was taken from), ``licence`` (of that repository), ``file``, ``bytes``, ``sha256``.
        Unknown entries are empty.

    Examples
    --------
    >>> import cfm
    >>> studies = cfm.datasets.list_datasets()
    >>> studies.columns[:3].tolist()
    ['study', 'organism', 'viruses']
    """
    return _registry().copy()


@checks_arguments()
def fetch(
    name: str,
    *,
    base_url: str | None = None,
    cache_dir: str | Path | None = None,
    progress_bar: bool = False,
) -> ad.AnnData:
    """Load a public infection study, downloading it once and checking it every time.

    The files are uniform versions of public tables (see :func:`list_datasets` for accession,
    citation and licence). They are taken from the first of these that has them: the folder that
    the environment variable ``CFM_DATA`` names, the cache, the address `base_url`, the address in
    the environment variable ``CFM_DATA_URL``. No address is built in, because the files are not
    published in one place.

    Parameters
    ----------
    name
        Name from :func:`list_datasets`.
    base_url
        Address (http or https) below which ``virus_counts/<name>.h5ad`` is served.
    cache_dir
        Where downloads are kept; the user's cache folder, ``pooch.os_cache("cfm")``, if None.
    progress_bar
        Show the progress of a download.

    Returns
    -------
    anndata.AnnData
        Samples × genes, `X` in ``adata.uns["units"]`` (mostly raw counts, CSR float32).
        `adata.obs` has ``study``, ``sample``, ``virus`` ("none" for controls), ``condition``,
        ``tissue``, ``time_h`` and ``donor``; `adata.uns` also ``source``, ``organism``, and the
        ``citation``, ``licence`` and ``sha256`` of the registry.

    Raises
    ------
    KeyError
        If there is no study of that name.
    ValueError
        If the file is in none of those places and no address is given, if an address is
        malformed, or if a file differs from its recorded SHA-256 (a download that does is
        removed).
    ConnectionError
        If the address cannot be reached, does not have the file, or cuts the transfer short.
    OSError
        If the cache cannot be written.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.fetch(
    ...     "GSE147507", base_url="https://data.example.org"
    ... )  # doctest: +SKIP
    """
    registry = _registry()
    if name not in registry.index:
        close = difflib.get_close_matches(str(name), registry.index, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise KeyError(
            f"There is no dataset {name!r}.{hint} See cfm.datasets.list_datasets() for the "
            f"{len(registry)} names."
        )
    entry = registry.to_dict(orient="index")[name]
    path = _local(entry["file"], entry["sha256"])
    if path is None:
        path = _cached(entry, base_url, cache_dir, progress_bar)
    adata = ad.read_h5ad(path)
    for key in ("citation", "licence", "sha256"):
        adata.uns[key] = str(entry[key])
    return adata


@cache
def _registry() -> pd.DataFrame:
    with (files("cfm.datasets") / "files" / "registry.csv").open("rb") as file:
        return pd.read_csv(file, index_col="name", keep_default_na=False)


def _local(file: str, sha256: str) -> Path | None:
    """The file in the folder that CFM_DATA names, verified; None if it is not there."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    path = Path(folder).expanduser() / file
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} has SHA-256 {found}, expected {sha256}; the file is damaged or another "
            f"version: replace it, or unset {FOLDER_VARIABLE} to download it."
        )
    return path


def _cached(
    entry: dict[Hashable, Any],
    base_url: str | None,
    cache_dir: str | Path | None,
    progress_bar: bool,
) -> Path:
    folder = Path(cache_dir) if cache_dir is not None else Path(pooch.os_cache("cfm"))
    path = folder.expanduser() / str(entry["file"])
    known_hash = f"sha256:{entry['sha256']}"
    if path.is_file() and pooch.hashes.hash_matches(path, known_hash):
        return path
    address = base_url if base_url is not None else os.environ.get(URL_VARIABLE, "")
    if not address:
        raise ValueError(
            f"{entry['file']} is not on this machine and no address to download it from is known; "
            f"pass base_url=, or set the environment variable {URL_VARIABLE} to an address or "
            f"{FOLDER_VARIABLE} to a folder that has {entry['file']}."
        )
    if not address.startswith(("https://", "http://")):
        raise ValueError(
            f"The address {address!r} does not start with https:// or http://; for files on this "
            f"machine set the environment variable {FOLDER_VARIABLE} to their folder."
        )
    url = f"{address.rstrip('/')}/{entry['file']}"
    try:
        # pooch writes to a temporary name, compares the hash, and only then moves the file.
        pooch.retrieve(
            url,
            known_hash=known_hash,
            fname=path.name,
            path=path.parent,
            downloader=pooch.HTTPDownloader(progressbar=progress_bar, timeout=30),
        )
    except requests.RequestException as error:
        raise ConnectionError(
            f"{url} could not be downloaded ({type(error).__name__}: {error}); check the address "
            "and the connection, then try again."
        ) from error
    except OSError as error:  # after the errors of requests, which are of this class
        raise OSError(
            error.errno,
            f"{entry['file']} could not be written to {path.parent} ({error}); make room there, "
            "pass cache_dir=, or set the environment variable "
            f"{FOLDER_VARIABLE} to a folder that has the file",
        ) from error
    except ValueError as error:
        raise ValueError(
            f"What {url} gives is not the expected file (its SHA-256 is not {entry['sha256']}); it "
            "was removed. The transfer was cut short, or that address serves another version."
        ) from error
    return path
