"""Print the versions of Python and of what the package stands on, in this environment.

python tests/release/versions.py
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version


def main() -> None:
    """One line: direct dependencies, those of extras where they are installed."""
    names = {re.match(r"[\w-]+", line)[0] for line in requires("cfm-tools") or []}  # type: ignore[index]
    found = [f"Python {sys.version.split()[0]}"]
    for name in sorted(names, key=str.lower):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    sys.stdout.write(", ".join(found) + "\n")


if __name__ == "__main__":
    main()
