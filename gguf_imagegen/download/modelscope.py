"""ModelScope, for people whom the Hugging Face hub does not reach: its public repositories.

Listing and content as its own client asks for them (github.com/modelscope/modelscope, hub/api.py and
hub/file_download.py). It describes no single file, so that a file is looked up in the list of all.
"""

from __future__ import annotations

import threading
from typing import Any
from urllib.parse import quote, urlencode

from gguf_imagegen import __version__
from gguf_imagegen.catalog.address import modelscope_endpoint, same_origin
from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.download.hub import Hub, Remote, Repository, hub_is_off
from gguf_imagegen.download.web import name_of, offline
from gguf_imagegen.vocabulary.errors import HubFileNotFound, HubRepositoryNotFound, PullFailed

NEWEST = "master"


class ModelScope(Hub):
    """MODELSCOPE_ENDPOINT and HF_HUB_OFFLINE are honoured; no token is sent."""

    def __init__(self) -> None:
        super().__init__()
        self._lists: dict[tuple[str, str], Repository] = {}
        self._turn = threading.Lock()

    def url(self, source: Source) -> str:
        query = urlencode({"Revision": source.revision, "FilePath": source.file})
        return f"{_api(source.repo)}/repo?{query}"

    def headers(self, url: str) -> dict[str, str]:
        if same_origin(url, modelscope_endpoint()) and hub_is_off():
            raise offline(url.rsplit("=", 1)[-1])
        return {"User-Agent": f"gguf-imagegen/{__version__}", "Accept-Encoding": "identity"}

    def look(self, source: Source) -> Remote:
        with self._turn:
            listed = self.repository(source.repo, source.revision)
        found = next((file for file in listed.files if file.file == source.file), None)
        if found is None:
            where = f"{source.repo}, revision {source.revision}"
            raise HubFileNotFound(f"the hub has no file {source.file!r} in {where}")
        if found.bytes is None or found.sha256 is None:
            raise PullFailed(f"{name_of(source)}: ModelScope states no size or hash of this file")
        return Remote(found.bytes, found.sha256, found.sha256[:16], source.revision)

    def repository(self, repo: str, revision: str) -> Repository:
        key = repo, revision or NEWEST
        if key not in self._lists:
            self._lists[key] = self._ask(*key)
        return self._lists[key]

    def _ask(self, repo: str, revision: str) -> Repository:
        asked = Source(repo=repo, file=repo.split("/")[1], revision=revision, hub="modelscope")
        query = urlencode({"Revision": revision, "Recursive": "true"})
        try:
            found = self._json(f"{_api(repo)}/repo/files?{query}", asked)
        except HubFileNotFound as exc:
            raise HubRepositoryNotFound(
                f"ModelScope has no repository {repo!r}, revision {revision}"
            ) from exc
        try:
            files = [
                _listed(repo, revision, each) for each in found["Data"]["Files"] if each["Type"] != "tree"
            ]
        except (KeyError, TypeError, ValueError) as exc:
            raise PullFailed(f"{repo}: what answered does not list files as ModelScope does") from exc
        return Repository(tuple(files), self._base_models(repo, asked))

    def _base_models(self, repo: str, asked: Source) -> tuple[str, ...]:
        """What the repository's description says, if there is one."""
        try:
            said = self._json(_api(repo), asked)["Data"]["BaseModel"]
        except (PullFailed, KeyError, TypeError):
            return ()
        names = [said] if isinstance(said, str) else said if isinstance(said, list) else []
        return tuple(name for name in names if isinstance(name, str) and name.count("/") == 1)


def _api(repo: str) -> str:
    return f"{modelscope_endpoint()}/api/v1/models/{quote(repo)}"


def _listed(repo: str, revision: str, file: dict[str, Any]) -> Source:
    return Source(
        repo=repo,
        file=file["Path"],
        revision=revision,
        bytes=file.get("Size") or None,
        sha256=(file.get("Sha256") or "").lower() or None,
        hub="modelscope",
    )
