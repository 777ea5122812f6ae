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

from benchmarks._report import Report, add_arguments, data_folder

N_GENES = 20_000
N_SAMPLES = 6_326  # 3,163 cases × 3,163 controls are 10 million pairs
PAIRS = (10**3, 10**5, 10**7)
N_PREBUILT = 10_000
N_TOKENS = 1_024


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
    from cfm.models.cellpulse._masking import hide
    from cfm.models.cellpulse._module import Tokens

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
        hidden, asked = hide(tokens, torch.full((batch,), 0.5))
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


def run_case(name: str, arguments: argparse.Namespace) -> dict:
    """Run one case here (in the child process)."""
    kind, _, rest = name.partition(":")
    if kind == "loader":
        result = case_loader(arguments.batch, arguments.repeats)
    elif kind == "step":
        result = case_step(arguments.repeats)
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
    report.finish(arguments.write)
    return results


if __name__ == "__main__":
    main()
