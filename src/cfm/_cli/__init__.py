"""The command ``cfm``."""

from cfm._cli._main import main

__all__ = ["main"]
