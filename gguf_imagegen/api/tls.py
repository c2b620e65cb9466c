"""The certificate of --tls-cert and --tls-key: read at the start, and again when its files are renewed."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from gguf_imagegen.settings import Settings

log = logging.getLogger(__name__)
LOOK = 2.0
"""Seconds between two looks at the files."""
Stamp = tuple[int, int, int] | None


class TlsError(Exception):
    """The files are no certificate with its key; says which, and what to do."""


class Certificate:
    """Connections get what the files held when they were opened. Raises TlsError if they are no use."""

    def __init__(self, chain: Path, key: Path) -> None:
        self._files = chain, key
        self._stamps = self._stamped()
        self._latest = _loaded(*self._files)
        self.context = _loaded(*self._files)
        """For the listener."""
        self.context.sni_callback = self._choose  # called for clients that name no server, too

    async def watch(self) -> None:
        """Look for renewed files, for ever."""
        while True:
            await asyncio.sleep(LOOK)
            await asyncio.to_thread(self.renew)

    def renew(self) -> None:
        """Take the files if they are others now; what was taken before stays if they are wrong."""
        stamps = self._stamped()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self._latest = _loaded(*self._files)
        except TlsError as exc:
            log.error("keeping the old TLS certificate: %s", exc)
        else:
            log.info("the TLS certificate was renewed")

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _: ssl.SSLContext
    ) -> None:
        connection.context = self._latest

    def _stamped(self) -> list[Stamp]:
        return [_stamp(file) for file in self._files]


def certificate(settings: Settings) -> Certificate | None:
    """As the settings have it; without a key of its own the certificate's file must hold it."""
    if settings.tls_cert is None:
        if settings.tls_key is not None:
            raise TlsError("--tls-key needs --tls-cert, the certificate that the key belongs to")
        return None
    return Certificate(settings.tls_cert, settings.tls_key or settings.tls_cert)


def _stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _loaded(chain: Path, key: Path) -> ssl.SSLContext:
    _check(chain, "--tls-cert", "CERTIFICATE")
    _check(key, "--tls-cert (without --tls-key)" if key == chain else "--tls-key", "PRIVATE KEY")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(chain, key, password=_no_password(key))
    except ssl.SSLError as exc:
        if exc.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
            raise TlsError(
                f"the key in {key.name} does not belong to the certificate in {chain.name}"
            ) from None
        raise TlsError(f"{chain.name} or {key.name} is damaged, or of a kind that OpenSSL refuses") from exc
    except OSError as exc:
        raise TlsError(f"cannot read {chain.name} or {key.name}: {exc.strerror}") from None
    return context


def _check(file: Path, flag: str, what: str) -> None:
    """Whether the file can be read, and has such a block of PEM."""
    try:
        data = file.read_bytes()
    except OSError as exc:
        raise TlsError(f"{flag}: cannot read {file.name}: {exc.strerror}") from None
    if f"{what}-----".encode() not in data:
        raise TlsError(f"{flag}: there is no {what.lower()} in PEM format in {file.name}")
    if what == "PRIVATE KEY" and b"ENCRYPTED" in data:
        raise _locked(key=file)


def _no_password(key: Path) -> Callable[[], str]:
    """For OpenSSL, which would ask on the terminal."""

    def refuse() -> str:
        raise _locked(key)

    return refuse


def _locked(key: Path) -> TlsError:
    return TlsError(
        f"the key in {key.name} has a password; take it off: openssl pkey -in {key.name} -out open.pem"
    )
