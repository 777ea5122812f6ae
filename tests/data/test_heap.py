"""Large blocks that are freed go back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_SCRIPT = """
import numpy as np
from cfm.data._heap import return_large_blocks
{set}
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
np.ones(3_000_000)  # 24 MB: freed, it raises the threshold of glibc
np.ones(3_000_000)
before = resident()
kept = []
for _ in range(20):
    large = np.ones(2_500_000)
    kept.append(np.ones(8_000))  # lies above the large one, which leaves a hole
    del large
for size in range(20):
    np.ones(2_500_000 + 20_000 * size)
print(return_large_blocks.cache_info().currsize, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_what_is_freed_is_returned() -> None:
    script = _SCRIPT.format(set="assert return_large_blocks()")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout.split()[1]) < 10e6


def test_a_setting_of_the_user_stays() -> None:
    script = _SCRIPT.format(set="assert not return_large_blocks()")
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"MALLOC_MMAP_THRESHOLD_": "1048576"},
    )
    assert done.returncode == 0, done.stderr
