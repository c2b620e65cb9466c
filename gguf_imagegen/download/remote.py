"""Headers of model files on the web, read by HTTP ranges: a few megabytes, however large the file is.

No server can make this read more than `MOST_BYTES`, or take longer than `DEADLINE`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from io import BufferedReader, RawIOBase
from urllib.parse import quote, urlsplit

from gguf_imagegen.catalog.address import HUGGINGFACE, address_of, hub_endpoint, is_url, same_origin
from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.download.hub import Hub, HuggingFace
from gguf_imagegen.download.web import Asked, Response, Web, name_of
from gguf_imagegen.modelfiles.header import Header, parse_header
from gguf_imagegen.modelfiles.split import joined
from gguf_imagegen.vocabulary.errors import HubFailed, HubTimeout, InvalidModelFile, InvalidRequest

FIRST_WINDOW = 1 << 20
LARGEST_WINDOW = 8 << 20
MOST_BYTES = 64 << 20
DEADLINE = 60.0
PAUSE = 15.0
"""Seconds: for all of a header, and for a server that says nothing."""
_PIECE = 64 << 10


def remote_header(url: str, deadline: float = DEADLINE) -> Header:
    """The checked header of a GGUF or safetensors file at a web address; the hub's page of a file will do.

    Blocks for `deadline` seconds at most. Raises InvalidModelFile for what the file holds, and errors
    below PullFailed for what prevents reading it.
    """
    direct, hub = _direct(url), HuggingFace()
    address = address_of(direct)
    if address is not None and address.file and same_origin(direct, hub_endpoint()):
        return hub_header(
            hub, Source(repo=address.repo, file=address.file, revision=address.revision), deadline
        )
    return _header(_RemoteFile(direct, direct, hub.web, hub.headers, deadline))


def hub_header(hub: Hub, source: Source, deadline: float = DEADLINE) -> Header:
    """The same of a file of a hub, or of what its parts make up; of each part within `deadline`."""
    headers = [
        _header(_RemoteFile(hub.url(piece), piece, hub.web, hub.headers, deadline), split=bool(source.parts))
        for piece in source.pieces
    ]
    return joined(headers, source.path.name) if source.parts else headers[0]


def _header(file: _RemoteFile, *, split: bool = False) -> Header:
    file.readinto(bytearray(0))  # learns the size
    return parse_header(BufferedReader(file, _PIECE), file.name, file.size, split=split)


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
    if same_origin(url, hub_endpoint()) or same_origin(url, HUGGINGFACE):
        path = re.sub(r"^(/[^/]+/[^/]+)/blob/", r"\1/resolve/", path)
    query = f"?{quote(parts.query, safe='=&%+,:;/@!~*')}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{quote(path, safe='/%:@+,;=!~*()')}{query}"


class _RemoteFile(RawIOBase):
    """A file on a web server, seen through a window that moves on and grows, as a header is read.

    A server that ignores ranges sends its file from the start each time: what lies before the window is
    read over, which counts as well, so that this ends soon.
    """

    def __init__(
        self, url: str, asked: Asked, web: Web, headers: Callable[[str], dict[str, str]], deadline: float
    ) -> None:
        self.name = name_of(asked)
        self.size = -1
        self._url = url
        self._asked = asked
        self._web = web
        self._headers = headers
        self._ranges = True
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
        self._window, self._start = self._fetch(start, count), start
        self._next = min(2 * self._next, LARGEST_WINDOW)

    def _fetch(self, start: int, count: int) -> bytes:
        """One that refuses every range with 416 is asked once more, without."""
        part = {"Range": f"bytes={start}-{start + count - 1}"} if self._ranges else {}
        pause = max(min(self._deadline - time.monotonic(), PAUSE), 0.001)
        with self._web.answer(
            "GET", self._url, self._asked, lambda url: self._headers(url) | part, timeout=pause
        ) as answer:
            if answer.status_code != 416:
                return self._part(answer, start, count)
            whole = re.search(r"/(\d{1,18})$", answer.headers.get("Content-Range", ""))
        if not (self._ranges and whole and int(whole[1]) > start):
            raise InvalidModelFile(f"{self.name}: the file is empty")
        self._ranges = False
        return self._fetch(start, count)

    def _part(self, answer: Response, start: int, count: int) -> bytes:
        before = self._look_at(answer, start)
        if before + count > self._left:
            raise InvalidModelFile(f"{self.name}: the server cannot send a part of a file")
        return self._read(answer, before, min(count, self.size - start))

    def _look_at(self, answer: Response, start: int) -> int:
        """Learn the size; the number of bytes that come before those asked for."""
        headers = answer.headers
        if headers.get("Content-Encoding", "identity") != "identity":
            raise HubFailed(f"{self.name}: the server sends the file compressed")
        if answer.status_code == 206:
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

    def _read(self, answer: Response, before: int, count: int) -> bytes:
        """`count` bytes after `before` others; no more of them is read than comes with the last."""
        content = bytearray()
        for piece in answer.iter_raw(_PIECE) if count else ():
            content += piece
            if len(content) >= before + count:
                break
            if time.monotonic() > self._deadline:
                raise HubTimeout(f"{self.name}: {answer.url.host} did not send it in time")
        if len(content) < before + count:
            raise HubFailed(f"{self.name}: {answer.url.host} broke its answer off")
        self._left -= before + count
        return bytes(content[before : before + count])
