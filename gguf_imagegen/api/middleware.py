"""What stands before every handler: request ids, CORS, who may call, and errors as answers."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import logging
import re
import secrets
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from gguf_imagegen.api.keys import SETTINGS
from gguf_imagegen.errors import (
    Forbidden,
    ImagegenError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
)
from gguf_imagegen.settings import Settings

log = logging.getLogger(__name__)
REQUEST_ID = re.compile(r"[\w.:-]{1,128}")
OPEN_PATHS = re.compile(r"/|/web/[^/]+|/livez|/health|/openapi\.json|/docs|/v1/images/files/[^/]+")
"""Readable without a key: pages, liveness, health, and images under unguessable names."""
A1111 = "/sdapi/"
"""What clients of AUTOMATIC1111 call; they send HTTP Basic."""
GPUSTACK = "/v1-openai/"
"""Errors under it are as GPUStack and llama-box have them: `{"code": 400, "message": "Invalid image", "type":
"invalid_request_error"}` is what
https://github.com/gpustack/gpustack/blob/a655ad28/docs/user-guide/image-generation-apis.md shows.
"""


def request_id(request: web.Request) -> str:
    given = request.headers.get("X-Request-ID", "")
    return given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(8)}"


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal `on_response_prepare`: headers that streams need as well as plain answers."""
    response.headers.setdefault("X-Request-ID", request_id(request))
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    origin = request.headers.get(hdrs.ORIGIN)
    if origin and _cors_allows(request.app[SETTINGS], origin):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Vary"] = "Origin"
        response.headers["Access-Control-Expose-Headers"] = "X-Request-ID, X-Job-Id, Retry-After, Location"


@web.middleware
async def errors_to_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The one place where errors become HTTP answers."""
    headers: dict[str, str] = {}
    try:
        return await handler(request)
    except ImagegenError as exc:
        error = exc.bare()  # its trace holds this frame, which would hold it, and all pictures on the way
        if isinstance(exc, Unauthorized):
            headers = _challenge(request)
    except web.HTTPNotFound:
        error = NotFound(f"there is no {request.method} {request.path[:200]}")
    except web.HTTPMethodNotAllowed as exc:
        headers = {"Allow": ", ".join(sorted(exc.allowed_methods))}
        error = MethodNotAllowed(f"{request.path[:200]} takes {headers['Allow']}")
    except web.HTTPRequestEntityTooLarge:
        error = PayloadTooLarge("the body is too large")
    except web.HTTPException as exc:
        if exc.status < 400:
            raise
        error = InvalidRequest(exc.reason)
    except ConnectionError:
        raise
    except Exception:  # the edge of the server: the log has the trace, the client gets no internals
        log.exception("internal error in %s %s", request.method, request.path)
        error = InternalError("internal error; the server's log has the details")
    return error_answer(error, headers, numeric=request.path.startswith(GPUSTACK))


def error_answer(
    error: ImagegenError, headers: Mapping[str, str] | None = None, *, numeric: bool = False
) -> web.Response:
    """The error's answer; `numeric`: with the HTTP status as `error.code`, our own word as `error.reason`."""
    extra = {"x-should-retry": "true" if error.should_retry else "false", **(headers or {})}
    if error.retry_after is not None:
        extra["Retry-After"] = str(error.retry_after)
    body = error.body()
    if numeric:
        named = {"message": error.message, "type": error.type, "param": error.param}
        body["error"] = {**named, "code": error.status, "reason": error.code}
    return web.json_response(body, status=error.status, headers=extra)


def _challenge(request: web.Request) -> dict[str, str]:
    scheme = "Basic" if request.path.startswith(A1111) else "Bearer"
    return {"WWW-Authenticate": f'{scheme} realm="gguf_imagegen"'}


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Cross-origin preflights, then keys where keys are set, else the checks that loopback needs."""
    settings = request.app[SETTINGS]
    if request.method == hdrs.METH_OPTIONS:
        return _preflight(request, settings)
    if settings.api_key:
        if not is_open(request.method, request.path):
            _check_key(request, settings)
    else:
        _check_host(request, settings)
        _check_origin(request, settings)
    return await handler(request)


def is_open(method: str, path: str) -> bool:
    """Whether no key is needed: to read, never to change anything."""
    return method in (hdrs.METH_GET, hdrs.METH_HEAD) and bool(OPEN_PATHS.fullmatch(path))


def _preflight(request: web.Request, settings: Settings) -> web.Response:
    headers = {}
    if _cors_allows(settings, request.headers.get(hdrs.ORIGIN, "")):
        headers = {
            "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": request.headers.get(
                "Access-Control-Request-Headers", "Authorization, Content-Type"
            ),
            "Access-Control-Max-Age": "600",
        }
    return web.Response(status=204, headers=headers)


def _cors_allows(settings: Settings, origin: str) -> bool:
    return bool(origin) and ("*" in settings.cors_origins or origin in settings.cors_origins)


def _check_key(request: web.Request, settings: Settings) -> None:
    scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    basic = scheme.lower() == "basic" and request.path.startswith(A1111)
    candidates: tuple[bytes, ...] = ()
    if basic:
        _check_origin(request, settings)  # a browser sends Basic by itself, whoever's page made the request
        candidates = _user_and_password(given)
    elif scheme.lower() == "bearer":
        candidates = (given.strip().encode(),)
    # every key is compared, so that the time taken tells nothing
    keys = [key.get_secret_value().encode() for key in settings.api_key]
    matches = [hmac.compare_digest(candidate, key) for candidate in candidates for key in keys]
    if not any(matches):
        what = "wrong key" if any(candidates) else "no key"
        how = "'Authorization: Bearer KEY'" + " or Basic USER:KEY" * request.path.startswith(A1111)
        raise Unauthorized(f"{what}: send {how} with a key of this server")


def _user_and_password(text: str) -> tuple[bytes, ...]:
    """Either may be the key; nothing if this is no base64."""
    try:
        user, _, password = base64.b64decode(text.strip(), validate=True).partition(b":")
    except ValueError:
        return ()
    return user, password


def _check_host(request: web.Request, settings: Settings) -> None:
    """Refuse names that are not ours: a page that rebinds its name to 127.0.0.1 still sends its own name."""
    host = (_split(f"//{request.host}").hostname or "").lower()
    public = urlsplit(settings.public_url or "").hostname
    if host in ("localhost", settings.host, public, *settings.allowed_hosts) or _is_address(host):
        return
    raise Forbidden(f"host {host[:100]!r} is not served here; allow it with --allowed-hosts or set a key")


def _check_origin(request: web.Request, settings: Settings) -> None:
    """Refuse other sites' pages: without a key, a browser on this machine could be made to call us."""
    origin = request.headers.get(hdrs.ORIGIN)
    if not origin or _cors_allows(settings, origin) or _split(origin).netloc == request.host:
        return
    raise Forbidden(f"origin {origin[:100]!r} is not allowed; allow it with --cors-origins")


def _split(url: str) -> SplitResult:
    """The parts of a URL, all of them empty if it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
