"""Build the gene sets that `cfm.datasets.hallmark` reads.

Reads ``networks/hallmark.gmt`` below ``--data`` (MSigDB hallmark sets 7.5.1) and packs it; genes
are sorted by name.

Run as ``python training/build_hallmark.py --data DATA``.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

OUTPUT = Path(__file__).resolve().parents[1] / "src/cfm/datasets/files/hallmark.gmt.gz"


def build(data: Path) -> None:
    lines = []
    for line in (data / "networks" / "hallmark.gmt").read_text().splitlines():
        name, link, *genes = line.split("\t")
        lines.append("\t".join([name, link, *sorted({g for g in genes if g})]))
    text = "\n".join(sorted(lines)) + "\n"
    OUTPUT.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{OUTPUT.name}: {len(lines)} sets, {OUTPUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that has networks/")
    build(parser.parse_args().data)
