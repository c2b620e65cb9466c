"""Hubs: what a repository holds, what a file is, and its bytes from an offset on; first the Hugging Face one.

huggingface_hub's `hf_hub_download` is not used: since version 1.18 it writes to a file of a new name each
time and deletes it on failure, so that nothing is left to resume from
(https://github.com/huggingface/huggingface_hub/pull/4228). Its addresses, token, headers, session and
offline switch are. What the environment says is read anew each time, the library keeps some of it.
"""

from __future__ import annotations

import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants, get_token, is_offline_mode
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # documented, not re-exported

from gguf_imagegen import __version__
from gguf_imagegen.catalog.address import file_url, hub_endpoint, same_origin
from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.download.web import Asked, Response, Web, name_of, offline
from gguf_imagegen.vocabulary.errors import HubFailed, HubTimeout, HubTokenInvalid, PullFailed

MOST_JSON = 16 << 20
JSON_DEADLINE = 60.0
"""Bytes, and seconds, that the description of a repository may take."""


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


@dataclass(frozen=True)
class Repository:
    """What a hub lists: `files` with what it states of them, and the repositories this one was made from."""

    files: tuple[Source, ...]
    base_models: tuple[str, ...] = ()
    licence: str = "unknown"


class Hub(ABC):
    """One hub; usable from several threads, and `web.hang_up` ends its transfers."""

    def __init__(self) -> None:
        self.web = Web()

    @abstractmethod
    def url(self, source: Source) -> str:
        """Where a file can be read."""

    @abstractmethod
    def headers(self, url: str) -> dict[str, str]:
        """What a request to this address carries: a token only if it is the hub's own."""

    @abstractmethod
    def look(self, source: Source) -> Remote:
        """Size and hash of a file; PullFailed says what stands in the way."""

    @abstractmethod
    def repository(self, repo: str, revision: str) -> Repository:
        """The files of a repository; no revision means its newest."""

    @contextmanager
    def bytes_from(self, source: Source, remote: Remote, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Where the bytes that come begin (`start`, or 0 if the server cannot resume), and the bytes."""
        url = self.url(source.model_copy(update={"revision": remote.revision}))
        for begin in dict.fromkeys((start, 0)):
            headers = self._from(begin)
            with self.web.answer("GET", url, source, headers) as response:
                if response.status_code == 416 and begin:
                    continue  # some mirrors know no ranges but their own
                self._check_content(source, response, begin)
                yield (begin if response.status_code == 206 else 0), response.iter_bytes()
                return

    def _from(self, begin: int) -> Callable[[str], dict[str, str]]:
        part = {"Range": f"bytes={begin}-"} if begin else {}
        return lambda url: self.headers(url) | part

    def _check_content(self, source: Source, response: Response, begin: int) -> None:
        """A login page of a network, and another part than was asked for, are no part of a file."""
        kind = response.headers.get("Content-Type", "").lower()
        if kind.startswith("text/html") and not source.file.endswith((".html", ".htm")):
            raise PullFailed(
                f"{name_of(source)}: a web page came instead of the file; check HF_ENDPOINT, proxies and"
                " whether this network wants a login"
            )
        if response.status_code == 416:
            raise PullFailed(f"{name_of(source)}: the hub says that this file is empty")
        first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status_code == 206 and (first is None or int(first[1]) != begin):
            raise HubFailed(f"{name_of(source)}: the hub sends another part of the file than was asked for")

    def _json(self, url: str, asked: Asked) -> Any:
        """The answer to a question, of bounded size and within bounded time."""
        until, body = time.monotonic() + JSON_DEADLINE, b""
        with self.web.answer("GET", url, asked, self.headers) as response:
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MOST_JSON:
                    raise HubFailed(f"{name_of(asked)}: the hub's answer does not end")
                if time.monotonic() > until:
                    raise HubTimeout(f"{name_of(asked)}: the hub did not answer in time; try again")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise PullFailed(f"{name_of(asked)}: what answered is no hub; check HF_ENDPOINT") from exc


def hub_token() -> str | None:
    """HF_TOKEN or the stored login; one that cannot stand in a header is refused without repeating it."""
    given = os.environ.get("HF_TOKEN", "").strip()  # the library takes line breaks out of it
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if not all(re.fullmatch(r"[\x21-\x7e]*", text) for text in (given, token or "")):
        raise HubTokenInvalid("HF_TOKEN holds characters that no token has; set it anew")
    return token


def hub_is_off() -> bool:
    """HF_HUB_OFFLINE: nobody asks a hub anything."""
    said = os.environ.get("HF_HUB_OFFLINE", "").strip()
    return is_offline_mode() or said.upper() in constants.ENV_VARS_TRUE_VALUES


class HuggingFace(Hub):
    """HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured."""

    def url(self, source: Source) -> str:
        return file_url(source.repo, source.file, source.revision)

    def headers(self, url: str) -> dict[str, str]:
        own = same_origin(url, hub_endpoint())
        if own and hub_is_off():
            raise offline(url.rsplit("/", 1)[-1].split("?")[0])
        headers = build_hf_headers(
            token=(own and hub_token()) or False, library_name="gguf-imagegen", library_version=__version__
        )
        return {**headers, "Accept-Encoding": "identity"}

    def look(self, source: Source) -> Remote:
        with self.web.answer(
            "HEAD", self.url(source), source, self.headers, _describes, float(constants.HF_HUB_ETAG_TIMEOUT)
        ) as response:
            headers = response.headers
            length = "" if response.is_redirect else headers.get("Content-Length", "")
            size = _number(headers.get("X-Linked-Size") or length)
            etag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
        key = re.sub(r"[^0-9a-f]", "", etag.lower())[:16]
        if len(key) < 16:
            raise PullFailed(
                f"{source.file}: what answered does not describe files as a hub does; check HF_ENDPOINT"
            )
        sha256 = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None
        commit = headers.get("X-Repo-Commit", "")
        pinned = commit if re.fullmatch(r"[0-9a-f]{40}", commit) else source.revision
        return Remote(size or self._measured(source), sha256, key, pinned)

    def _measured(self, source: Source) -> int:
        """The size of a file for which a mirror states none, or 0: that of a part says it."""
        with self.web.answer(
            "GET", self.url(source), source, lambda url: self.headers(url) | {"Range": "bytes=0-0"}
        ) as response:
            whole = re.search(r"/(\d{1,18})$", response.headers.get("Content-Range", ""))
            length = response.headers.get("Content-Length", "") if response.status_code == 200 else ""
            size = int(whole[1]) if whole else _number(length)
        if not size:
            raise PullFailed(f"{source.file}: the hub does not say how large the file is; check HF_ENDPOINT")
        return size

    def repository(self, repo: str, revision: str) -> Repository:
        asked = Source(repo=repo, file=repo.split("/")[1], revision=revision or "main")
        path = f"/revision/{revision}" if revision else ""
        found = self._json(f"{hub_endpoint()}/api/models/{repo}{path}?blobs=true", asked)
        try:
            commit = str(found.get("sha") or revision or "main")
            gated = bool(found.get("gated"))
            files = [_listed(repo, commit, gated, each) for each in found["siblings"]]
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise PullFailed(f"{repo}: what answered does not list files as a hub does") from exc
        return Repository(tuple(files), _base_models(found), _licence(found))


def _describes(response: Response) -> bool:
    """A redirect to where the content lies says what it is; one to another name or host says nothing."""
    return "X-Linked-Etag" in response.headers or "X-Linked-Size" in response.headers


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"\d{1,18}", text) else 0


def _listed(repo: str, commit: str, gated: bool, sibling: dict[str, Any]) -> Source:
    stored = sibling.get("lfs") or {}
    return Source(
        repo=repo,
        file=sibling["rfilename"],
        revision=commit,
        bytes=stored.get("size") or sibling.get("size") or None,
        sha256=stored.get("sha256"),
        gated=gated,
    )


def _base_models(found: dict[str, Any]) -> tuple[str, ...]:
    """From the card, else from tags such as `base_model:quantized:OWNER/REPO`."""
    card = found.get("cardData")
    said = card.get("base_model") if isinstance(card, dict) else None
    names = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    tags = [tag for tag in found.get("tags") or [] if isinstance(tag, str)]
    names = [*names, *(tag.rsplit(":", 1)[1] for tag in tags if tag.startswith("base_model:"))]
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and name.count("/") == 1))


def _licence(found: dict[str, Any]) -> str:
    tags = [tag for tag in found.get("tags") or [] if isinstance(tag, str)]
    return next((tag.removeprefix("license:")[:100] for tag in tags if tag.startswith("license:")), "unknown")
