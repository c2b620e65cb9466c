"""A Hugging Face hub of one's own: the routes of the real one, on real sockets, with faults to order.

The hub answers for files with a redirect to a CDN of another origin, as the real one does for large files
(X-Repo-Commit, X-Linked-Size, X-Linked-Etag), or, for files kept in git, with one to its own cache. Denials
carry X-Error-Code and X-Error-Message as the real hub's do. The same repositories are there by the routes of
ModelScope.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

DEADLINE = 60.0
PIECE = 1 << 16


@dataclass
class Repo:
    """Hashes of the files by name; `gated` repositories are open to tokens in `readers` only."""

    files: dict[str, str]
    in_git: frozenset[str] = frozenset()
    gated: bool = False
    readers: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    commit: str = "c0ffee" + "0" * 34


@dataclass
class Served:
    """One request that came in; `sent` counts the bytes of file content that went out."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    sent: int = 0


SERVED = web.RequestKey("served", Served)


@dataclass
class Faults:
    """What goes wrong, for the content itself: each is off as it stands here."""

    cut_after: int | None = None
    """Close every answer in an orderly way after so many bytes."""
    drop_every: int = 0
    """Close each so-many-th connection before an answer."""
    hold_after: int | None = None
    """Send nothing after so many bytes of an answer until `release`."""
    corrupt: bool = False
    """Flip a bit of the first byte."""
    ignore_ranges: bool = False
    """Answer 200 with everything."""
    statuses: list[int] = field(default_factory=list)
    """Answer so first, one status a request."""
    forever: int = 0
    """Answer so always."""


class HubServer:
    """`with HubServer() as hub`: `hub.url` for HF_ENDPOINT; `hub.served` has every request."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: set[str] = set()
        self.faults = Faults()
        self.served: list[Served] = []
        self.url = self.cdn = ""
        self._contents: dict[str, bytes] = {}
        self._loop = asyncio.new_event_loop()
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._released = asyncio.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._run(),), daemon=True
        )

    def __enter__(self) -> HubServer:
        self._thread.start()
        assert self._ready.wait(DEADLINE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        self._loop.close()

    def add(self, repo: str, name: str, data: bytes, *, in_git: bool = False) -> dict[str, Any]:
        """Put a file there; the fields by which a catalog names it."""
        place = self.repos.setdefault(repo, Repo({}))
        sha256 = hashlib.sha256(data).hexdigest()
        self._contents[sha256] = data
        place.files[name] = sha256
        if in_git:
            place.in_git |= {name}
        return {"repo": repo, "file": name, "bytes": len(data), "sha256": sha256}

    def release(self) -> None:
        """Let go what `hold_after` holds, now and from now on."""
        self.faults.hold_after = None
        self._loop.call_soon_threadsafe(self._released.set)

    def wait_until(self, what: str, look: Callable[[], bool]) -> None:
        """Wait for something that `served` shows."""
        with self._changed:
            assert self._changed.wait_for(look, DEADLINE), f"did not happen: {what}"

    @property
    def contents(self) -> list[Served]:
        """The requests for content, in their order."""
        return [one for one in self.served if one.path.startswith("/cdn/") and one.method == "GET"]

    @property
    def sent(self) -> int:
        return sum(one.sent for one in self.contents)

    async def _run(self) -> None:
        app = web.Application(middlewares=[self._count])
        app.add_routes(
            [
                web.get("/api/resolve-cache/models/{org}/{name}/{revision}/{file:.+}", self._from_git),
                web.get("/api/models/{org}/{name}", self._info),
                web.get("/api/models/{org}/{name}/revision/{revision}", self._info),
                web.get("/{org}/{name}/resolve/{revision}/{file:.+}", self._resolve),
                web.get("/api/v1/models/{org}/{name}", self._modelscope_info),
                web.get("/api/v1/models/{org}/{name}/repo/files", self._modelscope_files),
                web.get("/api/v1/models/{org}/{name}/repo", self._modelscope_file),
                web.get("/cdn/{sha256}", self._content),
            ]
        )
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
        await runner.setup()
        for _ in range(2):
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url, self.cdn = (f"http://127.0.0.1:{address[1]}" for address in runner.addresses)
        self._ready.set()
        await self._stopping.wait()
        await runner.cleanup()

    @web.middleware
    async def _count(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        headers = request.headers
        served = Served(request.method, request.path, headers.get("Range"), headers.get("Authorization"))
        with self._changed:
            self.served.append(served)
            self._changed.notify_all()
        request[SERVED] = served
        answer: web.StreamResponse = await handler(request)
        return answer

    def _repo(self, request: web.Request) -> Repo:
        """The repository that was asked for, or the hub's refusal."""
        name = "{org}/{name}".format(**request.match_info)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            raise _refusal(401, "", "Invalid credentials in Authorization header")
        repo = self.repos.get(name)
        if repo is None:
            raise _refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        if repo.gated and not token:
            raise _refusal(
                401, "GatedRepo", f"Access to model {name} is restricted. You must have access to it and be"
                " authenticated to access it. Please log in.",
            )  # fmt: skip
        if repo.gated and token not in repo.readers:
            words = "is restricted and you are not in the authorized list"
            visit = f"Visit https://huggingface.co/{name} to ask for access."
            raise _refusal(403, "GatedRepo", f"Access to model {name} {words}. {visit}")
        if request.match_info.get("revision", "main") not in ("main", repo.commit):
            raise _refusal(404, "RevisionNotFound", "Invalid rev id")
        return repo

    async def _info(self, request: web.Request) -> web.Response:
        repo = self._repo(request)
        name = "{org}/{name}".format(**request.match_info)
        siblings = [self._sibling(file, sha256, file in repo.in_git) for file, sha256 in repo.files.items()]
        said = {"id": name, "sha": repo.commit, "gated": repo.gated, "tags": repo.tags, "siblings": siblings}
        return web.json_response(said)

    def _sibling(self, file: str, sha256: str, in_git: bool) -> dict[str, Any]:
        """A file of a list, as `?blobs=true` describes it."""
        size = len(self._contents[sha256])
        stored = {} if in_git else {"lfs": {"sha256": sha256, "size": size, "pointerSize": 134}}
        return {"rfilename": file, "size": size, **stored}

    async def _resolve(self, request: web.Request) -> web.Response:
        repo, name = self._repo(request), request.match_info["file"]
        if name not in repo.files:
            raise _refusal(404, "EntryNotFound", "Entry not found")
        if name in repo.in_git:
            path = "/api/resolve-cache/models/{org}/{name}".format(**request.match_info)
            raise web.HTTPTemporaryRedirect(
                f"{path}/{repo.commit}/{name}", headers={"X-Repo-Commit": repo.commit}
            )
        sha256 = repo.files[name]
        headers = {
            "Location": f"{self.cdn}/cdn/{sha256}?Signature=s3cret",
            "X-Repo-Commit": repo.commit,
            "X-Linked-Size": str(len(self._contents[sha256])),
            "X-Linked-Etag": f'"{sha256}"',
            "ETag": f'"{sha256}"',
        }
        return web.Response(status=302, headers=headers)

    def _of_modelscope(self, request: web.Request) -> Repo:
        repo = self.repos.get("{org}/{name}".format(**request.match_info))
        if repo is None or request.query.get("Revision", "master") != "master":
            raise web.HTTPNotFound(text='{"Code": 10010205001, "Success": false}')
        return repo

    async def _modelscope_info(self, request: web.Request) -> web.Response:
        bases = [tag.rsplit(":", 1)[1] for tag in self._of_modelscope(request).tags if "base_model" in tag]
        return web.json_response({"Code": 200, "Data": {"BaseModel": bases}})

    async def _modelscope_files(self, request: web.Request) -> web.Response:
        files = [
            {"Path": name, "Type": "blob", "Size": len(self._contents[sha256]), "Sha256": sha256}
            for name, sha256 in self._of_modelscope(request).files.items()
        ]
        return web.json_response({"Code": 200, "Data": {"Files": [{"Path": "a", "Type": "tree"}, *files]}})

    async def _modelscope_file(self, request: web.Request) -> web.Response:
        sha256 = self._of_modelscope(request).files.get(request.query["FilePath"])
        if sha256 is None:
            raise web.HTTPNotFound
        return web.Response(status=302, headers={"Location": f"{self.cdn}/cdn/{sha256}?auth_key=s3cret"})

    async def _from_git(self, request: web.Request) -> web.Response:
        repo = self._repo(request)
        data = self._contents[repo.files[request.match_info["file"]]]
        etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return web.Response(body=data, headers={"ETag": f'"{etag}"', "X-Repo-Commit": repo.commit})

    async def _content(self, request: web.Request) -> web.StreamResponse:
        faults, served = self.faults, request[SERVED]
        if faults.forever or faults.statuses:
            return web.Response(status=faults.forever or faults.statuses.pop(0))
        if faults.drop_every and len(self.contents) % faults.drop_every == 0:
            return _hang_up(request)
        data = self._contents[request.match_info["sha256"]]
        if faults.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        start, whole = 0, len(data)
        if served.range and not faults.ignore_ranges:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", served.range).groups()  # type: ignore[union-attr]
            start = int(first)
            if start >= whole:
                return web.Response(status=416)
            data = data[: int(last or whole) + 1]
        return await self._send(request, data, start, whole)

    async def _send(self, request: web.Request, data: bytes, start: int, whole: int) -> web.StreamResponse:
        part = start > 0 or len(data) < whole
        response = web.StreamResponse(status=206 if part else 200)
        response.content_length = len(data) - start
        if part:
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{whole}"
        await response.prepare(request)
        served: Served = request[SERVED]
        while start + served.sent < len(data):
            cut, hold = self.faults.cut_after, self.faults.hold_after
            if cut is not None and served.sent >= cut:
                return _hang_up(request)
            if hold is not None and served.sent >= hold:
                await asyncio.wait_for(self._released.wait(), DEADLINE)
                continue
            stop = min(bound - served.sent for bound in (cut, hold, len(data)) if bound is not None)
            piece = data[start + served.sent : start + served.sent + min(stop, PIECE)]
            await response.write(piece)
            with self._changed:
                served.sent += len(piece)
                self._changed.notify_all()
        await response.write_eof()
        return response


def _hang_up(request: web.Request) -> web.StreamResponse:
    """Close the connection; what was written before is still sent."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def _refusal(status: int, code: str, message: str) -> web.HTTPException:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    kinds = {401: web.HTTPUnauthorized, 403: web.HTTPForbidden, 404: web.HTTPNotFound}
    return kinds[status](
        headers=headers, text=json.dumps({"error": message}), content_type="application/json"
    )


def write_catalog(path: Path, **models: dict[str, Any]) -> Path:
    """A catalog file of models: their `files` (role -> source), or whole entries with `quants`."""
    entries = {
        name.replace("_", "-"): {
            "family": "ovis-image",
            **(fields if "quants" in fields else {"files": fields}),
        }
        for name, fields in models.items()
    }
    path.write_text(json.dumps({"version": 1, "models": entries}), encoding="utf-8")  # JSON is YAML too
    return path
