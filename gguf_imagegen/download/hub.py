"""The Hugging Face hub: what a file is, its bytes from an offset on, and the hub's errors as ours.

The one module that knows huggingface_hub. Its `hf_hub_download` is not used: since version 1.18 it writes to
a file of a new name each time and deletes it on failure, so that nothing is left to go on from
(https://github.com/huggingface/huggingface_hub/pull/4228). Its addresses, token, headers, session, offline
switch and errors are. What the environment says is read anew each time, the library keeps some of it.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpcore2
import httpx2
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_session,
    get_token,
    hf_hub_url,
    hf_raise_for_status,
    is_offline_mode,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # documented, not re-exported

from gguf_imagegen import __version__
from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.vocabulary.errors import (
    HubFailed,
    HubFileNotFound,
    HubOffline,
    HubRepositoryNotFound,
    HubRevisionNotFound,
    HubTimeout,
    HubTokenInvalid,
    HubTokenMissing,
    HubUnreachable,
    LicenceNotAccepted,
    PullFailed,
)

TOKENS = "https://huggingface.co/settings/tokens"
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)

httpcore2.HTTP11Connection.READ_NUM_BYTES = 1 << 20
"""Bytes that are read at a time: with its 64 KiB a fast line takes more of the CPU than curl does."""


def hub_endpoint() -> str:
    """Where the hub is: HF_ENDPOINT, else the real one."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"


def hub_token() -> str | None:
    """HF_TOKEN or the stored login; one that cannot stand in a header is refused without repeating it."""
    given = os.environ.get("HF_TOKEN", "").strip()  # the library takes line breaks out of it
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if not all(re.fullmatch(r"[\x21-\x7e]*", text) for text in (given, token or "")):
        raise HubTokenInvalid("HF_TOKEN holds characters that no token has; set it anew")
    return token


def hub_is_off() -> bool:
    """HF_HUB_OFFLINE: nobody asks the hub anything."""
    said = os.environ.get("HF_HUB_OFFLINE", "").strip()
    return is_offline_mode() or said.upper() in constants.ENV_VARS_TRUE_VALUES


@dataclass(frozen=True)
class Remote:
    """A file as the hub describes it.

    `sha256` is None for the small files that the hub keeps in git itself; `key` names the content, 16 hex
    digits; `revision` is the commit, so that later requests are for the same content.
    """

    size: int
    sha256: str | None
    key: str
    revision: str


class Hub:
    """HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured; usable from several threads."""

    def __init__(self) -> None:
        self._endpoint = hub_endpoint()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()

    def look(self, source: Source) -> Remote:
        """Size and hash of a file; PullFailed says what stands in the way."""
        with _our_errors(source):
            found = get_hf_file_metadata(
                self._url(source, source.revision), headers=self._headers(), endpoint=self._endpoint
            )
        etag = found.etag or ""
        key = re.sub(r"[^0-9a-f]", "", etag.lower())[:16]
        if found.size is None or found.commit_hash is None or len(key) < 16:
            raise PullFailed(
                f"{source.file}: what answered does not describe files as a hub does; check HF_ENDPOINT"
            )
        sha256 = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None
        return Remote(found.size, sha256, key, found.commit_hash)

    @contextmanager
    def bytes_from(self, source: Source, remote: Remote, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Where the bytes that come begin (`start`, or 0 if the server cannot resume), and the bytes."""
        headers = {**self._headers(), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        timeout = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        url = self._url(source, remote.revision)
        with (
            _our_errors(source),
            get_session().stream("GET", url, headers=headers, timeout=timeout) as response,
            self._open(response),
        ):
            hf_raise_for_status(response)
            yield (start if response.status_code == 206 else 0), response.iter_bytes()

    def hang_up(self) -> None:
        """Break off all transfers, also those that wait for the server."""
        with self._lock:
            for one in self._sockets:
                try:
                    socket.socket.shutdown(
                        one, socket.SHUT_RDWR
                    )  # not TLS's own, which is not for two threads
                except OSError:  # it has ended by itself
                    continue

    def _url(self, source: Source, revision: str) -> str:
        return hf_hub_url(source.repo, source.file, revision=revision, endpoint=self._endpoint)

    def _headers(self) -> dict[str, str]:
        return build_hf_headers(
            token=hub_token() or False, library_name="gguf-imagegen", library_version=__version__
        )

    @contextmanager
    def _open(self, response: httpx2.Response) -> Iterator[None]:
        network = response.extensions.get("network_stream")
        one = network.get_extra_info("socket") if network is not None else None
        with self._lock:
            self._sockets |= {one} if one is not None else set()
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(one)


@contextmanager
def _our_errors(source: Source) -> Iterator[None]:
    try:
        yield
    except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OfflineModeIsEnabled) as exc:
        raise _translated(exc, source) from exc


def _translated(exc: Exception, source: Source) -> PullFailed:
    """One of ours for every error of the hub's client; no address but the repository's is in the words."""
    where = f"{source.repo}, revision {source.revision}"
    match exc:
        case OfflineModeIsEnabled():
            return HubOffline(f"{source.file} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it")
        case GatedRepoError() if exc.response.status_code == 401 and not hub_token():
            return HubTokenMissing(
                f"{source.url} is gated: accept its licence there, make a token at {TOKENS} and set HF_TOKEN"
            )
        case GatedRepoError() if exc.response.status_code != 401:
            return LicenceNotAccepted(
                f"{source.url} is gated and the token's account has no access: accept the licence there,"
                " and let the token read gated repositories"
            )
        case GatedRepoError():
            return _bad_token(source)
        case RevisionNotFoundError():
            return HubRevisionNotFound(f"the hub has no revision {source.revision!r} of {source.url}")
        case RemoteEntryNotFoundError():
            return HubFileNotFound(f"the hub has no file {source.file!r} in {where}")
        case RepositoryNotFoundError():
            private = "" if hub_token() else ", or it is private and HF_TOKEN is not set"
            return HubRepositoryNotFound(f"the hub has no repository {source.repo!r}{private}")
        case HfHubHTTPError():
            return _by_status(exc, source)
        case httpx2.TimeoutException():
            return HubTimeout(f"{source.file}: the hub did not answer in time; pull again to go on")
        case httpx2.ConnectError() | httpx2.ProxyError():
            return HubUnreachable(
                f"{source.file}: the hub cannot be reached; check the network, HF_ENDPOINT and proxies"
            )
        case httpx2.TransportError():
            return HubFailed(f"{source.file}: the connection to the hub was broken off; pull again to go on")
        case _:
            return PullFailed(f"{source.file}: the hub's answer is not understood ({type(exc).__name__})")


def _by_status(exc: HfHubHTTPError, source: Source) -> PullFailed:
    status = exc.response.status_code
    if status == 401:
        if hub_token():
            return _bad_token(source)
        return HubRepositoryNotFound(
            f"the hub has no repository {source.repo!r}, or HF_TOKEN must be set for it"
        )
    if status == 403:
        return LicenceNotAccepted(f"the hub forbids to read {source.url}: look there what the token lacks")
    if status == 404:
        return HubFileNotFound(
            f"the hub has no file {source.file!r} in {source.repo}, revision {source.revision}"
        )
    if status in RETRY_STATUS:
        wait = exc.response.headers.get("Retry-After", "")
        return HubFailed(
            f"{source.file}: the hub answers with status {status}; try again later",
            retry_after=int(wait) if wait.isdecimal() else None,
        )
    return PullFailed(f"{source.file}: the hub answers with status {status}")


def _bad_token(source: Source) -> HubTokenInvalid:
    return HubTokenInvalid(
        f"the hub refuses the token for {source.url}: check HF_TOKEN, or make one at {TOKENS}"
    )
