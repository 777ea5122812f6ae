"""How fast profiles of (case, control) pairs are made, and in how much memory.

Run as ``python -m benchmarks.contrasts``. Each case runs in a process of its own, so that its peak
memory is its own. Samples are synthetic (20,000 genes); the same 6,326 of them stand behind 10³,
10⁵ and 10⁷ possible pairs. Beside them: scvi-tools' ``AnnDataLoader`` reading 10⁴ ready-made
profiles from memory, shuffled. ``--data`` adds the count files of a folder, read, checked and
paired by :func:`cfm.pp.contrasts`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

N_GENES = 20_000
N_SAMPLES = 6_326  # 3,163 cases × 3,163 controls are 10 million pairs
PAIRS = (10**3, 10**5, 10**7)
N_PREBUILT = 10_000
N_TOKENS = 1_024


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)


def resident_mib() -> float:
    """Resident memory of this process now (Linux; elsewhere the peak)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_mib()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def rate(batch: int, repeats: int, step) -> dict:
    """Profiles per second of ``step()``, which makes ``batch`` of them: median and quartiles."""
    step()
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        rates.append(batch / (time.perf_counter() - start))
    low, median, high = statistics.quantiles(rates, n=4)
    return {"per_second": median, "quartiles": [low, high]}


def make_pairs(n_pairs: int, seed: int = 0):
    """Return pairs of the same samples, in strata that give about ``n_pairs`` possible ones."""
    from cfm.data import ContrastPairs

    rng = np.random.default_rng(seed)
    values = rng.standard_normal((N_SAMPLES, N_GENES), dtype=np.float32)
    half = N_SAMPLES // 2
    side = {10**3: 1, 10**5: 100, 10**7: half}[n_pairs]  # cases and controls per stratum
    n_strata = max(1, n_pairs // side**2)
    strata = [np.arange(i * side, (i + 1) * side) for i in range(n_strata)]
    return ContrastPairs(
        values,
        strata,
        [rows + half for rows in strata],
        contrasts=pd.DataFrame({"stratum": range(n_strata)}),
        var=pd.DataFrame(index=[f"GENE{i}" for i in range(N_GENES)]),
        sample_names=[f"S{i}" for i in range(N_SAMPLES)],
    )


def make_encoder(genes: list[str]):
    """Return CellPulse's function from effects to tokens."""
    from cfm.data import GeneVocabulary
    from cfm.models.cellpulse import ProfileTokenizer

    return ProfileTokenizer(GeneVocabulary(genes), N_TOKENS).encode


def case_pairs(n_pairs: int, tokenise: bool, batch: int, repeats: int) -> dict:
    """Draw profiles of pairs, and perhaps turn them into tokens."""
    pairs = make_pairs(n_pairs)
    encode = make_encoder(pairs.var_names.tolist()) if tokenise else None
    before = resident_mib()
    rng = np.random.default_rng(1)

    def step() -> None:
        drawn = pairs.draw(batch, rng)
        if encode is not None:
            encode(drawn.effects)

    result = rate(batch, repeats, step)
    return result | {
        "possible": len(pairs),
        "matrix_mib": N_SAMPLES * N_GENES * 4 / 2**20,
        "extra_mib": peak_mib() - before,
    }


def case_loader(batch: int, repeats: int) -> dict:
    """Read ready-made profiles through scvi-tools' loader."""
    import anndata as ad
    from scvi.data import AnnDataManager
    from scvi.data.fields import LayerField
    from scvi.dataloaders import AnnDataLoader

    rng = np.random.default_rng(0)
    adata = ad.AnnData(rng.standard_normal((N_PREBUILT, N_GENES), dtype=np.float32))
    manager = AnnDataManager(fields=[LayerField("X", None, is_count_data=False)])
    manager.register_fields(adata)
    before = resident_mib()
    loader = AnnDataLoader(manager, batch_size=batch, shuffle=True, drop_last=True)
    batches = iter(loader)

    def step() -> None:
        nonlocal batches
        if next(batches, None) is None:
            batches = iter(loader)
            next(batches)

    result = rate(batch, min(repeats, len(loader) - 2), step)
    return result | {
        "possible": N_PREBUILT,
        "matrix_mib": N_PREBUILT * N_GENES * 4 / 2**20,
        "extra_mib": peak_mib() - before,
    }


def case_file(path: Path, batch: int, repeats: int) -> dict:
    """Make pairs of a real count file and draw from them."""
    import anndata as ad

    from cfm.pp import contrasts

    adata = ad.read_h5ad(path)
    before = resident_mib()
    start = time.perf_counter()
    pairs = contrasts(adata, "virus", "none", mode="pairs")
    seconds = time.perf_counter() - start
    rng = np.random.default_rng(1)
    result = rate(batch, repeats, lambda: pairs.draw(batch, rng))
    return result | {
        "possible": len(pairs),
        "seconds_to_make": seconds,
        "matrix_mib": pairs.shape[1] * len(pairs.sample_names) * 4 / 2**20,
        "extra_mib": peak_mib() - before,
    }


def run_case(name: str, arguments: argparse.Namespace) -> dict:
    """Run one case here (in the child process)."""
    kind, _, rest = name.partition(":")
    if kind == "loader":
        result = case_loader(arguments.batch, arguments.repeats)
    elif kind == "file":
        result = case_file(Path(rest), arguments.batch, arguments.repeats)
    else:
        result = case_pairs(int(rest), kind == "tokens", arguments.batch, arguments.repeats)
    return result | {"peak_mib": peak_mib()}


def run_apart(name: str, arguments: argparse.Namespace) -> dict:
    """Run one case in a fresh process and return what it measured."""
    command = [sys.executable, "-m", "benchmarks.contrasts", "--case", name]
    command += ["--batch", str(arguments.batch), "--repeats", str(arguments.repeats)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, dict], titles: dict[str, str]) -> str:
    """Return the results as a markdown table."""
    lines = [
        "| what | possible profiles | profiles/s (median, quartiles) | matrix MiB "
        "| beside the matrix MiB | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        low, high = r["quartiles"]
        lines.append(
            f"| {titles[name]} | {r['possible']:,} | {r['per_second']:,.0f} "
            f"({low:,.0f}–{high:,.0f}) | {r['matrix_mib']:,.0f} | {r['extra_mib']:,.0f} "
            f"| {r['peak_mib']:,.0f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Command line; returns the results by case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with virus_counts/*.h5ad")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--batch", type=int, default=128, help="profiles per draw")
    parser.add_argument("--repeats", type=int, default=75, help="draws that are timed")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.case:
        result = run_case(arguments.case, arguments)
        print(json.dumps(result))
        return {arguments.case: result}

    titles = {f"pairs:{n}": f"draw, {n:,} pairs" for n in PAIRS}
    titles |= {f"tokens:{n}": f"draw and tokenise ({N_TOKENS}), {n:,} pairs" for n in PAIRS}
    titles["loader"] = "AnnDataLoader, ready-made matrix"
    if arguments.data:
        for name in ("GSE147507", "GSE119117", "REbola_USA"):
            titles[f"file:{arguments.data / 'virus_counts' / name}.h5ad"] = f"draw, {name}"
    results = {name: run_apart(name, arguments) for name in titles}
    print(f"{N_GENES:,} genes, batches of {arguments.batch}, one thread\n")
    print(table(results, titles))
    ratio = results[f"pairs:{PAIRS[-1]}"]["per_second"] / results["loader"]["per_second"]
    peaks = [results[f"pairs:{n}"]["peak_mib"] for n in PAIRS]
    print(
        f"\ndrawing / AnnDataLoader: {ratio:.2f}×; peak memory of drawing, 10³ to 10⁷ pairs: "
        f"{min(peaks):,.0f}–{max(peaks):,.0f} MiB"
    )
    if arguments.out:
        # the case names hold the data folder, which is nobody's business in a results file
        named = {titles[name]: result for name, result in results.items()}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(named, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
