"""HTTP as hubs need it: redirects that are looked at, answers that can be ended, and errors as ours.

The one module that knows httpx2, through the session of huggingface_hub (its proxies, certificates and
offline switch). A token goes to the origin that it is for and not where that redirects to.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urljoin, urlsplit

import httpx2
from huggingface_hub import constants, get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from gguf_imagegen.catalog.address import is_url
from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.vocabulary.errors import (
    HubFailed,
    HubFileNotFound,
    HubOffline,
    HubRepositoryNotFound,
    HubRevisionNotFound,
    HubTimeout,
    HubTokenInvalid,
    HubTokenMissing,
    HubUnreachable,
    LicenceNotAccepted,
    PullFailed,
)

TOKENS = "https://huggingface.co/settings/tokens"
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
REDIRECT = (301, 302, 303, 307, 308)
REDIRECTS = 5
Response = httpx2.Response
Asked = Source | str
"""What is asked for, for the words of errors: a file of a hub, or the URL of any other."""


class Web:
    """Requests of one owner; usable from several threads."""

    def __init__(self) -> None:
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()

    @contextmanager
    def answer(
        self,
        method: str,
        url: str,
        asked: Asked,
        headers: Callable[[str], dict[str, str]],
        enough: Callable[[Response], bool] = lambda response: False,
        timeout: float | None = None,
    ) -> Iterator[Response]:
        """The answer of the last of all addresses that one is redirected to, or the first that is `enough`.

        `headers` are those of a request to this address. A refusal of a server, or of the network, is raised
        as an error below PullFailed; a 416 is for the caller to judge.
        """
        seconds = float(constants.HF_HUB_DOWNLOAD_TIMEOUT) if timeout is None else timeout
        with our_errors(asked):
            for _ in range(REDIRECTS + 1):
                with (
                    get_session().stream(
                        method, url, headers=headers(url), timeout=seconds, follow_redirects=False
                    ) as response,
                    self._open(response),
                ):
                    place = _redirected(response, url, asked)
                    if place is None or enough(response):
                        if response.status_code >= 400 and response.status_code != 416:
                            raise refusal(response, asked)
                        yield response
                        return
                url = place
        raise HubFailed(f"{name_of(asked)}: {urlsplit(url).hostname} redirects in a ring")

    def hang_up(self) -> None:
        """Break off all transfers, also those that wait for the server."""
        with self._lock:
            for one in self._sockets:
                try:
                    socket.socket.shutdown(
                        one, socket.SHUT_RDWR
                    )  # not TLS's own, which is not for two threads
                except OSError:  # it has ended by itself
                    continue

    @contextmanager
    def _open(self, response: Response) -> Iterator[None]:
        network = response.extensions.get("network_stream")
        one = network.get_extra_info("socket") if network is not None else None
        with self._lock:
            self._sockets |= {one} if one is not None else set()
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(one)


def _redirected(response: Response, url: str, asked: Asked) -> str | None:
    """Where to; None for an answer that is final."""
    if response.status_code not in REDIRECT:
        return None
    place = urljoin(url, response.headers.get("Location", ""))
    insecure = url.lower().startswith("https:") and not place.lower().startswith("https:")
    if not is_url(place) or insecure:
        raise HubFailed(f"{name_of(asked)}: {urlsplit(url).hostname} redirects to an unsafe address")
    return place


def name_of(asked: Asked) -> str:
    """The bare name of the file."""
    path = asked.file if isinstance(asked, Source) else unquote(urlsplit(asked).path)
    return "".join(c if c.isprintable() else "?" for c in path.split("/")[-1])


@contextmanager
def our_errors(asked: Asked) -> Iterator[None]:
    """Errors of the network as ours, without an address in the words."""
    name = name_of(asked)
    host = "the hub" if isinstance(asked, Source) else urlsplit(asked).hostname
    try:
        yield
    except OfflineModeIsEnabled as exc:
        raise offline(name) from exc
    except httpx2.TimeoutException as exc:
        raise HubTimeout(f"{name}: {host} did not answer in time; try again to go on") from exc
    except (httpx2.ConnectError, httpx2.ProxyError) as exc:
        raise HubUnreachable(
            f"{name}: {host} cannot be reached; check the network, HF_ENDPOINT and proxies"
        ) from exc
    except httpx2.TransportError as exc:
        raise HubFailed(f"{name}: {host} broke its answer off; try again to go on") from exc
    except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as exc:
        raise PullFailed(f"{name}: the answer of {host} is not understood ({type(exc).__name__})") from exc


def offline(name: str) -> HubOffline:
    return HubOffline(f"{name} is not downloaded, and HF_HUB_OFFLINE is set")


def refusal(response: Response, asked: Asked) -> PullFailed:
    """What a status of 400 and more means; the hub says more in `X-Error-Code`."""
    name, status = name_of(asked), response.status_code
    code, token = response.headers.get("X-Error-Code", ""), "Authorization" in response.request.headers
    page = asked.url if isinstance(asked, Source) else ""
    if code == "GatedRepo" or (status == 403 and token):
        return _gated(name, page or f"its repository at {response.url.host}", status, token)
    if code == "RevisionNotFound" and isinstance(asked, Source):
        return HubRevisionNotFound(f"{name}: the hub has no revision {asked.revision!r} of {page}")
    if code == "RepoNotFound" or (status == 401 and not token and page):
        private = "" if token else ", or it is private and HF_TOKEN is not set"
        repo = f" {asked.repo!r}" if isinstance(asked, Source) else " of this name"
        return HubRepositoryNotFound(f"{name}: the hub has no repository{repo}{private}")
    if status in (401, 403):
        if token:
            return _bad_token(name, page or str(response.url.host))
        return HubTokenMissing(f"{name}: {response.url.host} wants to know who asks; set HF_TOKEN")
    if status in (404, 410):
        if isinstance(asked, Source):
            where = f"{asked.repo}, revision {asked.revision}"
            return HubFileNotFound(f"the hub has no file {asked.file!r} in {where}")
        return HubFileNotFound(f"{name}: there is no such file at {response.url.host}")
    if status in RETRY_STATUS:
        wait = response.headers.get("Retry-After", "")
        return HubFailed(
            f"{name}: the hub answers with status {status}; try again later",
            retry_after=int(wait) if re.fullmatch(r"\d{1,6}", wait) else None,
        )
    return PullFailed(f"{name}: the hub answers with status {status}")


def _gated(name: str, page: str, status: int, token: bool) -> PullFailed:
    if not token:
        return HubTokenMissing(
            f"{name}: {page} is gated: accept its licence there, make a token at {TOKENS} and set HF_TOKEN"
        )
    if status == 401:
        return _bad_token(name, page)
    return LicenceNotAccepted(
        f"{name}: {page} is gated and the token's account has no access: accept the licence there, and let"
        " the token read gated repositories"
    )


def _bad_token(name: str, page: str) -> HubTokenInvalid:
    return HubTokenInvalid(
        f"{name}: the hub refuses the token for {page}: check HF_TOKEN, or make one at {TOKENS}"
    )
