"""The main job as one chain, counts to report; the command line calls it."""

from __future__ import annotations

from cfm._report._demo import run_demo, writable
from cfm._report._tables import calls_table

__all__ = ["calls_table", "run_demo", "writable"]
