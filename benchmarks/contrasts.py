"""How fast profiles of (case, control) pairs are made, and in how much memory.

Run as ``python -m benchmarks.contrasts``. Each case runs in a process of its own, so that its peak
memory is its own. Samples are synthetic (20,000 genes); the same 6,326 of them stand behind 10³,
10⁵ and 10⁷ possible pairs. Beside them: scvi-tools' ``AnnDataLoader`` reading 10⁴ ready-made
profiles from memory, shuffled. ``--data`` adds the count files of a folder, read, checked and
paired by :func:`cfm.pp.contrasts`.

On disk: 10,000 simulated samples are written to a temporary folder (800 MB, and 400 MB of
profiles; ``--folder`` says where, both are deleted), of which 23 million profiles can be made.
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
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from benchmarks._contrast_samples import open_pairs, train, write_profiles, write_samples
from benchmarks._report import Report, add_arguments, data_folder

N_GENES = 20_000
N_SAMPLES = 6_326  # 3,163 cases × 3,163 controls are 10 million pairs
PAIRS = (10**3, 10**5, 10**7)
N_PREBUILT = 10_000
N_TOKENS = 1_024
N_ON_DISK = 10_000  # samples
N_READY = 5_000  # profiles that are written out
ALL_MIB = 10**6  # more than all samples need
MEMORY_MIB = (ALL_MIB, 512, 64)  # what cfm.pp.contrasts may hold of them
N_STEPS = 40


def peak_mib() -> float:
    """Largest resident memory of this process so far.

    On Linux from VmHWM: a child's ``ru_maxrss`` starts at the peak of its parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
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


def case_step(repeats: int) -> dict:
    """Take training steps of the mini model as ``CellPulse.train`` does by default."""
    import torch

    from cfm.models.cellpulse import SIZES, CellPulseModule
    from cfm.models.cellpulse._module import Tokens, mask_tokens

    batch, n = 24, 256
    torch.manual_seed(0)
    module = CellPulseModule(N_GENES, **SIZES["mini"].module_arguments())
    module.gene_factors.normal_(std=0.1)
    gene = torch.rand(batch, N_GENES).argsort(dim=1)[:, :n]
    state = 2 * torch.randint(0, 2, (batch, n))
    tokens = Tokens(gene, state, torch.rand(batch, n))
    optimizer = torch.optim.AdamW(module.parameters())
    before = resident_mib()

    def step() -> None:
        hidden, asked = mask_tokens(tokens, torch.full((batch,), 0.5))
        losses = module.losses(hidden, tokens, asked, groups=torch.arange(batch))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    result = rate(batch, max(5, repeats // 5), step)
    return result | {"possible": 0, "matrix_mib": 0.0, "extra_mib": peak_mib() - before}


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


def case_disk(samples: Path, memory_mib: float, batch: int, repeats: int) -> dict:
    """Draw profiles of samples on disk."""
    before = resident_mib()
    pairs, seconds = open_pairs(samples, memory_mib)
    rng = np.random.default_rng(1)
    for _ in range(30):  # what is held of the samples fills up
        pairs.draw(batch, rng)
    result = rate(batch, repeats, lambda: pairs.draw(batch, rng))
    return result | {
        "possible": len(pairs),
        "seconds_to_make": seconds,
        "matrix_mib": samples.stat().st_size / 2**20,
        "extra_mib": peak_mib() - before,
    }


def case_ready(samples: Path, batch: int, repeats: int) -> dict:
    """Write profiles out, and draw from their file."""
    import h5py

    from cfm.data import ProfileMatrix

    pairs, _ = open_pairs(samples, 512)
    ready = samples.with_name("profiles.h5")
    seconds = write_profiles(pairs, ready, N_READY)
    before = resident_mib()
    with h5py.File(ready) as file:
        source = ProfileMatrix(file["X"], pairs.var_names)
        rng = np.random.default_rng(1)
        result = rate(batch, repeats, lambda: source.draw(batch, rng))
    return result | {
        "possible": N_READY,
        "seconds_to_make": seconds,
        "matrix_mib": ready.stat().st_size / 2**20,
        "extra_mib": peak_mib() - before,
    }


def case_train(samples: Path, memory_mib: float) -> dict:
    """Train the mini model from samples on disk."""
    before = resident_mib()
    pairs, _ = open_pairs(samples, memory_mib)
    seconds = train(pairs, N_STEPS)
    return {
        "per_second": 24 / seconds,
        "possible": len(pairs),
        "matrix_mib": samples.stat().st_size / 2**20,
        "extra_mib": peak_mib() - before,
    }


def run_case(name: str, arguments: argparse.Namespace) -> dict:
    """Run one case here (in the child process)."""
    kind, _, rest = name.partition(":")
    if kind == "loader":
        result = case_loader(arguments.batch, arguments.repeats)
    elif kind == "step":
        result = case_step(arguments.repeats)
    elif kind in ("disk", "train"):
        memory_mib, _, path = rest.partition(":")
        if kind == "train":
            result = case_train(Path(path), float(memory_mib))
        else:
            result = case_disk(Path(path), float(memory_mib), arguments.batch, arguments.repeats)
    elif kind == "ready":
        result = case_ready(Path(rest), arguments.batch, arguments.repeats)
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


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Command line; returns the results by case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--batch", type=int, default=128, help="profiles per draw")
    parser.add_argument("--repeats", type=int, default=75, help="draws that are timed")
    parser.add_argument("--samples", type=int, default=N_ON_DISK, help="simulated samples on disk")
    parser.add_argument("--folder", help="where their file is written (default: $TMPDIR)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.case:
        result = run_case(arguments.case, arguments)
        print(json.dumps(result))
        return {arguments.case: result}

    titles = {f"pairs:{n}": f"draw, {n:,} pairs" for n in PAIRS}
    titles |= {f"tokens:{n}": f"draw and tokenise ({N_TOKENS}), {n:,} pairs" for n in PAIRS}
    titles["loader"] = "AnnDataLoader, ready-made matrix"
    titles["step"] = "training step of the mini model (24 profiles, 256 tokens)"
    if arguments.data:
        for name in ("GSE147507", "GSE119117", "REbola_USA"):
            path = data_folder(arguments.data) / "virus_counts" / f"{name}.h5ad"
            titles[f"file:{path}"] = f"draw, {name}"
    results = {name: run_apart(name, arguments) for name in titles}
    rows = [
        {
            "what": title,
            "possible profiles": results[name]["possible"],
            "profiles/s": results[name]["per_second"],
            "quartiles": "–".join(f"{q:,.0f}" for q in results[name]["quartiles"]),
            "matrix MiB": results[name]["matrix_mib"],
            "beside it MiB": results[name]["extra_mib"],
            "peak MiB": results[name]["peak_mib"],
        }
        for name, title in titles.items()
    ]
    report = Report("contrasts", "Profiles on the fly")
    report.text(
        f"{N_GENES:,} genes, one thread, batches of {arguments.batch}; medians. Each case runs in "
        f"a process of its own. {N_SAMPLES:,} samples stand behind all three numbers of pairs."
    )
    report.table("rates", pd.DataFrame(rows), "Profiles per second and memory", digits=0)
    most = f"pairs:{PAIRS[-1]}"
    tokens = results[f"tokens:{PAIRS[-1]}"]["per_second"]
    drawing = results[most]["per_second"] / results["loader"]["per_second"]
    consumed = tokens / results["step"]["per_second"]
    peaks = [results[f"pairs:{n}"]["peak_mib"] for n in PAIRS]
    report.text(
        f"Drawing reads at {drawing:.2f}× the rate of AnnDataLoader on the ready-made matrix; "
        f"drawing and tokenising makes profiles {consumed:.0f}× as fast as a training step of the "
        f"mini model consumes them; peak memory of drawing from 10³ to 10⁷ pairs is "
        f"{min(peaks):,.0f}–{max(peaks):,.0f} MiB."
    )
    results |= report_on_disk(report, arguments)
    report.finish(arguments.write)
    return results


def report_on_disk(report: Report, arguments: argparse.Namespace) -> dict[str, dict]:
    """Measure pairs of samples on disk and add them to the report; returns the results."""
    with tempfile.TemporaryDirectory(prefix="cfm-contrasts-", dir=arguments.folder) as folder:
        samples = Path(folder) / "samples.h5ad"
        write_samples(samples, arguments.samples, N_GENES)
        titles = {f"disk:{m}:{samples}": f"draw, {said(m)}" for m in MEMORY_MIB}
        titles[f"ready:{samples}"] = f"draw, {N_READY:,} profiles written out"
        titles |= {f"train:{m}:{samples}": f"train the mini model, {said(m)}" for m in MEMORY_MIB}
        results = {name: run_apart(name, arguments) for name in titles}
    rows = [
        {
            "what": title,
            "possible profiles": results[name]["possible"],
            "s to prepare": results[name].get("seconds_to_make", np.nan),
            "profiles/s": results[name]["per_second"],
            "file MiB": results[name]["matrix_mib"],
            "beside it MiB": results[name]["extra_mib"],
            "peak MiB": results[name]["peak_mib"],
        }
        for name, title in titles.items()
    ]
    report.text(
        f"On disk: {arguments.samples:,} simulated samples × {N_GENES:,} genes in an .h5ad file "
        "(dense float32, in the page cache), paired by cfm.pp.contrasts(…, mode='pairs', "
        "memory_mib=…). Memory beside the file counts what is held of the samples and, in "
        "training, the model and its optimiser."
    )
    report.table("on_disk", pd.DataFrame(rows), "Profiles of samples on disk", digits=0)
    kept, fewest = (results[f"disk:{m}:{samples}"] for m in (ALL_MIB, MEMORY_MIB[-1]))
    ready = results[f"ready:{samples}"]
    steps = [results[f"train:{m}:{samples}"] for m in (ALL_MIB, MEMORY_MIB[-1])]
    n_pairs = kept["possible"]
    report.text(
        f"Written out, all {n_pairs:,} profiles would take {n_pairs * N_GENES * 4 / 1e12:.1f} TB "
        f"and {n_pairs / N_READY * ready['seconds_to_make'] / 86_400:.1f} days. Reading samples "
        f"when a pair needs them, with {MEMORY_MIB[-1]} MiB of them held, gives "
        f"{fewest['per_second'] / kept['per_second']:.2f}× the profiles per second of all "
        f"samples in memory and {steps[1]['per_second'] / steps[0]['per_second']:.2f}× the rate of "
        f"training, at a peak of {steps[1]['peak_mib']:,.0f} instead of "
        f"{steps[0]['peak_mib']:,.0f} MiB."
    )
    return results


def said(memory_mib: float) -> str:
    """Say how much of the samples is held."""
    return "all in memory" if memory_mib == ALL_MIB else f"{memory_mib} MiB held"


if __name__ == "__main__":
    main()
