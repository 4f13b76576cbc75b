"""How many real-time streams a model holds on this machine.

    python benchmarks/streams.py MODEL --audio FOLDER [--streams 64] [--seconds 20] [--chunk 8] [--find]

A server is started, and the clips are sent to its Realtime socket in pieces of 100 ms, at the speed at which they were
spoken. A stream that is late by more than a chunk at its end is not held. `--find` doubles and halves the number of
streams until the largest number is known.
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
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from websockets.asyncio.client import connect

from retort.audio.files import open_audio

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


async def speak(url: str, wave: np.ndarray, vad: bool, delay: float) -> Stream:
    await asyncio.sleep(delay)  # sessions do not begin at the same moment
    async with connect(url, max_size=1 << 24) as socket:
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
        started, size = time.perf_counter(), round(PIECE * RATE)
        for number, start in enumerate(range(0, len(wave), size)):
            await asyncio.sleep(max(0.0, started + (number + 1) * PIECE - time.perf_counter()))
            audio = base64.b64encode(wave[start : start + size].tobytes()).decode()
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        ended = started + len(wave) / RATE
        await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        await asyncio.wait_for(listening, 300)
        return Stream(time.perf_counter() - ended, deltas, " ".join(texts))


async def trial(
    url: str, waves: list[np.ndarray], vad: bool, server: psutil.Process
) -> tuple[list[Stream], float]:
    """The streams, and the CPU time of the server per second of audio and stream."""
    before = server.cpu_times()
    found = await asyncio.gather(
        *(speak(url, wave, vad, number / len(waves)) for number, wave in enumerate(waves)),
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
    parser.add_argument("--find", action="store_true", help="find the largest number of streams")
    own = parser.parse_args()
    waves = read(own.audio, own.seconds, 4 * own.streams if own.find else own.streams)
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
