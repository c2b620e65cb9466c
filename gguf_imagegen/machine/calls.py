"""HTTP requests that this server itself sends, to addresses that its administrator named and no others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import urlsplit

import aiohttp

MOST = 1 << 20
"""Bytes of an answer that are read."""
_JSON = {"Content-Type": "application/json", "Accept-Encoding": "identity"}


class CallFailed(Exception):
    """There was no answer, or one that is no success, whose status it has; no address is in the message."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


async def post(url: str, body: bytes, headers: Mapping[str, str] | None = None, *, patience: float) -> bytes:
    """Send JSON, or an empty body; the body of an answer of 2xx that is there within `patience` seconds.

    Redirects are not followed, for they lead to addresses that nobody named. Raises CallFailed.
    """
    timeout = aiohttp.ClientTimeout(total=patience)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.post(
                url, data=body, headers={**_JSON, **(headers or {})}, allow_redirects=False
            ) as answer,
        ):
            if not 200 <= answer.status < 300:
                raise CallFailed(f"the answer was {answer.status}", answer.status)
            return await _read(answer)
    except asyncio.TimeoutError:
        raise CallFailed(f"no answer within {patience:g} s") from None
    except aiohttp.ClientConnectorError as exc:
        raise CallFailed(f"cannot connect ({exc.strerror or type(exc).__name__})") from None
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        raise CallFailed(f"the connection failed ({type(exc).__name__})") from None


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for piece in answer.content.iter_chunked(1 << 16):
        data += piece
        if len(data) > MOST:
            raise CallFailed(f"the answer has more than {MOST} bytes")
    return bytes(data)


def is_address(text: str) -> bool:
    """Whether this is the URL of something that can be called."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def origin_of(url: str) -> str:
    """Scheme, host and port: what a log may say of an address, whose rest may hold a key."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
