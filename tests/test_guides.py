"""Code of the guide runs as written, block after block."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import scvi

from cfm.hub import load_checkpoint

GUIDE = Path(__file__).parents[1] / "docs" / "guide"
#: Pages whose ``python`` blocks form a program; blocks that need a download are ``{code-block}``.
PAGES = [
    "adding_a_model",
    "bulkformer",
    "cellpulse",
    "cellvq",
    "cohorts",
    "calls",
    "contrasts",
    "count_model",
    "donors",
    "drug_screen",
    "gene_programs",
    "genes",
    "honest_baselines",
    "host_factors",
    "inputs",
    "knowledge_graph",
    "lingshu",
    "on_disk",
    "perturbations",
    "pulsar",
    "signature_search",
    "training",
]


def test_every_page_with_code_is_run() -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in GUIDE.glob("*.md")}
    assert sorted(PAGES) == sorted(name for name, text in texts.items() if "```python\n" in text)


def _write_files(text: str, folder: Path) -> list[Path]:
    """Write the files that a page shows: blocks whose caption is a path."""
    pattern = r"^```\{code-block\} python\n:caption: (\S+\.py)\n\n(.*?)^```"
    files = []
    for name, content in re.findall(pattern, text, flags=re.DOTALL | re.MULTILINE):
        files.append(folder / name)
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_text(content, encoding="utf-8")
    return files


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_as_written(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scvi.settings, "verbosity", 30)
    text = (GUIDE / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    _write_files(text, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, block in enumerate(blocks, 1):
            exec(compile(block, f"{page}.md, block {number}", "exec"), names)
    plt.close("all")
    assert bool(capsys.readouterr().out) == any("print(" in block for block in blocks)


#: Trains the model of the page on adding one; the first time it is killed in step 8 of 12.
TRAINING = """
import os, signal, sys
import cfm
from denoiser import Denoiser
from lightning.pytorch import Callback

class Kill(Callback):
    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 8 and sys.argv[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)

cells = cfm.datasets.toy_perturbation(n_cells=600)
Denoiser.setup_anndata(cells)
for folder in sys.argv[2:]:
    model = Denoiser(cells)
    model.train(
        max_steps=12, batch_size=32, enable_progress_bar=False,
        checkpoint_dir=folder, checkpoint_every=5, callbacks=[Kill()],
    )
    model.save(f"{folder}_model")
"""


@pytest.mark.slow
def test_model_of_the_guide_is_small_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    files = _write_files((GUIDE / "adding_a_model.md").read_text(encoding="utf-8"), tmp_path)
    assert len(files) <= 5
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) <= 250
    (tmp_path / "train.py").write_text(TRAINING)
    call = [sys.executable, "train.py"]
    killed = subprocess.run([*call, "killed", "stopped"], cwd=tmp_path, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    subprocess.run([*call, "finish", "stopped", "whole"], cwd=tmp_path, check=True)
    weights = [load_checkpoint(tmp_path / f"{name}_model").sha256 for name in ("stopped", "whole")]
    assert weights[0] == weights[1]
