"""What a request comes to on this server: whether engine and model can do it, and what all lanes do alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.planning.abilities import require_able, require_engine
from gguf_imagegen.planning.control import with_control_net
from gguf_imagegen.planning.embeddings import FLAG, unheard
from gguf_imagegen.planning.plan import Operation, Sketch, sketch
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.pool.pool import Pool
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities, TaskKind
from gguf_imagegen.vocabulary.errors import MissingAddon


class Sketcher:
    """Checks and completes requests by what the catalog, the lanes and the engine are."""

    def __init__(self, catalog: Catalog, pool: Pool, able: Abilities) -> None:
        self._catalog = catalog
        self._pool = pool
        self._able = able

    def sketch(
        self,
        request: ImageRequest,
        entry: Entry,
        operation: Operation,
        warnings: list[str],
        settings: Settings,
    ) -> Sketch:
        """Within these settings. Reads headers, and may ask GPUs: call it in a thread."""
        task: TaskKind = "upscale" if operation == "upscale" else "generate"
        require_engine(request, entry, task, self._able)
        warnings = [*warnings, *self._unheard(request, settings)]
        with self._telling_where():
            if task == "generate":
                require_able(request, entry, self._catalog, settings)
                entry = with_control_net(request, entry, self._catalog, settings)
            sketched = sketch(request, entry, settings, operation, warnings, self._able)
        bare = sketched.bare
        if bare.generate is None:
            return sketched
        alike = replace(bare, generate=self._pool.alike(bare.entry, bare.generate))
        return replace(sketched, bare=alike)

    @contextmanager
    def _telling_where(self) -> Iterator[None]:
        """Of an add-on that is missing, which other machines of a cluster have it."""
        try:
            yield
        except MissingAddon as missing:
            if not (where := self._pool.where(missing.flag, missing.name)):
                raise
            raise MissingAddon(f"{missing.message}; {where}", param=missing.param) from None

    def _unheard(self, request: ImageRequest, settings: Settings) -> list[str]:
        """Of words that name textual inversions of other machines of a cluster, and mean nothing here."""
        there = self._pool.addons_elsewhere(FLAG)
        names = unheard((request.prompt, request.negative_prompt), there, settings) if there else ()
        return [f"embedding: {name!r} has no effect; {self._pool.where(FLAG, name)}" for name in names]
