"""The hubs together: each file is asked for at the one that it lies on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gguf_imagegen.catalog.address import HubName
from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.download.hub import Hub, HuggingFace, Remote, Repository
from gguf_imagegen.download.modelscope import ModelScope


class Hubs:
    """Usable from several threads."""

    def __init__(self) -> None:
        self._hubs: dict[HubName, Hub] = {"huggingface": HuggingFace(), "modelscope": ModelScope()}

    def of(self, source: Source) -> Hub:
        return self._hubs[source.hub]

    def look(self, source: Source) -> Remote:
        """Size and hash of a file; PullFailed says what stands in the way."""
        return self.of(source).look(source)

    @contextmanager
    def bytes_from(self, source: Source, remote: Remote, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Where the bytes that come begin (`start`, or 0 if the server cannot resume), and the bytes."""
        with self.of(source).bytes_from(source, remote, start) as found:
            yield found

    def repository(self, hub: HubName, repo: str, revision: str = "") -> Repository:
        """The files of a repository; no revision means its newest."""
        return self._hubs[hub].repository(repo, revision)

    def hang_up(self) -> None:
        """Break off all transfers."""
        for hub in self._hubs.values():
            hub.web.hang_up()
