"""What has changed on the hubs since the catalog was written: nothing is downloaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from gguf_imagegen.catalog.address import hub_endpoint
from gguf_imagegen.catalog.check import Finding
from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.download.hub import Remote, hub_token
from gguf_imagegen.download.hubs import Hubs
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
DEADLINE = 600.0
PAUSE = 0.5
"""Requests under way together; seconds of all, and before the second try of one."""


def check_hub(sources: Mapping[str, Source]) -> list[Finding]:
    """One finding for each difference; a file that several places name is asked for once.

    What concerns all files alike is raised.
    """
    files: dict[tuple[str, str, str, str], tuple[str, Source]] = {}
    for where, source in ((where, piece) for where, each in sources.items() for piece in each.pieces):
        files.setdefault((source.hub, source.repo, source.revision, source.file), (where, source))
    hubs, until = Hubs(), time.monotonic() + DEADLINE

    def look(named: tuple[str, Source]) -> list[Finding]:
        if time.monotonic() > until:
            raise HubTimeout(f"{hub_endpoint()} did not answer for all files within {DEADLINE:.0f} seconds")
        where, source = named
        return [Finding(where, words, fault) for words, fault in _differences(hubs.look, source)]

    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="drift")
    try:
        return [finding for found in pool.map(look, files.values()) for finding in found]
    finally:
        pool.shutdown(cancel_futures=True)


def _differences(look: Callable[[Source], Remote], source: Source) -> list[tuple[str, bool]]:
    """In words, and whether it is a fault."""
    try:
        remote = _ask_again(look, source)
    except (HubOffline, HubTokenInvalid, HubUnreachable):
        raise
    except (HubTokenMissing, LicenceNotAccepted) as exc:
        if source.gated:
            return [(str(exc), False)]
        return [(f"{source.file}: {source.repo} is gated now, or private", True)]
    except ImagegenError as exc:
        return [(str(exc), True)]
    words = []
    if source.gated and not hub_token():
        words.append(f"{source.file}: {source.repo} is not gated any more")
    if source.bytes is not None and source.bytes != remote.size:
        words.append(f"{source.file}: has {remote.size} bytes on the hub, {source.bytes} in the catalog")
    if None not in (source.sha256, remote.sha256) and source.sha256 != remote.sha256:
        words.append(f"{source.file}: sha256 on the hub is {remote.sha256}")
    return [(said, True) for said in words]


def _ask_again(look: Callable[[Source], Remote], source: Source) -> Remote:
    """A hub that has had a bad moment gets a second one."""
    try:
        return look(source)
    except (HubFailed, HubTimeout, HubUnreachable):
        time.sleep(PAUSE)
        return look(source)
