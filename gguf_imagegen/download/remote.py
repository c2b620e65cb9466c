"""Headers of model files on the web, read by HTTP ranges: a few megabytes, however large the file is.

A token goes to the hub's own host alone, wherever it redirects to. No server can make this read more than
`MOST_BYTES`, or take longer than `DEADLINE`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BufferedReader, RawIOBase
from urllib.parse import quote, unquote, urljoin, urlsplit

import aiohttp
from yarl import URL

from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.download.hub import hub_endpoint, hub_is_off, hub_token
from gguf_imagegen.modelfiles.header import Header, parse_header
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
    ImagegenError,
    InvalidModelFile,
    InvalidRequest,
    LicenceNotAccepted,
)

FIRST_WINDOW = 1 << 20
LARGEST_WINDOW = 8 << 20
MOST_BYTES = 64 << 20
DEADLINE = 60.0
PAUSE = 15.0
"""Seconds: for all of a header, and for a server that says nothing."""
REDIRECTS = 5
_PIECE = 64 << 10


def source_url(source: Source) -> str:
    """Where a file of the catalog can be read."""
    return f"{hub_endpoint()}/{source.repo}/resolve/{quote(source.revision, safe='')}/{quote(source.file)}"


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def remote_header(url: str, deadline: float = DEADLINE) -> Header:
    """The checked header of a GGUF or safetensors file at a web address; the hub's page of a file will do.

    Blocks for `deadline` seconds at most. Raises InvalidModelFile for what the file holds, and errors
    below PullFailed for what prevents reading it.
    """
    file = _RemoteFile(_direct(url), deadline)
    file.readinto(bytearray(0))  # learns the size
    return parse_header(BufferedReader(file, _PIECE), file.name, file.size)


def headers_for(url: str) -> dict[str, str]:
    """What a request to this address carries: the token, if it is the hub's own."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "gguf-imagegen"}
    if same_origin(url, hub_endpoint()):
        if hub_is_off():
            raise HubOffline("HF_HUB_OFFLINE says that this machine is offline")
        if token := hub_token():
            headers["Authorization"] = f"Bearer {token}"
    return headers


def same_origin(one: str, other: str) -> bool:
    return _origin(one) == _origin(other)


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80}.get(parts.scheme, 443)


def _direct(url: str) -> str:
    """The address of the file itself, spelt as HTTP wants it."""
    try:
        parts = urlsplit(url)
        known = is_url(url) and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known = False
    if not known:
        raise InvalidRequest(f"{url[:100]!r} is not a web address")
    path = parts.path
    if same_origin(url, hub_endpoint()) or same_origin(url, "https://huggingface.co"):
        path = re.sub(r"^(/[^/]+/[^/]+)/blob/", r"\1/resolve/", path)
    query = f"?{quote(parts.query, safe='=&%+,:;/@!~*')}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{quote(path, safe='/%:@+,;=!~*()')}{query}"


class _RemoteFile(RawIOBase):
    """A file on a web server, seen through a window that moves on and grows, as a header is read.

    A server that ignores ranges sends its file from the start each time: what lies before the window is
    read over, which counts as well, so that this ends soon.
    """

    def __init__(self, url: str, deadline: float) -> None:
        self.name = "".join(c if c.isprintable() else "?" for c in unquote(urlsplit(url).path).split("/")[-1])
        self.size = -1
        self._url = url
        self._position = 0
        self._start = 0
        self._window = b""
        self._next = FIRST_WINDOW
        self._left = MOST_BYTES
        self._deadline = time.monotonic() + deadline

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self.size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if self._position == self.size:
            return 0
        if not self._start <= self._position < self._start + len(self._window):
            self._move_window()
        begin = self._position - self._start
        piece = self._window[begin : begin + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _move_window(self) -> None:
        start, count = self._position, min(self._next, self._left)
        if count <= 0:
            raise InvalidModelFile(f"{self.name}: its header does not end within {MOST_BYTES >> 20} MiB")
        host = urlsplit(self._url).hostname
        try:
            self._window, self._start = asyncio.run(self._fetch(start, count)), start
        except asyncio.TimeoutError as exc:
            raise HubTimeout(f"{self.name}: {host} did not send it in time") from exc
        except aiohttp.ClientConnectorError as exc:
            raise HubUnreachable(f"{self.name}: {host} cannot be reached") from exc
        except (OSError, aiohttp.ClientError, ValueError) as exc:
            raise HubFailed(f"{self.name}: {host} broke its answer off") from exc
        self._next = min(2 * self._next, LARGEST_WINDOW)

    async def _fetch(self, start: int, count: int) -> bytes:
        left = max(self._deadline - time.monotonic(), 0.001)
        timeout = aiohttp.ClientTimeout(total=left, sock_connect=PAUSE, sock_read=PAUSE)
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False, trust_env=True) as session,
            self._answer(session, f"bytes={start}-{start + count - 1}") as answer,
        ):
            before = self._look_at(answer, start)
            if before + count > self._left:
                raise InvalidModelFile(f"{self.name}: the server cannot send a part of a file")
            await self._read(answer, before)
            return await self._read(answer, min(count, self.size - start))

    @asynccontextmanager
    async def _answer(
        self, session: aiohttp.ClientSession, part: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer of the last of all addresses that one is redirected to, each asked in its own right."""
        url = self._url
        for _ in range(REDIRECTS):
            headers = {"Range": part, **headers_for(url)}
            async with session.get(URL(url, encoded=True), headers=headers, allow_redirects=False) as answer:
                if answer.status not in (301, 302, 303, 307, 308):
                    if answer.status not in (200, 206):
                        raise refusal(answer, self.name)
                    yield answer
                    return
                place = urljoin(url, answer.headers.get("Location", ""))
            if not is_url(place) or (is_secure(url) and not is_secure(place)):
                raise HubFailed(f"{self.name}: {urlsplit(url).hostname} redirects to an unsafe address")
            url = place
        raise HubFailed(f"{self.name}: {urlsplit(url).hostname} redirects in a ring")

    def _look_at(self, answer: aiohttp.ClientResponse, start: int) -> int:
        """Learn the size; the number of bytes that come before those asked for."""
        headers = answer.headers
        if headers.get("Content-Encoding", "identity") != "identity":
            raise HubFailed(f"{self.name}: the server sends the file compressed")
        if answer.status == 206:
            match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", headers.get("Content-Range", ""))
            if match is None or int(match[1]) != start:
                raise HubFailed(f"{self.name}: the server sends another part of the file than was asked for")
            size, before = int(match[2]), 0
        else:
            length = headers.get("Content-Length", "")
            if not re.fullmatch(r"\d{1,18}", length):
                raise HubFailed(f"{self.name}: the server does not say how large the file is")
            size, before = int(length), start
        if self.size not in (-1, size):
            raise HubFailed(f"{self.name}: the file changed while it was read")
        self.size = size
        return before

    async def _read(self, answer: aiohttp.ClientResponse, count: int) -> bytes:
        pieces: list[bytes] = []
        while count > 0:
            piece = await answer.content.read(min(count, _PIECE))
            if not piece:
                raise HubFailed(f"{self.name}: the server broke its answer off")
            pieces.append(piece)
            count -= len(piece)
            self._left -= len(piece)
        return b"".join(pieces)


def is_secure(url: str) -> bool:
    return url.lower().startswith("https:")


def refusal(answer: aiohttp.ClientResponse, name: str) -> ImagegenError:
    """What a status other than success means; the hub says more in `X-Error-Code`."""
    said, status, host = answer.headers.get("X-Error-Code", ""), answer.status, answer.url.host
    asked = "Authorization" in answer.request_info.headers
    if status == 416:
        return InvalidModelFile(f"{name}: the file is empty")
    if said == "GatedRepo" or (status == 403 and asked):
        page = "/".join(["https://huggingface.co", *answer.url.parts[1:3]])
        if asked:
            return LicenceNotAccepted(f"{name}: accept the licence of its repository first, at {page}")
        return HubTokenMissing(
            f"{name}: its repository is gated; accept its licence at {page} and set HF_TOKEN"
        )
    if said == "RepoNotFound":
        return HubRepositoryNotFound(f"{name}: there is no such repository, or it is private")
    if said == "RevisionNotFound":
        return HubRevisionNotFound(f"{name}: its repository has no such revision")
    if status in (401, 403):
        if asked:
            return HubTokenInvalid(f"{name}: {host} does not take HF_TOKEN")
        return HubTokenMissing(f"{name}: {host} wants to know who asks; set HF_TOKEN")
    if status in (404, 410):
        return HubFileNotFound(f"{name}: there is no such file at {host}")
    return HubFailed(f"{name}: {host} answered with HTTP {status}")
