"""How many real-time streams a model holds on this machine.

    python benchmarks/streams.py MODEL --audio FOLDER [--streams 64] [--seconds 20] [--chunk 8] [--vad] [--find] [--simulate]

A server is started, and the clips are sent to its Realtime socket in pieces of 100 ms, at the speed at which they were
spoken. A stream that is late by more than a chunk at its end is not held. `--find` doubles and halves the number of
streams until the largest number is known. The pieces are encoded before the clock starts, and sent without compression, so
that the client takes little of the machine.

`--simulate` needs no quiet machine: the sessions' audio is decoded, resampled, searched for turns and recognised in this
process, in the steps of a server that is in time, and the CPU time is reported. It leaves out the sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from websockets.asyncio.client import connect

import retort
from retort.audio.files import open_audio
from retort.audio.resampling import Resampler
from retort.runtime.load import open_streams
from retort.serving.events import event_samples, parsed
from retort.serving.live import REST
from retort.serving.turns import Turns
from retort.streaming.utterances import StreamOptions

RATE = 24_000
PIECE = 0.1
KIND = "conversation.item.input_audio_transcription"


class Stream(NamedTuple):
    """Seconds from the last sample to the transcript, number of deltas before it, and the transcript."""

    late: float
    deltas: int
    text: str


def read(folder: Path, seconds: float, count: int) -> list[np.ndarray]:
    """`count` recordings of `seconds` at 24 kHz as PCM16, each of consecutive clips."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".wav", ".flac", ".opus", ".mp3"))
    size, found, rest = round(seconds * RATE), [], np.zeros(0, np.float32)
    while len(found) < count:
        for path in paths:
            rest = np.concatenate([rest, *open_audio(path, RATE, "mix").blocks()])
            while len(rest) >= size and len(found) < count:
                found.append((rest[:size] * 32767).astype("<i2"))
                rest = rest[size:]
            if len(found) == count:
                break
    return found


def messages(wave: np.ndarray) -> list[str]:
    """The events that append a recording in pieces."""
    size = round(PIECE * RATE)
    audio = (base64.b64encode(wave[start : start + size].tobytes()) for start in range(0, len(wave), size))
    return [json.dumps({"type": "input_audio_buffer.append", "audio": each.decode()}) for each in audio]


async def speak(url: str, pieces: list[str], vad: bool, delay: float) -> Stream:
    """Send pieces in real time."""
    await asyncio.sleep(delay)  # sessions do not begin at the same moment
    async with connect(url, max_size=1 << 24, compression=None) as socket:
        turns = {"type": "server_vad"} if vad else None
        update = {"type": "transcription", "audio": {"input": {"turn_detection": turns}}}
        await socket.send(json.dumps({"type": "session.update", "session": update}))
        deltas, texts, ended = 0, [], 0.0
        committed = done = 0

        async def listen() -> None:
            nonlocal deltas, committed, done
            async for message in socket:
                event = json.loads(message)
                deltas += event["type"] == f"{KIND}.delta"
                committed += event["type"] == "input_audio_buffer.committed"
                if event["type"] == f"{KIND}.completed":
                    texts.append(event["transcript"])
                    done += 1
                if event["type"] == "error" and event["error"]["code"] != "input_audio_buffer_commit_empty":
                    raise RuntimeError(event["error"]["message"])
                last = event["type"] == "error"
                if ended and (last or committed) and done == committed:
                    return

        listening = asyncio.ensure_future(listen())
        started = time.perf_counter()
        for number, piece in enumerate(pieces, start=1):
            await asyncio.sleep(max(0.0, started + number * PIECE - time.perf_counter()))
            await socket.send(piece)
        ended = started + len(pieces) * PIECE
        await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        await asyncio.wait_for(listening, 300)
        return Stream(time.perf_counter() - ended, deltas, " ".join(texts))


async def trial(
    url: str, waves: list[np.ndarray], vad: bool, server: psutil.Process
) -> tuple[list[Stream], float]:
    """The streams, and the CPU time of the server per second of audio and stream."""
    events = [messages(wave) for wave in waves]
    before = server.cpu_times()
    found = await asyncio.gather(
        *(speak(url, pieces, vad, number / len(waves)) for number, pieces in enumerate(events)),
        return_exceptions=True,
    )
    lost = [each for each in found if not isinstance(each, Stream)]
    for error in lost[:3]:
        print(f"lost: {error!r}", file=sys.stderr)
    after = server.cpu_times()
    audio = sum(len(wave) for wave in waves) / RATE
    spent = after.user + after.system - before.user - before.system
    return [each for each in found if isinstance(each, Stream)], spent / audio


def measure(url: str, waves: list[np.ndarray], own: argparse.Namespace, server: psutil.Process) -> bool:
    """Print the result of a number of streams; whether all were held."""
    found, cpu = asyncio.run(trial(url, waves, own.vad, server))
    late = sorted(each.late for each in found) or [float("inf")]
    held = sum(each <= own.late for each in late)
    print(
        f"{len(waves)} streams of {own.seconds:g} s: {len(found)} answered, {held} at most {own.late:g} s late "
        f"(p50 {np.percentile(late, 50):.2f} s, p95 {np.percentile(late, 95):.2f} s), "
        f"{np.mean([each.deltas for each in found] or [0]):.1f} deltas each, CPU {cpu:.3f} s per second of audio, "
        f"{server.memory_info().rss / 1e6:.0f} MB",
        flush=True,
    )
    return held == len(waves)


def find(url: str, waves: list[np.ndarray], own: argparse.Namespace, server: psutil.Process) -> int:
    """The largest number of streams that are all held, within an eighth."""
    low, high = 0, own.streams
    while high <= len(waves) and measure(url, waves[:high], own, server):
        low, high = high, 2 * high
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if measure(url, waves[:middle], own, server) else (low, middle)
    return low


def simulate(waves: list[np.ndarray], own: argparse.Namespace) -> None:
    """Print the CPU time of the sessions, whose pieces arrive at a simulated time."""
    torch.set_num_threads(own.threads)
    streams = open_streams(retort.load(own.model), StreamOptions(own.chunk))
    rate = streams.transcriber.sampling_rate
    numbers = [streams.open() for _ in waves]
    resamplers = [Resampler(RATE, rate) for _ in waves]
    turns = [Turns(rate, streamed=True) for _ in waves]
    arriving = sorted(
        ((place + 1 + row / len(waves)) * PIECE, row, event)
        for row, wave in enumerate(waves)
        for place, event in enumerate(messages(wave))
    )
    spent: dict[str, float] = defaultdict(float)
    tokens, step = 0, REST * streams.chunk_seconds
    for _, group in groupby(arriving, key=lambda each: int(each[0] / step)):
        pieces: dict[int, list[np.ndarray]] = defaultdict(list)
        for _, row, event in group:
            with clocked(spent, "events"):
                samples = event_samples(parsed(event)["audio"])
            with clocked(spent, "resampling"):
                samples = resamplers[row](samples)
            if own.vad:
                with clocked(spent, "turns"):
                    turns[row].add(samples)
            pieces[numbers[row]].append(samples)
        with clocked(spent, "recognition"):
            found = streams.advance({number: np.concatenate(each) for number, each in pieces.items()})
        tokens += sum(len(each.tokens) for partial in found.values() for each in partial.finished)
    with clocked(spent, "recognition"):
        found = streams.advance({}, numbers)
    tokens += sum(len(each.tokens) for partial in found.values() for each in partial.finished)
    audio = sum(len(wave) for wave in waves) / RATE
    parts = ", ".join(f"{name} {1000 * each / audio:.2f}" for name, each in spent.items())
    total = sum(spent.values()) / audio
    print(
        f"{len(waves)} streams of {own.seconds:g} s, {tokens / audio:.1f} tokens per second: CPU {1000 * total:.2f} ms per "
        f"second of audio ({parts}); two cores have the time of {2 / total:.0f} streams"
    )


@contextmanager
def clocked(spent: dict[str, float], name: str) -> Iterator[None]:
    """Add the CPU time of a block."""
    begun = time.process_time()
    yield
    spent[name] += time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a model that was trained in chunks")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--late", type=float, default=1.0, help="seconds that a transcript may be late")
    parser.add_argument("--vad", action="store_true", help="let the server find the turns")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--simulate", action="store_true", help="measure CPU time without a clock")
    parser.add_argument("--find", action="store_true", help="find the largest number of streams")
    own = parser.parse_args()
    waves = read(own.audio, own.seconds, 4 * own.streams if own.find else own.streams)
    if own.simulate:
        simulate(waves, own)
        return
    command = [
        *(sys.executable, "-m", "retort.cli", "serve", own.model, "--port", "0"),
        *("--threads", str(own.threads), "--chunk", str(own.chunk), "--sockets", str(len(waves))),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if " at http://" not in line:
                sys.exit(f"the server did not start: {line}")
            url = f"ws{line.split(' at http')[1].strip()}/v1/realtime?intent=transcription"
            process = psutil.Process(server.pid)
            measure(url, waves[:1], own, process)  # what is slow only once
            if own.find:
                print(f"{find(url, waves, own, process)} streams are held in real time")
            elif not measure(url, waves, own, process):
                sys.exit(1)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
