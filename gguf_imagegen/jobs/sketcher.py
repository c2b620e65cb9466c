"""What a request comes to on this server: whether engine and model can do it, and what all lanes do alike."""

from __future__ import annotations

from dataclasses import replace

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.planning.abilities import require_able, require_engine
from gguf_imagegen.planning.control import with_control_net
from gguf_imagegen.planning.plan import Operation, Sketch, sketch
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.pool.pool import Pool
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities, TaskKind


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
        if task == "generate":
            require_able(request, entry, self._catalog, settings)
            entry = with_control_net(request, entry, self._catalog, settings)
        sketched = sketch(request, entry, settings, operation, warnings, self._able)
        bare = sketched.bare
        if bare.generate is None:
            return sketched
        alike = replace(bare, generate=self._pool.alike(bare.entry, bare.generate))
        return replace(sketched, bare=alike)
