"""Real-time factors of trained systems compared, measured in one run.

    PYTHONPATH=src python benchmarks/speed.py EXP [EXP ...] [--data speechocean762/tune] [--utterances N] [--rounds N]

Seconds of one core for a second of speech, from samples to text: features, encoder, search. Every system sees the same
utterances with every search that it has, and they take turns in every round; times are process CPU time, since the
clock of a busy machine tells of its other work. Told are the median of the rounds, the smallest and the largest, and
the ratio of medians to the first system's greedy search. Nothing is judged.

The script starts itself again on one thread, with the allocator set as `retort evaluate` sets it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path

from retort.common.environment import ALLOCATOR

SETTINGS = {**ALLOCATOR, "OMP_NUM_THREADS": "1"}
if any(os.environ.get(key) != value for key, value in SETTINGS.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SETTINGS})

import torch  # noqa: E402
from lhotse import CutSet  # noqa: E402
from rich.console import Console  # noqa: E402

from results import Measured, add_json, finish  # noqa: E402
from retort.common.progress import stage_progress  # noqa: E402
from retort.corpora.open_cuts import find_data, open_cuts  # noqa: E402
from retort.decoding.options import DecodingOptions  # noqa: E402
from retort.decoding.recogniser import Recogniser, load  # noqa: E402
from retort.evaluation.recognise import recognise  # noqa: E402
from retort.students.attention import AttentionStudent  # noqa: E402
from retort.students.cif import CifStudent  # noqa: E402
from retort.students.ctc import HasCtc  # noqa: E402
from retort.students.hybrid import HybridStudent  # noqa: E402
from retort.students.transducer import TransducerStudent  # noqa: E402

BEAM = 10


def searches(recogniser: Recogniser) -> dict[str, DecodingOptions]:
    """Those that a student has; of a hybrid one a wider beam keeps more readings and finds no better one."""
    found = {"greedy": DecodingOptions()}
    if not isinstance(recogniser.student, HybridStudent):
        found[f"beam {BEAM}"] = DecodingOptions(beam=BEAM)
    if isinstance(recogniser.student, AttentionStudent):
        found["rescoring"] = DecodingOptions(beam=BEAM, mode="attention_rescoring")
    if isinstance(recogniser.student, CifStudent | TransducerStudent) and isinstance(
        recogniser.student, HasCtc
    ):
        found["both heads"] = DecodingOptions(beam=BEAM, mode="ctc_rescoring")
    return found


def seconds(recogniser: Recogniser, cuts: CutSet, options: DecodingOptions) -> float:
    started = time.process_time()
    recognise(recogniser, cuts, options=options)
    return time.process_time() - started


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", type=Path, nargs="+", help="experiments or folders of models")
    parser.add_argument("--data", default="speechocean762/tune")
    parser.add_argument("--utterances", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cuts = CutSet.from_cuts(islice(open_cuts(find_data(options.data)).cuts, options.utterances)).to_eager()
    speech = sum(cut.duration for cut in cuts)
    recognisers = {str(path): load(path) for path in options.experiments}
    todo = [(name, search) for name, each in recognisers.items() for search in searches(each)]
    taken: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with stage_progress(Console(stderr=True)) as progress:
        for number in range(options.rounds + 1):
            for name, search in todo:
                chosen = searches(recognisers[name])[search]
                spent = seconds(recognisers[name], cuts, chosen)
                if number:  # the first round warms up
                    taken[name, search].append(spent / speech)
            progress("rounds", number, options.rounds)
    first = statistics.median(taken[todo[0]])
    print(f"{len(cuts)} utterances of {options.data}, {speech:.0f} s of speech, {options.rounds} rounds")
    rows = []
    for name, search in todo:
        factors = taken[name, search]
        median = statistics.median(factors)
        print(
            f"{name:50} {search:10} {median:.4f} ({min(factors):.4f} to {max(factors):.4f})  {median / first:.2f}"
        )
        what = f"{Path(name).name}, {search}: real-time factor"
        rows.append(Measured(what, median, detail=f"{median / first:.2f} times the first"))
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
