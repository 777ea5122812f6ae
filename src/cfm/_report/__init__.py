"""The main job as one chain, count table to report; the command line calls it."""

from __future__ import annotations

from cfm._report._pipeline import DemoOptions, DemoResult, run_demo

__all__ = ["DemoOptions", "DemoResult", "run_demo"]
