"""Memory that is given back when it is freed."""

from __future__ import annotations

import ctypes
import platform


def trim_heap() -> None:
    """Have glibc return to the system what is free; elsewhere do nothing.

    By itself it keeps pieces of its heap between those in use, which add up where a program goes
    through chunks. No setting of the process is changed.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
