"""Run every benchmark that this machine can run; write `results/speed.json` and the page `docs/speed.md`.

    make benchmark
    python benchmarks/all.py [--only NAME ...] [--limit SECONDS] [--page]

Each benchmark measures its ratios in a run of its own and may take `--limit` seconds. Those that need data, a package
or a model that is not there are listed with the reason. With `--only` the others keep their earlier results. `--page`
writes the page from the file without measuring anything. Exit code 1 if a goal is missed or a benchmark fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from results import Measured

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "results" / "speed.json", ROOT / "docs" / "speed.md"
PICTURE = ROOT / "docs" / "images" / "decoding.png"
MODEL = "models/english"
LIMIT = 900.0
INTRODUCTION = """# Speed

`make benchmark` measures this table and writes this page; each ratio is measured in one run on one thread, in
interleaved rounds, with process CPU time. [benchmarks/README.md](../benchmarks/README.md) describes the benchmarks. `load`
is the average number of running processes when a benchmark started, including those of others: ratios that differ by less
than 1.5 between two runs on a busy machine mean nothing. `--only` measures some of them again, perhaps on another machine,
which each section names.
"""


class Unavailable(Exception):
    """A benchmark cannot run here; the message is the reason."""


class Run(NamedTuple):
    """A benchmark.

    Attributes:
        title: heading of the page.
        arguments: returns the script and its arguments; it is given a folder for exported models.
        distance: why a goal is missed, shown if one is.
    """

    title: str
    arguments: Callable[[Path], list[str]]
    distance: str = ""


def need(*modules: str) -> None:
    for name in modules:
        if find_spec(name) is None:
            raise Unavailable(f"the package {name} is not installed")


def data(name: str) -> Path:
    from retort.common.errors import UserError
    from retort.corpora.open_cuts import find_data

    try:
        return find_data(name)
    except UserError:
        raise Unavailable(f"the data set {name} is missing") from None


def exported(folder: Path) -> dict[str, str]:
    """The English model and its exports, which are made once."""
    need("onnx", "onnxruntime")
    found = {"torch": MODEL}
    for name, more in (("onnx", []), ("int8", ["--int8"])):
        found[name] = str(folder / name)
        if not Path(found[name]).exists():
            command = [sys.executable, "-m", "retort.cli", "export", MODEL, found[name], "--for", "onnx", *more]
            subprocess.run(command, cwd=ROOT, check=True)
    return found


def whispers(folder: Path) -> list[str]:
    """Whisper models in CTranslate2's format, converted from those of `retort fetch`."""
    need("faster_whisper", "ctranslate2")
    from retort.pretrained.cache import locate

    found = []
    for name in ("whisper-tiny.en", "whisper-base"):
        if (source := locate(name)) is None:
            raise Unavailable(f"{name} is missing: retort fetch {name}")
        out = folder / name
        if not out.exists():
            from ctranslate2.converters import TransformersConverter

            copied = ["tokenizer.json", "preprocessor_config.json"]
            TransformersConverter(str(source), copy_files=copied).convert(str(out), quantization="int8")
        found.append(f"{name.removeprefix('whisper-')}={out}")
    return found


def clips(count: int) -> list[str]:
    return [str(each) for each in sorted((data("librispeech_clips/dev").parent / "audio").iterdir())[:count]]


def serving(_: Path) -> list[str]:
    need("httpx", "psutil", "starlette", "uvicorn", "multipart")
    folder = data("librispeech_clips/dev").parent / "audio"
    return ["serve.py", MODEL, "--audio", str(folder), "--clients", "8", "--requests", "40", "--clips", "10"]


def speeds(_: Path) -> list[str]:
    data("speechocean762/tune")
    models = (MODEL, "models/speechocean762_cif", "models/speechocean762_lrd")
    return ["speed.py", *models, "--utterances", "20", "--rounds", "3"]


def exports(folder: Path) -> list[str]:
    return ["export.py", *exported(folder).values(), "--repeats", "2", "--audio", *clips(4)]


def peers(folder: Path) -> list[str]:
    for name in ("librispeech_clips/dev", "speechocean762/dev"):
        data(name)
    own = [f"{name}={path}" for name, path in exported(folder).items()]
    drawn = ["--picture", str(PICTURE)] if find_spec("matplotlib") else []
    return ["peers.py", "decode", *own, "--whisper", *whispers(folder), *drawn]


def fine_tuning(_: Path) -> list[str]:
    data("speechocean762/train")
    return ["peers.py", "train", "--utterances", "4", "--rounds", "2"]


FEW_CALLS = """The products and sums over memory are near the floor (details). What remains is about 180 smaller calls of the
library, forward and backward, which find the frames and shares of each token. A part of their time does not depend on the
size, so that it weighs most in small batches; the rest is passes over arrays of frames. A version with fewer calls was 2
to 5 % faster ([tried.md](../results/tried.md))."""
ELEMENTS = """The peak is that of one large product in bfloat16. In a profile on a processor with 500 GFLOP/s of peak,
products, convolutions and attention took 59 % of an update of `aishell1/cif` and 71 % of one of `english/cif`; the rest,
bound by memory, is conversions between precisions, activations, dropout, normalisation and the optimiser. With 200
GFLOP/s of peak the same updates reached 0.56 to 0.63."""
HALF = """With half of the layers stored, an update still computes the upper half, the CTC head, CIF and the decoder, forward
and backward; without stored layers it also computes the convolutions and the lower half."""
FILES = """These are four clips of 8 to 16 s, each read from its file and segmented by voice activity detection, which takes
the same time for all models. The last section has utterances without
these steps, on which the exports take about half and 0.4 of torch's time."""
RUNS = {
    "cif": Run("The CIF step", lambda _: ["cif.py", "--rounds", "20"], FEW_CALLS),
    "contrastive": Run("The contrastive loss", lambda _: ["contrastive.py"]),
    "depthwise": Run("Depthwise convolution", lambda _: ["depthwise.py"]),
    "store": Run("The store of teachers' vectors", lambda _: ["store.py", "--texts", "4000"]),
    "step": Run("A training update", lambda _: ["step.py"], ELEMENTS),
    "distill": Run("Distillation", lambda _: ["distill.py"]),
    "pretrained": Run("Pretrained encoders", lambda _: ["pretrained.py", "--rounds", "3"], HALF),
    "speed": Run("Recognition", speeds),
    "export": Run("Exported models", exports, FILES),
    "serve": Run("The server", serving),
    "training": Run("Fine-tuning, compared with transformers", fine_tuning),
    "decoding": Run("Decoding, compared with faster-whisper", peers),
}


def machine() -> dict[str, Any]:
    """The processor, its cores and the versions that matter; no names of hosts."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "instructions": [flag for flag in wanted if flag in flags],
        "torch": version("torch"),
        "python": platform.python_version(),
    }


def run(name: str, folder: Path, limit: float) -> dict[str, Any]:
    """Result of a benchmark: `rows`, `load` and `machine`, or `missing`, the reason."""
    file = folder / f"{name}.json"
    load = os.getloadavg()[0]
    try:
        script, *arguments = RUNS[name].arguments(folder)
        command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments, "--json", str(file)]
        paths = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
        code = subprocess.run(command, cwd=ROOT, timeout=limit, env={**os.environ, "PYTHONPATH": paths}).returncode
    except Unavailable as reason:
        return {"missing": str(reason)}
    except subprocess.TimeoutExpired:
        return {"missing": f"it took more than {limit:g} s"}
    except subprocess.CalledProcessError:
        return {"missing": "the model could not be exported"}
    if not file.exists():
        return {"missing": f"it failed with exit code {code}"}
    rows = json.loads(file.read_text(encoding="utf-8"))
    return {"rows": rows, "load": round(load, 1), "machine": machine()}


def page(report: dict[str, Any]) -> str:
    """The page of a report."""
    lines, missing = [INTRODUCTION.rstrip()], []
    for name, single in RUNS.items():
        found = report["benchmarks"].get(name, {"missing": "it was not run"})
        if "missing" in found:
            missing.append(f"- {single.title} (`{name}`): {found['missing']}")
            continue
        on = found["machine"]
        where = f"{on['cpu']}, {on['cores']} cores ({', '.join(on['instructions'])}), torch {on['torch']}"
        lines += ["", f"## {single.title}", "", f"{where}; load {found['load']}.", ""]
        lines += ["| measured | value | goal | met | details |", "|---|---|---|---|---|"]
        for row in (Measured(**each) for each in found["rows"]):
            goal = "" if row.goal is None else f"{'at most' if row.at_most else 'at least'} {row.goal:g}"
            met = "" if row.goal is None else "yes" if row.met else "**no**"
            lines.append(f"| {row.what} | {row.value:.3g} | {goal} | {met} | {row.detail} |")
        if single.distance and not all(Measured(**each).met for each in found["rows"]):
            lines += ["", f"Goals that are missed: {single.distance}"]
        if name == "decoding" and PICTURE.exists():
            lines += ["", f"![Word error rates over real-time factors]({PICTURE.relative_to(PAGE.parent)})"]
    if missing:
        lines += ["", "## Not measured", "", *missing]
    return "\n".join(lines) + "\n"


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=RUNS, help="run these")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of a benchmark")
    parser.add_argument("--page", action="store_true", help="write the page from the file")
    options = parser.parse_args(given)
    report: dict[str, Any] = {"benchmarks": {}}
    if (options.only or options.page) and RESULTS.exists():
        report = json.loads(RESULTS.read_text(encoding="utf-8"))
    todo = [] if options.page else options.only or list(RUNS)
    with tempfile.TemporaryDirectory() as folder:
        for name in todo:
            print(f"== {name}", flush=True)
            report["benchmarks"][name] = run(name, Path(folder), options.limit)
            print(report["benchmarks"][name].get("missing", ""), flush=True)
            RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            PAGE.write_text(page(report), encoding="utf-8")
    PAGE.write_text(page(report), encoding="utf-8")
    failed = [
        name
        for name in todo
        if "failed" in report["benchmarks"][name].get("missing", "")
        or not all(Measured(**row).met for row in report["benchmarks"][name].get("rows", []))
    ]
    print(f"missed a goal or failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
