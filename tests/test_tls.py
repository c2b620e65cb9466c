"""TLS: a real curl and a real certificate, renewed while the server runs, or wrong."""

from __future__ import annotations

import http.client
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gguf_imagegen.api.tls import TlsError, certificate
from gguf_imagegen.settings import Settings
from tests.conftest import DEADLINE, ServerProcess

KEYS = {"ec": "ec -pkeyopt ec_paramgen_curve:P-256", "ed25519": "ed25519"}


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


def pair(folder: Path, name: str, kind: str = "ec") -> tuple[Path, Path]:
    """A new certificate for 127.0.0.1, signed by itself, and its key."""
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    openssl(
        "req", "-x509", "-nodes", "-newkey", *KEYS[kind].split(), "-days", "2", "-subj", f"/CN={name}",
        "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(chain), "-keyout", str(key),
    )  # fmt: skip
    return chain, key


def curl(url: str, trusted: Path) -> str:
    """What a real client gets that trusts this certificate; "" if it does not trust the server's."""
    ran = subprocess.run(
        ["curl", "-sS", "--max-time", "20", "--cacert", str(trusted), url],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return ran.stdout if ran.returncode == 0 else ""


def wait_until(what: str, happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def renew(source: tuple[Path, Path], target: tuple[Path, Path]) -> None:
    """As certbot does: each file is replaced at once, one after the other."""
    for new, old in zip(source, target, strict=True):
        copy = old.with_suffix(".new")
        copy.write_bytes(new.read_bytes())
        copy.replace(old)


def test_a_certificate_and_its_renewals(tmp_path: Path, serve: Callable[..., ServerProcess]) -> None:
    """curl trusts the first, then the next; open connections stay, and a wrong pair changes nothing."""
    used = pair(tmp_path, "used")
    first, second = tmp_path / "first.pem", pair(tmp_path, "second")
    first.write_bytes(used[0].read_bytes())
    server = serve("--tls-cert", str(used[0]), "--tls-key", str(used[1]), "--grace", "0")
    assert server.url.startswith("https://")
    assert '"alive"' in curl(f"{server.url}/livez", first)
    assert f'"servers":[{{"url":"{server.url}"}}]' in curl(f"{server.url}/openapi.json", first)
    place = urlsplit(server.url)
    assert place.hostname
    trust = ssl.create_default_context(cafile=first)
    kept = http.client.HTTPSConnection(place.hostname, place.port, context=trust, timeout=DEADLINE)
    kept.request("GET", "/livez")
    assert kept.getresponse().read()

    renew(second, used)
    wait_until("the certificate is renewed", lambda: curl(f"{server.url}/livez", second[0]))
    assert curl(f"{server.url}/livez", first) == ""
    kept.request("GET", "/livez")
    assert kept.getresponse().status == 200
    kept.close()

    wrong = "keeping the old TLS certificate: the key in used.key"
    before = server.log().count(wrong)  # a look between the two files
    renew((first, second[1]), used)
    wait_until("the wrong pair is logged", lambda: server.log().count(wrong) > before)
    assert '"alive"' in curl(f"{server.url}/livez", second[0])
    assert str(tmp_path) not in server.log()
    assert server.stop() == 0


def test_one_file_for_both(tmp_path: Path) -> None:
    """Without --tls-key the certificate's file has the key."""
    chain, key = pair(tmp_path, "both")
    chain.write_bytes(chain.read_bytes() + key.read_bytes())
    assert certificate(Settings(tls_cert=chain))
    assert certificate(Settings()) is None


@pytest.mark.parametrize(
    ("cert", "key", "words"),
    [
        ("good.pem", "other.key", "the key in other.key does not belong to the certificate in good.pem"),
        ("good.pem", "ed.key", "the key in ed.key does not belong to the certificate in good.pem"),
        ("good.pem", "locked.key", "has a password; take it off: openssl pkey -in locked.key"),
        ("good.pem", "old.key", "has a password; take it off"),
        ("good.pem", "none.key", "--tls-key: cannot read none.key: No such file or directory"),
        ("folder", "good.key", "--tls-cert: cannot read folder: Is a directory"),
        ("good.pem", "good.pem", "without --tls-key): there is no private key in PEM format in good.pem"),
        ("good.pem", None, "without --tls-key): there is no private key in PEM format in good.pem"),
        ("good.key", "good.key", "--tls-cert: there is no certificate in PEM format in good.key"),
        ("broken.pem", "good.key", "broken.pem or good.key is damaged"),
        (None, "good.key", "--tls-key needs --tls-cert"),
    ],
)
def test_wrong_files_are_words(wrong: Path, cert: str | None, key: str | None, words: str) -> None:
    """Which file, what is wrong with it, what to do; no path, and no question on the terminal."""
    with pytest.raises(TlsError) as told:
        certificate(Settings(tls_cert=wrong / cert if cert else None, tls_key=wrong / key if key else None))
    assert words in str(told.value)
    assert str(wrong) not in str(told.value)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files, and all kinds of bad ones."""
    folder = tmp_path_factory.mktemp("tls")
    pair(folder, "good")
    pair(folder, "other")
    pair(folder, "ed", "ed25519")
    key = str(folder / "good.key")
    openssl("pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", str(folder / "locked.key"))
    openssl("ec", "-in", key, "-aes256", "-passout", "pass:x", "-out", str(folder / "old.key"))
    (folder / "folder").mkdir()
    text = (folder / "good.pem").read_text()
    (folder / "broken.pem").write_text(text.replace("M", "N"))
    return folder


def test_the_server_does_not_start(wrong: Path) -> None:
    """One line, and exit code 1."""
    ran = subprocess.run(
        [sys.executable, "-m", "gguf_imagegen", "serve", "--ephemeral", "--tls-cert", "good.pem"],
        cwd=wrong, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert ran.returncode == 1
    assert "there is no private key" in ran.stderr
    assert "Traceback" not in ran.stderr
