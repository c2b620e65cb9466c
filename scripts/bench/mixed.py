"""Memory of the server over a thousand mixed jobs, with a backend that takes none."""

from __future__ import annotations

import asyncio
import base64
import io

from aiohttp import ClientSession
from PIL import Image

from scripts.bench.figures import Run
from scripts.bench.server import GENERATIONS, SMALL, rss, serving, stream

FLAGS = ("--backend", "grey_backend:Grey", "--max-queue", "64")
CLIENTS = 8
JOBS = 1000
"""As many as ended jobs are kept; so many before anything is compared."""
PART = 250


async def mixed(run: Run) -> None:
    """Pictures of several sizes, streams, previews, edits, AUTOMATIC1111, refusals and cancels."""
    async with serving(run, flags=FLAGS) as (server, session):
        await jobs(session, JOBS)
        used = []
        for _ in range(JOBS // PART):
            await jobs(session, PART)
            used.append(rss(server.http))
    run.tell(f"memory of the server over {JOBS} mixed jobs", "MB", used)
    run.tell_ratios("the same, last ÷ first", used[-1:], used[:1], most=1.05)


async def jobs(session: ClientSession, count: int) -> None:
    numbers = iter(range(count))

    async def one_client() -> None:
        for number in numbers:
            await KINDS[number % len(KINDS)](session)

    await asyncio.gather(*(one_client() for _ in range(CLIENTS)))


async def large(session: ClientSession) -> None:
    await read(session, GENERATIONS, {**SMALL, "size": "512x512", "n": 2})


async def streamed(session: ClientSession) -> None:
    await read(session, GENERATIONS, {**stream(SMALL, "both"), "steps": 20, "partial_images": 3})


async def edited(session: ClientSession) -> None:
    await read(session, "/v1/images/edits", {**SMALL, "image": [PNG], "strength": 0.5})


async def a1111(session: ClientSession) -> None:
    await read(session, "/sdapi/v1/txt2img", {"prompt": "x", "width": 64, "height": 64, "steps": 4})


async def refused(session: ClientSession) -> None:
    await read(session, GENERATIONS, {**SMALL, "sampler": "none of these"})


async def cancelled(session: ClientSession) -> None:
    async with session.post(GENERATIONS, json=SMALL, headers={"Prefer": "respond-async"}) as answer:
        job = await answer.json()
    async with session.delete(f"/v1/jobs/{job['id']}") as answer:
        await answer.read()


async def read(session: ClientSession, path: str, body: dict[str, object]) -> None:
    async with session.post(path, json=body) as answer:
        await answer.read()


def _png() -> str:
    out = io.BytesIO()
    Image.effect_noise((128, 128), 80).convert("RGB").save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


PNG = f"data:image/png;base64,{_png()}"
KINDS = (large, streamed, edited, a1111, refused, cancelled)
