"""Name the virus in studies that were never seen; tell infection from control; flag the unknown.

``python -m benchmarks.virus`` leaves out one study at a time. Encoders are those of
``python -m benchmarks.masked_direction``: each was pretrained without the studies of its fold, and
the classifier on top is trained here without the left-out study.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from benchmarks._report import Report, add_arguments, data_folder
from benchmarks._virus_methods import leave_one_study_out, load_encoders
from benchmarks._virus_tables import infected_table, novelty_table, set_table, virus_table
from benchmarks.masked_direction import MODELS
from training.pretrain import MAX_STEPS
from training.train_virus import load_corpus


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--models", type=Path, default=MODELS, help="where fold models are kept")
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder = data_folder(args.data)
    encoders = load_encoders(folder, args.models, args.max_steps)
    corpus = load_corpus(folder, encoders.models[0])
    obs = corpus.obs
    from_counts = (obs["source"] == "counts") & (obs["host"] == "human")
    obs["positive"] = (
        (obs["kind"] == "infection")
        & from_counts
        & obs["usable"].astype(bool)
        & obs["whole"].astype(bool)
    )
    null = (obs["kind"] == "null") & (obs["host"] == "human")
    obs["scored"] = obs["teaches_virus"] | obs["positive"] | null | (obs["kind"] == "stimulus")
    out = leave_one_study_out(corpus, encoders)
    report = Report("virus", "Virus calls in unseen studies")
    virus_table(report, corpus, out)
    set_table(report, corpus, out)
    infected_table(report, corpus, out)
    novelty_table(report, corpus, encoders, out)
    report.finish(args.write)


if __name__ == "__main__":
    main()
