"""What has changed on the hub since the catalog was written: asked with HEAD, nothing is downloaded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from gguf_imagegen.catalog.check import Finding
from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.download.hub import hub_endpoint
from gguf_imagegen.download.remote import headers_for, refusal, same_origin, source_url
from gguf_imagegen.vocabulary.errors import (
    HubFailed,
    HubOffline,
    HubTimeout,
    HubTokenInvalid,
    HubTokenMissing,
    HubUnreachable,
    ImagegenError,
    LicenceNotAccepted,
)

AT_ONCE = 8
TIMEOUT = 20.0
DEADLINE = 600.0
PAUSE = 0.5
REDIRECTS = 5
"""Requests under way together; seconds of one, of all, and before the second try of one."""


async def check_hub(sources: Mapping[str, Source]) -> list[Finding]:
    """One finding for each difference; a file that several places name is asked for once."""
    files: dict[tuple[str, str, str], tuple[str, Source]] = {}
    for where, source in sources.items():
        files.setdefault((source.repo, source.revision, source.file), (where, source))
    gate = asyncio.Semaphore(AT_ONCE)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session:

        async def look(where: str, source: Source) -> list[Finding]:
            async with gate:
                return [Finding(where, words, fault) for words, fault in await _differences(session, source)]

        try:
            found = await asyncio.wait_for(
                asyncio.gather(*(look(where, source) for where, source in files.values())), DEADLINE
            )
        except asyncio.TimeoutError as exc:
            raise HubTimeout(
                f"{hub_endpoint()} did not answer for all files within {DEADLINE:.0f} seconds"
            ) from exc
    return [finding for findings in found for finding in findings]


async def _differences(session: aiohttp.ClientSession, source: Source) -> list[tuple[str, bool]]:
    """In words, and whether it is a fault; what concerns all files alike is raised."""
    try:
        size, sha256, known = await _ask_again(session, source)
    except (HubOffline, HubTokenInvalid, HubUnreachable):
        raise
    except (HubTokenMissing, LicenceNotAccepted) as exc:
        if source.gated:
            return [(str(exc), False)]
        return [(f"{source.file}: {source.repo} is gated now, or private", True)]
    except ImagegenError as exc:
        return [(str(exc), True)]
    words = []
    if source.gated and not known:
        words.append(f"{source.file}: {source.repo} is not gated any more")
    if None not in (source.bytes, size) and source.bytes != size:
        words.append(f"{source.file}: has {size} bytes on the hub, {source.bytes} in the catalog")
    if None not in (source.sha256, sha256) and source.sha256 != sha256:
        words.append(f"{source.file}: sha256 on the hub is {sha256}")
    return [(said, True) for said in words]


async def _ask_again(session: aiohttp.ClientSession, source: Source) -> tuple[int | None, str | None, bool]:
    """A hub that has had a bad moment gets a second one."""
    try:
        return await _ask(session, source)
    except (HubFailed, HubTimeout, HubUnreachable):
        await asyncio.sleep(PAUSE)
        return await _ask(session, source)


async def _ask(session: aiohttp.ClientSession, source: Source) -> tuple[int | None, str | None, bool]:
    """Size and hash as the hub states them, and whether it knew who asked."""
    url = source_url(source)
    for _ in range(REDIRECTS):
        headers = headers_for(url)
        try:
            async with session.head(URL(url, encoded=True), headers=headers, allow_redirects=False) as answer:
                if answer.status >= 400:
                    raise refusal(answer, source.file)
                place = urljoin(url, answer.headers.get("Location", url))
                if answer.status < 300 or "X-Linked-Etag" in answer.headers or not same_origin(place, url):
                    return *_stated(answer), "Authorization" in headers
        except asyncio.TimeoutError as exc:
            raise HubTimeout(f"{source.file}: the hub did not answer in time") from exc
        except aiohttp.ClientConnectorError as exc:
            raise HubUnreachable(f"{source.file}: the hub cannot be reached") from exc
        except (OSError, aiohttp.ClientError, ValueError) as exc:
            raise HubFailed(f"{source.file}: the hub broke its answer off") from exc
        url = place
    raise HubFailed(f"{source.file}: the hub redirects in a ring")


def _stated(answer: aiohttp.ClientResponse) -> tuple[int | None, str | None]:
    """A file of git's own has no sha256; its ETag is that of git."""
    headers = answer.headers
    length = headers.get("Content-Length", "") if answer.status == 200 else ""
    length = headers.get("X-Linked-Size", length)
    etag = headers.get("X-Linked-Etag", headers.get("ETag", "")).removeprefix("W/").strip('"')
    return (
        int(length) if re.fullmatch(r"\d{1,18}", length) else None,
        etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None,
    )
