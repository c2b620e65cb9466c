"""The keys of this server and whose they are: those of --api-key, and of the --callers file.

The file is a YAML list; each item has a `name`, the `key` or its `sha256`, and perhaps `admin` and `bounds`.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path

import yaml
from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from gguf_imagegen.machine.secret_files import warn_of_readers
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.callers import EVERYBODY, Allowance, Caller, CallersError, Sender
from gguf_imagegen.vocabulary.errors import Forbidden

log = logging.getLogger(__name__)
SECRETS = {"api_key", "webhook_secret", "enhance_key"}
"""Settings that are keys; a file that has one is nobody else's to read."""
SENDER = web.RequestKey("sender", Sender)
"""Where `middleware.guard` leaves the sender in the request."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[\w.@-]{1,64}$")
    key: str | None = Field(None, pattern=r"^\S{1,1000}$")
    sha256: str | None = Field(None, pattern=r"^[0-9a-fA-F]{64}$")
    admin: bool = False
    bounds: Allowance = Allowance()

    @model_validator(mode="after")
    def _one_key(self) -> _Entry:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("either 'key' or 'sha256' is needed")
        return self

    @property
    def digest(self) -> bytes:
        return _digest(self.key.encode()) if self.key is not None else bytes.fromhex(self.sha256 or "")


_ENTRIES = TypeAdapter(list[_Entry])


@dataclass(frozen=True)
class Key:
    """The SHA-256 of a key, and its caller; `number` is its place in --api-key, from 1."""

    digest: bytes
    caller: Caller
    number: int = 0

    def words(self, address: str) -> str:
        """Who has sent a request, for the log."""
        return f"{address} with key {self.number}" if self.number else f"{self.caller.name} at {address}"


class Callers:
    """Finds the caller of a key. Raises CallersError if the file is wrong."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = _keys_of(settings)

    @property
    def keyed(self) -> bool:
        """Whether a key is needed; without, everybody is one caller."""
        return bool(self._keys)

    def find(self, candidates: Sequence[bytes]) -> Key | None:
        """The first that is a key. All are compared with all, so that the time taken tells nothing."""
        digests = [_digest(each) for each in candidates]
        found = [key for each in digests for key in self._keys if hmac.compare_digest(each, key.digest)]
        return found[0] if found else None

    def read_again(self) -> None:
        """Take what the file says now; what stood before holds if it is wrong."""
        try:
            self._keys = _keys_of(self._settings)
        except CallersError as exc:
            log.error("the callers stay as they were: %s", exc)
        else:
            log.info("the callers were read again: %d keys", len(self._keys))


CALLERS = web.AppKey("callers", Callers)


def sender_of(request: web.Request) -> Sender:
    return request[SENDER]


def caller_of(request: web.Request) -> Caller:
    return sender_of(request).caller


def admins_only(handler: Handler) -> Handler:
    """Refuse everybody else with a 403."""

    @wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        require_admin(request)
        return await handler(request)

    return answer


def require_admin(request: web.Request) -> None:
    caller = caller_of(request)
    if not caller.admin:
        raise Forbidden(f"{request.method} {request.path[:200]} needs an admin's key; {caller.name} is none")


# -- reading ------------------------------------------------------------------------------------------


def _keys_of(settings: Settings) -> list[Key]:
    given = [key.get_secret_value().encode() for key in settings.api_key]
    keys = [Key(_digest(key), EVERYBODY, number) for number, key in enumerate(given, start=1)]
    if settings.config is not None and SECRETS & settings.of_config().keys():
        warn_of_readers(settings.config)
    if settings.callers is not None:
        keys += _read(settings.callers, {key.digest: "--api-key" for key in keys})
    return keys


def _read(path: Path, taken: dict[bytes, str]) -> Iterator[Key]:
    """The keys of the file; with no admin in it, nor a key of --api-key, all in it are admins."""
    entries = _entries(path)
    open_to_all = not taken and not any(each.admin for each in entries)
    names = {EVERYBODY.name}
    for each in entries:
        if each.name in names:
            raise CallersError(f"{path.name}: {each.name}: name: is taken, choose another")
        if each.digest in taken:
            raise CallersError(f"{path.name}: {each.name}: key: is that of {taken[each.digest]} as well")
        names.add(each.name)
        taken[each.digest] = each.name
    if any(each.key is not None for each in entries):
        warn_of_readers(path)
    everyone = [Caller(each.name, each.admin, each.bounds) for each in entries]
    admins = [replace(caller, admin=caller.admin or open_to_all) for caller in everyone]
    return iter([Key(each.digest, caller) for each, caller in zip(entries, admins, strict=True)])


def _entries(path: Path) -> list[_Entry]:
    """Errors quote nothing of the file: it holds keys."""
    try:
        entries = _ENTRIES.validate_python(yaml.load(path.read_bytes(), yaml.CSafeLoader))
    except OSError as exc:
        raise CallersError(f"--callers: cannot read {path.name}: {exc.strerror}") from None
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise CallersError(f"{path.name}{where}: not valid YAML") from None
    except ValidationError as exc:
        raise CallersError(f"{path.name}: {_fault(exc)}") from None
    if not entries:
        raise CallersError(f"{path.name}: at least one caller is needed")
    return entries


def _fault(exc: ValidationError) -> str:
    """The first fault: "entry 2: bounds.jobs: Input should be a valid integer"."""
    first = exc.errors(include_input=False, include_context=False, include_url=False)[0]
    number, *fields = first["loc"] or (None,)
    words = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_type":
        words += "; put it in quotes"
    if not isinstance(number, int):
        return "must be a list of callers, each with 'name' and 'key' or 'sha256'"
    return ": ".join(filter(None, (f"entry {number + 1}", ".".join(map(str, fields)), words)))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
