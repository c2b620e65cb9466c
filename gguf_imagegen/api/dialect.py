"""A dialect: one API that people already speak, as one value; and the dialects that a server speaks.

A server's own routes are dialects too, without a choice. Packages add dialects by an entry point of the group
`gguf_imagegen.dialects`, whose value is a `Dialect`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter, methodcaller
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel

from gguf_imagegen.api.error_answers import ErrorAnswer
from gguf_imagegen.api.streams.encoders import Encoder
from gguf_imagegen.api.streams.frames import frame
from gguf_imagegen.api.typed_paths import respelled
from gguf_imagegen.jobs.job import Ended, JobEvent
from gguf_imagegen.vocabulary.errors import ImagegenError, InvalidRequest

GROUP = "gguf_imagegen.dialects"
ALL = "all"

Auth = Literal["bearer", "azure", "basic"]
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class ErrorForm:
    """How a dialect says what went wrong: the model of the body, the body, and the HTTP status."""

    model: type[BaseModel] = ErrorAnswer
    body: Callable[[ImagegenError], Mapping[str, Any]] = methodcaller("body")
    status: Callable[[type[ImagegenError]], int] = attrgetter("status")

    def in_stream(self, encoder: Encoder) -> Encoder:
        """The encoder, with errors in this form."""
        return encoder if self is OURS else _FormedErrors(encoder, self)


class _FormedErrors:
    def __init__(self, encoder: Encoder, form: ErrorForm) -> None:
        self._encoder, self._form = encoder, form

    def encode(self, id: int | None, event: JobEvent) -> bytes:
        match event:
            case Ended(error=error) if error is not None:
                return frame(dict(self._form.body(error)), event="error")
            case _:
                return self._encoder.encode(id, event)


OURS = ErrorForm()
"""OpenAI's error object."""


@dataclass(frozen=True)
class Dialect:
    """All that is special to one API.

    `name` is what `--dialects` calls it, `title` its heading in the API's description. Everything below the
    paths `roots` is its own, so that an unknown path there is refused in its words too. `auth` are the ways
    to send a key: "bearer" and HTTP "basic" in `Authorization`, "azure" in `api-key`.

    `streams` are encoders of OpenAI's image routes, by their `stream_options.dialect`. `unwrap` takes out
    fields that this dialect hides in a request of any other one. `describe` completes the JSON schemas of its
    models by what the handlers read beside them. `prepare` sets up what its handlers share in the app.
    """

    name: str
    title: str
    routes: Sequence[web.RouteDef]
    roots: tuple[str, ...] = ()
    errors: ErrorForm = OURS
    auth: tuple[Auth, ...] = ("bearer", "azure")
    streams: Mapping[str, Callable[..., Encoder]] = field(default_factory=dict)
    unwrap: Callable[[Fields], Fields] | None = None
    describe: Callable[[dict[str, dict[str, Any]]], None] | None = None
    prepare: Callable[[web.Application], None] | None = None


class Dialects:
    """The dialects of one server, its own routes first; of two with one path the first has it."""

    def __init__(self, every: Sequence[Dialect]) -> None:
        self.every = tuple(every)
        every_route = [route for each in self.every for route in each.routes]
        self.routes = sorted(every_route, key=lambda route: route.path.count("{"))
        """Paths with fewer placeholders first, so that a general one hides none."""
        found = respelled(self.routes)
        self.spellings = [route for route, _ in found]
        """The same handlers under the paths that people type."""
        by_path = {route.path: each for each in reversed(self.every) for route in each.routes}
        self._by_path = {**{route.path: by_path[path] for route, path in found}, **by_path}

    def of(self, request: web.Request) -> Dialect:
        """The dialect that a request is in; our own if its path is nobody's."""
        resource = request.match_info.route.resource
        found = self._by_path.get(resource.canonical) if resource is not None else None
        return found or next(
            (each for each in self.every if request.path.startswith(each.roots)), self.every[0]
        )

    def unwrapped(self, request: web.Request, fields: Fields) -> Fields:
        """The fields, with those of other dialects that are hidden in them."""
        own = self.of(request)
        for each in self.every:
            if each.unwrap is not None and each is not own:
                fields = each.unwrap(fields)
        return fields

    @property
    def streams(self) -> Mapping[str, Callable[..., Encoder]]:
        return {name: encoder for each in self.every for name, encoder in each.streams.items()}


DIALECTS = web.AppKey("dialects", Dialects)


def chosen(names: Sequence[str], built_in: Sequence[Dialect]) -> Iterator[Dialect]:
    """The built-in and the installed dialects with these names, or all; raises InvalidRequest."""
    known = {each.name for each in built_in}
    installed = {each.name: each for each in entry_points(group=GROUP) if each.name not in known}
    if unknown := set(names) - {ALL, *known, *installed}:
        every = ", ".join([ALL, *(each.name for each in built_in), *sorted(installed)])
        raise InvalidRequest(f"--dialects: there is no {sorted(unknown)[0][:60]!r}; known: {every}")
    yield from (each for each in built_in if {ALL, each.name} & set(names))
    yield from (_loaded(point) for name, point in sorted(installed.items()) if {ALL, name} & set(names))


def _loaded(point: EntryPoint) -> Dialect:
    """Raises InvalidRequest if the package is broken; nothing of ours is, so the message says whose it is."""
    package = point.dist.name if point.dist is not None else point.module
    try:
        found = point.load()
    except Exception as exc:  # the edge of our code: whatever a stranger's module raises
        raise InvalidRequest(f"--dialects: {point.name!r} of {package} cannot be loaded: {exc}") from exc
    if not isinstance(found, Dialect):
        raise InvalidRequest(f"--dialects: {point.name!r} of {package} is no Dialect but {found!r:.60}")
    return found
