"""Memory that was freed goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from cfm.data import _result_store

_SCRIPT = """
import numpy as np
from cfm.data._result_store import trim_heap
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
pieces = [np.ones(8_000) for _ in range(2_000)]  # 128 MB, each too small to be mapped on its own
kept = pieces[-1]
del pieces  # what is kept lies above what is free
before = resident()
trim_heap()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_what_is_free_is_returned() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) > 50e6


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_result_store.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(_result_store, "ctypes", None)
    _result_store.trim_heap()
