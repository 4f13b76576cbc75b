"""`retort serve`: a server with OpenAI's transcription endpoints."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from retort.common.errors import UserError, print_to_stderr
from retort.verbs.console import finite, local_path, print_line
from retort.verbs.decoding import Given, Threads, decoding_options, with_decoding_options


@with_decoding_options(without=("nbest",))
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="EXP",
            help="Experiments, releases, exports or hub names (USER/NAME@REVISION); NAME=EXP serves one as NAME.",
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default only this machine is served.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 chooses a free one.")] = 8000,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Allow pages of this origin, such as https://example.org, to use the server; * allows all. "
            "May be given several times.",
        ),
    ] = None,
    max_megabytes: Annotated[float, typer.Option(callback=finite, help="Maximum size of a request.")] = 25.0,
    max_seconds: Annotated[
        float, typer.Option(callback=finite, help="Maximum duration of a file in seconds.")
    ] = 3600.0,
    queue: Annotated[
        int, typer.Option(help="Maximum number of requests being served; more are refused (429).")
    ] = 256,
    sockets: Annotated[int, typer.Option(help="Maximum number of Realtime sessions.")] = 32,
    timeout: Annotated[float, typer.Option(callback=finite, help="Seconds that a request may take.")] = 300.0,
    batch_wait: Annotated[
        float,
        typer.Option(
            callback=finite, help="Milliseconds that audio waits for that of other requests, to form a batch."
        ),
    ] = 10.0,
    batch_seconds: Annotated[
        float, typer.Option(callback=finite, help="Maximum seconds of audio in a batch, padding included.")
    ] = 60.0,
    batch_size: Annotated[int, typer.Option(help="Maximum number of segments in a batch.")] = 16,
    chunk: Annotated[
        int,
        typer.Option(
            min=0,
            help="Encoder frames of a chunk, for models trained in chunks, whose text appears during a turn; 0 selects "
            "the smallest of the training.",
        ),
    ] = 0,
    *,
    given: Given,
    threads: Threads = 1,
) -> None:
    """Serve models over HTTP and WebSocket, as OpenAI's transcription endpoints, with a page for the browser.

    SIGINT or SIGTERM stops the server: it refuses new requests and finishes those that are running.
    """
    _check_installed()
    from retort.serving.limits import Limits
    from retort.serving.server import Server, is_loopback

    limits = Limits(
        megabytes=max_megabytes,
        seconds=max_seconds,
        queue=queue,
        sockets=sockets,
        timeout=timeout,
        batch_wait=batch_wait,
        batch_seconds=batch_seconds,
        batch_size=batch_size,
    )
    options = decoding_options(given)
    server = Server([_local(each) for each in models], host, port, limits, options, cors or [], chunk=chunk)
    if "torch" in sys.modules:  # an exported model runs without it
        import torch

        torch.set_num_threads(threads)
    for note in dict.fromkeys(note for each in server.state.models.by_name.values() for note in each.notes):
        print_to_stderr(note)
    if not is_loopback(host):
        print_to_stderr(f"{host} can be reached from other machines, and the server asks for no password")

    def started() -> None:
        shown = f"[{server.host}]" if ":" in server.host else server.host
        print_line(f"serving {', '.join(server.state.models.by_name)} at http://{shown}:{server.port}")

    server.serve_until_stopped(started)


def _local(source: str) -> str:
    """Refuse URLs."""
    name, equals, rest = source.partition("=")
    local_path(rest if equals else name)
    return source


def _check_installed() -> None:
    from importlib.util import find_spec

    for package in ("starlette", "uvicorn", "websockets", "python_multipart"):
        if find_spec(package) is None:
            raise UserError(
                f"{package} is not installed", remedy="Install it: pip install 'retort-asr[serve]'"
            )
