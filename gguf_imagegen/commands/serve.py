"""Running the server: the socket, the banner, progress while the model loads, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import os

from aiohttp import web
from rich.console import Console

from gguf_imagegen.api.app import make_app
from gguf_imagegen.api.callers import CALLERS
from gguf_imagegen.api.connections import bounds_here, listen
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.tls import Certificate, TlsError, certificate
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.commands.pull import pull_missing
from gguf_imagegen.engines.backend import Backend, UnknownBackend, named_backend
from gguf_imagegen.engines.sdcpp.choice import choose_build
from gguf_imagegen.jobs import state
from gguf_imagegen.machine import heap, logs, loop, scratch, signals, stdio
from gguf_imagegen.pool.ray import nodes
from gguf_imagegen.settings import Settings, is_loopback

log = logging.getLogger(__name__)
LAST_FRAMES = 5.0
"""Seconds that open answers get to write their last bytes."""


async def serve(
    settings: Settings,
    backend: Backend,
    console: Console,
    kept: state.State | None,
    tls: Certificate | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    catalog, default = choose_models(settings)
    app = make_app(settings, catalog, default, backend, kept)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=LAST_FRAMES)
    await runner.setup()
    assert runner.server is not None
    listening: asyncio.Server | None = None
    try:
        try:
            listening = await listen(
                runner.server,
                settings.host,
                settings.port,
                bounds_here(),
                root_path=settings.root_path,
                tls=tls.context if tls else None,
            )
        except OSError as exc:
            where, why = f"{settings.host}:{settings.port}", os.strerror(exc.errno or 0)
            words = f"gguf-imagegen: cannot listen on {where}: {why}; choose another --port"
            console.print(words, style="red", soft_wrap=True)
            return 1
        stop = _stop_on_signals()
        _banner(console, settings, listening.sockets[0].getsockname()[1], default)
        _read_callers_again_on_hangup(app)
        aside = [asyncio.create_task(_tell_loading(app, console))]
        if tls is not None:
            aside.append(asyncio.create_task(tls.watch()))
        await stop.wait()
        for task in aside:
            task.cancel()
        await app[SERVICE].scheduler.drain(settings.grace)
    finally:
        if listening is not None:
            listening.close()
        await runner.cleanup()
    return 0


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    signals.on_stop(stop.set)
    return stop


def _read_callers_again_on_hangup(app: web.Application) -> None:
    """SIGHUP, where there is one and a file to read."""
    if app[SERVICE].settings.callers is not None:
        signals.on_hangup(app[CALLERS].read_again)


def _banner(console: Console, settings: Settings, port: int, default: str) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "https" if settings.tls_cert else "http"
    base = settings.public_url or f"{scheme}://{host}:{port}{settings.root_path}"
    console.print(f"gguf-imagegen serves [bold]{default}[/] at {base}/v1", highlight=False)
    if settings.keyed:
        console.print("  a key is needed")
    elif not is_loopback(settings.host):
        console.print("  without a key, open to everybody who can reach this address", style="yellow")


async def _tell_loading(app: web.Application, console: Console) -> None:
    """A status line while the default model loads; one line when it is ready or has failed."""
    pool, entry = app[SERVICE].pool, app[SERVICE].default
    default = entry.id
    with console.status(f"loading {default}") as status:
        while not pool.entries and entry.name not in pool.errors:
            if pool.loading is not None and pool.loading.total:
                what = pool.loading
                status.update(f"loading {what.what}: {what.done}/{what.total} tensors")
            await asyncio.sleep(0.05)
    if error := pool.errors.get(entry.name):
        console.print(f"  {default} could not be loaded: {error}", style="red", highlight=False)
    else:
        kernels = f" with {pool.kernels} kernels" if pool.kernels else ""
        console.print(f"  ready on {pool.backend}{kernels}", highlight=False)


def run_server(settings: Settings) -> int:
    stdio.survive_readers()
    logs.set_up(settings.log_level)
    heap.keep_large_blocks_apart()
    scratch.sweep()
    console = Console(stderr=True)
    try:
        if settings.cluster:
            nodes.require_ray()
        choose_build(settings)
        backend = named_backend(settings.backend)(settings)
        tls = certificate(settings)
        with state.folder(settings) as kept:
            return pull_missing(settings) or loop.run(serve(settings, backend, console, kept, tls))
    except (state.Unusable, UnknownBackend, TlsError) as exc:
        console.print(f"gguf-imagegen: {exc}", style="red", soft_wrap=True)
        return 1
