"""The server under load: many clients at once, no request lost, memory bounded, latencies.

    python benchmarks/serve.py MODEL --audio FOLDER [--clients 64] [--requests 2000] [--clips 40] [--longest 6]

Each answer is compared with that of the same clip alone, so that batches are seen to change nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import soundfile

from results import Measured, add_json, finish


def choose_clips(folder: Path, count: int, longest: float) -> list[Path]:
    """Files of at most `longest` seconds, in the order of their names."""
    found: list[Path] = []
    for path in sorted(
        each for each in folder.rglob("*") if each.suffix in (".wav", ".flac", ".opus", ".mp3")
    ):
        if soundfile.info(path).duration <= longest:
            found.append(path)
        if len(found) == count:
            break
    return found


async def ask(client: httpx.AsyncClient, path: Path) -> tuple[str, float]:
    """Text and seconds of a request; 429 is answered by waiting as long as the server asks for."""
    started = time.perf_counter()
    while True:
        answer = await client.post("/v1/audio/transcriptions", files={"file": (path.name, path.read_bytes())})
        if answer.status_code != 429:
            break
        await asyncio.sleep(float(answer.headers["Retry-After"]))
    answer.raise_for_status()
    return answer.json()["text"], time.perf_counter() - started


async def load(url: str, clips: list[Path], clients: int, requests: int, process: psutil.Process) -> list[Measured]:
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        alone = {path: (await ask(client, path))[0] for path in clips}
        before = process.memory_info().rss
        memory, seconds, wrong, failed = [before], [], 0, 0
        numbers = iter(range(requests))

        async def work() -> None:
            nonlocal wrong, failed
            for number in numbers:
                path = clips[number % len(clips)]
                try:
                    text, spent = await ask(client, path)
                except httpx.HTTPError as error:
                    failed += 1
                    print(f"{path.name}: {error}", file=sys.stderr)
                    continue
                wrong += text != alone[path]
                seconds.append(spent)
                memory.append(process.memory_info().rss)

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        wall = time.perf_counter() - started
        lines = (await client.get("/metrics")).text.splitlines()
    audio = sum(soundfile.info(clips[number % len(clips)]).duration for number in range(requests))
    batches, segments = (
        float(next(line.split()[-1] for line in lines if line.startswith(f"retort_batch_segments_{name}")))
        for name in ("count", "sum")
    )
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
    print(f"{requests} requests of {clients} clients, {audio / requests:.1f} s of audio on average")
    print(f"answered {len(seconds)}, failed {failed}, different from the clip alone {wrong}")
    print(f"p50 {p50:.2f} s, p95 {p95:.2f} s, p99 {p99:.2f} s")
    print(
        f"{requests / wall:.1f} requests per second, {audio / wall:.1f} s of audio per second, {wall:.0f} s in total"
    )
    print(f"{segments / batches:.1f} segments per batch")
    quarter = max(1, len(memory) // 4)
    print(
        f"memory of the server: {before / 1e6:.0f} MB before, {max(memory) / 1e6:.0f} MB at most, "
        f"{np.mean(memory[quarter : 2 * quarter]) / 1e6:.0f} MB in the second quarter, "
        f"{np.mean(memory[-quarter:]) / 1e6:.0f} MB in the last"
    )
    under = f"{requests} requests of {clients} clients, {segments / batches:.1f} segments a batch"
    return [
        Measured("requests that failed or differ from the clip alone", failed + wrong, 0, True, under),
        Measured("seconds of audio a second", audio / wall, detail=f"p50 {p50:.2f} s, p95 {p95:.2f} s, p99 {p99:.2f} s"),
        Measured("growth of the server's memory, MB", (max(memory) - before) / 1e6),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--longest", type=float, default=6.0)
    parser.add_argument("--threads", type=int, default=1)
    add_json(parser)
    own = parser.parse_args()
    clips = choose_clips(own.audio, own.clips, own.longest)
    if not clips:
        parser.error(f"{own.audio} has no audio of at most {own.longest:g} s")
    command = [
        sys.executable,
        "-m",
        "retort.cli",
        "serve",
        own.model,
        "--port",
        "0",
        "--threads",
        str(own.threads),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if " at http://" not in line:
                sys.exit(f"the server did not start: {line}")
            url = line.split(" at ")[1].strip()
            rows = asyncio.run(load(url, clips, own.clients, own.requests, psutil.Process(server.pid)))
        finally:
            server.terminate()
    return finish(rows, own.json)


if __name__ == "__main__":
    sys.exit(main())
