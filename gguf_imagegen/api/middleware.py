"""What stands before every handler: request ids, CORS, who may call, and errors as answers."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import secrets
from collections.abc import Mapping

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from gguf_imagegen.api.callers import CALLERS, SENDER, Key
from gguf_imagegen.api.dialect import DIALECTS, OURS, ErrorForm
from gguf_imagegen.api.keys import JOB_MADE, SERVICE
from gguf_imagegen.api.origins import check_host, check_origin, cors_origin
from gguf_imagegen.api.proxies import seen_of
from gguf_imagegen.api.reply import Answered, reply
from gguf_imagegen.api.typed_paths import nearest
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.callers import EVERYBODY, OUTSIDER, Sender
from gguf_imagegen.vocabulary.errors import (
    Cancelled,
    ImagegenError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    ServerBusy,
    Unauthorized,
)

log = logging.getLogger(__name__)
REQUEST_ID = re.compile(r"[\w.:-]{1,128}")
OPEN_PATHS = re.compile(r"/|/web/[^/]+|/livez|/health|/openapi\.json|/docs|/v1/images/files/[^/]+")
"""Readable without a key: pages, liveness, health, and images under unguessable names."""
ALWAYS = ("/livez", "/health", "/metrics")
"""Answered at once, whatever the server is doing."""
PATIENCE = 60.0
SERVER = "gguf-imagegen"
"""What we say of ourselves; aiohttp would name its version, and Python's."""
LONGEST_REASON = 200
"""Characters of a status line."""
READS = (hdrs.METH_GET, hdrs.METH_HEAD)
"""Methods that change nothing."""
AZURE = "api-key"
"""The header in which clients of Azure's OpenAI send the key."""


def request_id(request: web.Request) -> str:
    given = request.headers.get("X-Request-ID", "")
    return given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(8)}"


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal `on_response_prepare`: headers that streams need as well as plain answers."""
    response.headers.setdefault("X-Request-ID", request_id(request))
    response.headers["Server"] = SERVER
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    if origin := cors_origin(request, request.app[SERVICE].settings):
        response.headers["Access-Control-Allow-Origin"] = origin
        vary = response.headers.get(hdrs.VARY)
        response.headers["Vary"] = f"{vary}, Origin" if vary else "Origin"
        response.headers["Access-Control-Expose-Headers"] = "X-Request-ID, X-Job-Id, Retry-After, Location"


@web.middleware
async def errors_to_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The one place where errors become HTTP answers."""
    headers: dict[str, str] = {}
    try:
        return await handler(request)
    except Answered as exc:
        return exc.response
    except ImagegenError as exc:
        error = exc.bare()  # its trace holds this frame, which would hold it, and all pictures on the way
        if isinstance(exc, Unauthorized):
            headers = _challenge(request)
    except web.HTTPNotFound:
        error = NotFound(_no_path(request))
    except web.HTTPMethodNotAllowed as exc:
        headers = {"Allow": ", ".join(sorted(exc.allowed_methods))}
        error = MethodNotAllowed(f"{request.path[:200]} takes {headers['Allow']}")
    except web.HTTPRequestEntityTooLarge:
        error = PayloadTooLarge("the body is too large")
    except web.HTTPException as exc:
        if exc.status < 400:
            raise
        error = InvalidRequest(exc.reason)
    except Exception as exc:  # the edge of the server: the log has the trace, the client gets no internals
        if isinstance(exc, ConnectionError) and _is_gone(request):
            error = Cancelled("the client left")  # read by nobody
        else:
            log.exception("internal error in %s %s", request.method, request.path)
            error = InternalError("internal error; the server's log has the details")
    error.__traceback__ = None  # it holds this frame, which holds the error, and all that the handler held
    return _refusal(request, error, headers)


def _refusal(request: web.Request, error: ImagegenError, headers: Mapping[str, str]) -> web.Response:
    """The answer, and a line in the log, unless a job or a defect has its own, or nobody is there."""
    dialect, name = request.app[DIALECTS].of(request), request_id(request)
    answer = error_answer(error, dialect.errors, {"X-Request-ID": name, **headers})
    if JOB_MADE not in request and not isinstance(error, (Cancelled, InternalError)):
        level = logging.DEBUG if request.method in READS else logging.INFO  # some clients probe for routes
        what = f"{dialect.name}, {_route(request)}, {answer.status}"
        log.log(level, "request %s refused: %s: %s", name, what, answer.reason)
    return answer


def _route(request: web.Request) -> str:
    """As it was declared: a path may hold the name of a picture, which is all that it takes to see it."""
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical}" if resource else "no route"


def _no_path(request: web.Request) -> str:
    near = nearest(request.method, request.path, request.app[DIALECTS].routes)
    hint = f"; did you mean {near}?" if near else "; GET /docs lists every route"
    return f"there is no {request.method} {request.path[:200]}{hint}"


def error_answer(
    error: ImagegenError, form: ErrorForm = OURS, headers: Mapping[str, str] | None = None
) -> web.Response:
    extra = {"x-should-retry": "true" if error.should_retry else "false", **(headers or {})}
    if error.retry_after is not None:
        extra["Retry-After"] = str(error.retry_after)
    status, reason = form.status(type(error)), reason_phrase(str(error))
    return reply(form.model, form.body(error), status=status, reason=reason, headers=extra)


def reason_phrase(sentence: str) -> str:
    """The sentence for the status line, which is all that many clients show: one line of printable ASCII."""
    line = " ".join("".join(c if " " <= c <= "~" else " " if c.isspace() else "?" for c in sentence).split())
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 3]}..."


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _challenge(request: web.Request) -> dict[str, str]:
    scheme = "Basic" if _takes_basic(request) else "Bearer"
    return {"WWW-Authenticate": f'{scheme} realm="gguf_imagegen"'}


def _takes_basic(request: web.Request) -> bool:
    return "basic" in request.app[DIALECTS].of(request).auth


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Cross-origin preflights, then keys where keys are set, else the checks that loopback needs."""
    settings = request.app[SERVICE].settings
    if request.method == hdrs.METH_OPTIONS:
        return _preflight(request, settings)
    caller, words = EVERYBODY, seen_of(request).address or "nobody"
    if not request.app[CALLERS].keyed:
        check_host(request, settings)
        check_origin(request, settings)
    elif is_open(request.method, request.path):
        caller = OUTSIDER
    else:
        key = _check_key(request, settings)
        caller, words = key.caller, key.words(words)
    request[SENDER] = Sender(caller, request.app[DIALECTS].of(request).name, words)
    return await handler(request)


@web.middleware
async def after_the_past(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Requests wait until the jobs of earlier runs are known; who only asks how the server is does not."""
    if request.path not in ALWAYS:
        try:
            await asyncio.wait_for(request.app[SERVICE].knows_the_past.wait(), PATIENCE)
        except asyncio.TimeoutError:
            raise ServerBusy("the server is reading its journal; try again", retry_after=10) from None
    return await handler(request)


def is_open(method: str, path: str) -> bool:
    """Whether no key is needed: to read, never to change anything."""
    return method in READS and bool(OPEN_PATHS.fullmatch(path.rstrip("/") or "/"))


def _preflight(request: web.Request, settings: Settings) -> web.Response:
    headers = {}
    if cors_origin(request, settings):
        headers = {
            "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": request.headers.get(
                "Access-Control-Request-Headers", "Authorization, Content-Type"
            ),
            "Access-Control-Max-Age": "600",
        }
    return web.Response(status=204, headers=headers)


def _check_key(request: web.Request, settings: Settings) -> Key:
    """The key of the request: a bearer's, in Azure's header, or a password in dialects that have it."""
    scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    basic = scheme.lower() == "basic" and _takes_basic(request)
    candidates: tuple[bytes, ...] = ()
    if basic:
        check_origin(request, settings)  # a browser sends Basic by itself, whoever's page made the request
        candidates = _user_and_password(given)
    elif scheme.lower() == "bearer":
        candidates = (_bytes(given.strip()),)
    candidates += tuple(map(_bytes, request.headers.getall(AZURE, ())))
    key = request.app[CALLERS].find(candidates)
    if key is None:
        what = "wrong key" if any(candidates) else "no key"
        how = "'Authorization: Bearer KEY'" + " or Basic USER:KEY" * _takes_basic(request)
        raise Unauthorized(f"{what}: send {how} with a valid key")
    return key


def _bytes(text: str) -> bytes:
    """As they came: aiohttp decodes headers so."""
    return text.encode(errors="surrogateescape")


def _user_and_password(text: str) -> tuple[bytes, ...]:
    """Either may be the key; nothing if this is no base64."""
    try:
        user, _, password = base64.b64decode(text.strip(), validate=True).partition(b":")
    except ValueError:
        return ()
    return user, password
