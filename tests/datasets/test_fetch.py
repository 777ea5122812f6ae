import errno
import hashlib
import http.server
import os
import threading

import anndata as ad
import numpy as np
import pandas as pd
import pooch
import pytest

from cfm.datasets import _fetch, fetch, list_datasets


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A registry of one study, the folder that has its file, and no settings from outside."""
    folder = tmp_path / "published" / "virus_counts"
    folder.mkdir(parents=True)
    adata = ad.AnnData(
        X=np.arange(6, dtype=np.float32).reshape(2, 3),
        obs=pd.DataFrame({"virus": ["none", "IAV"]}, index=["a", "b"]),
        var=pd.DataFrame(index=["MX1", "ISG15", "ACTB"]),
        uns={"units": "counts"},
    )
    adata.write_h5ad(folder / "small.h5ad")
    content = (folder / "small.h5ad").read_bytes()
    registry = pd.DataFrame(
        {
            "file": ["virus_counts/small.h5ad"],
            "sha256": [hashlib.sha256(content).hexdigest()],
            "bytes": [len(content)],
            "citation": ["Somebody 2020"],
            "licence": ["MIT"],
        },
        index=pd.Index(["small"], name="name"),
    )
    monkeypatch.setattr(_fetch, "_registry", lambda: registry)
    monkeypatch.delenv("CFM_DATA", raising=False)
    monkeypatch.delenv("CFM_DATA_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path


@pytest.fixture
def server(study):
    """Serves the published folder; `log` keeps what was asked, `cut` shortens what is sent."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(study / "published"))

        def do_GET(self):
            running.log.append(self.path)
            if running.wait is not None:
                running.wait.wait(timeout=30)
            path = study / "published" / self.path.lstrip("/")
            if running.cut and path.is_file():
                content = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: running.cut])
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.log, running.cut, running.wait = [], 0, None
    running.url = f"http://127.0.0.1:{running.server_address[1]}"
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def test_downloads_once_and_then_reads_the_cache(study, server):
    adata = fetch("small", base_url=server.url)
    assert adata.X.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert adata.uns["citation"] == "Somebody 2020"
    assert adata.uns["licence"] == "MIT"
    assert server.log == ["/virus_counts/small.h5ad"]
    kept = [path for path in (study / "cache").rglob("*") if path.is_file()]
    assert kept == [study / "cache" / "cfm" / "virus_counts" / "small.h5ad"]
    fetch("small", base_url=server.url)
    fetch("small")  # neither an address nor a connection is needed now
    assert len(server.log) == 1


def test_address_from_the_environment_and_own_cache(study, server, monkeypatch):
    monkeypatch.setenv("CFM_DATA_URL", server.url + "/")
    fetch("small", cache_dir=study / "mine")
    assert (study / "mine" / "virus_counts" / "small.h5ad").is_file()
    assert not (study / "cache").exists()


def test_a_damaged_cache_is_downloaded_again(study, server):
    fetch("small", base_url=server.url)
    cached = study / "cache" / "cfm" / "virus_counts" / "small.h5ad"
    cached.write_bytes(cached.read_bytes()[:100])
    assert fetch("small", base_url=server.url).n_obs == 2
    assert len(server.log) == 2
    cached.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="CFM_DATA_URL"):
        fetch("small")


def test_a_wrong_file_is_refused_and_removed(study, server):
    path = study / "published" / "virus_counts" / "small.h5ad"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match="not the expected file"):
        fetch("small", base_url=server.url)
    assert list((study / "cache").rglob("*.h5ad*")) == []


def test_absent_file_and_absent_server(server):
    with pytest.raises(ConnectionError, match="404"):
        fetch("small", base_url=server.url + "/elsewhere")
    with pytest.raises(ConnectionError, match="could not be downloaded"):
        fetch("small", base_url="http://127.0.0.1:9")


def test_local_folder(study, monkeypatch):
    monkeypatch.setenv("CFM_DATA", str(study / "published"))
    assert fetch("small").n_vars == 3
    assert not (study / "cache").exists()
    path = study / "published" / "virus_counts" / "small.h5ad"
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"SHA-256.*CFM_DATA"):
        fetch("small")


def test_local_folder_without_the_file_falls_back(study, server, monkeypatch):
    monkeypatch.setenv("CFM_DATA", str(study / "empty"))
    assert fetch("small", base_url=server.url).n_obs == 2


def test_without_an_address(study):
    with pytest.raises(ValueError, match=r"base_url=.*CFM_DATA_URL.*CFM_DATA "):
        fetch("small")


@pytest.mark.parametrize("address", ["ftp://x.org", "file:///tmp", "x.org", "/data"])
def test_other_addresses(study, address):
    with pytest.raises(ValueError, match="does not start with"):
        fetch("small", base_url=address)


def test_unknown_name(study):
    with pytest.raises(KeyError, match="Did you mean 'small'"):
        fetch("smal")


def test_the_shipped_list():
    table = list_datasets()
    assert len(table) == 30
    assert table.index.is_unique
    assert table.notna().all().all()
    assert table["sha256"].str.fullmatch(r"[0-9a-f]{64}").all()
    assert table["file"].str.fullmatch(r"virus_counts/[\w.-]+\.h5ad").all()
    assert (table[["study", "organism", "citation", "licence", "units"]] != "").all().all()
    assert (table[["n_obs", "n_vars", "bytes"]] > 0).all().all()
    assert table.loc["GSE147507", ["n_obs", "n_vars"]].tolist() == [20, 23650]
    table.loc["GSE147507", "licence"] = "changed"
    assert list_datasets().loc["GSE147507", "licence"] != "changed"


def test_two_at_once_get_the_same_file(study, server):
    """Of threads, which meet in the same file as processes do."""
    server.wait = threading.Barrier(2)  # both are asked for before either is sent
    found, threads = [], []
    for _ in range(2):
        threads.append(
            threading.Thread(target=lambda: found.append(fetch("small", base_url=server.url)))
        )
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert [adata.n_obs for adata in found] == [2, 2]
    assert len(server.log) == 2
    kept = [path for path in (study / "cache").rglob("*") if path.is_file()]
    assert [path.name for path in kept] == ["small.h5ad"]
    assert kept[0].read_bytes() == (study / "published/virus_counts/small.h5ad").read_bytes()


def test_what_was_cut_leaves_nothing_behind(study, server):
    for cut in (1, 500, 5000):
        server.cut = cut
        with pytest.raises(ConnectionError, match="could not be downloaded"):
            fetch("small", base_url=server.url)
        assert [path for path in (study / "cache").rglob("*") if path.is_file()] == []
    server.cut = 0
    assert fetch("small", base_url=server.url).n_obs == 2


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_cache_that_cannot_be_written(study, server, monkeypatch, number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pooch.core.shutil, "move", fail)
    with pytest.raises(OSError, match=r"could not be written.*cache_dir=.*CFM_DATA") as caught:
        fetch("small", base_url=server.url)
    assert caught.value.errno == number
    monkeypatch.undo()
