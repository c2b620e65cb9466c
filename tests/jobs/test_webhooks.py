"""Which addresses a webhook may have, how its letters are signed, and which settings are refused."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from gguf_imagegen.jobs.letter import Letter, signed
from gguf_imagegen.jobs.webhooks import Webhooks
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidRequest

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = bytes.fromhex("31f290f6bf06298aab4f08d43c3f082cf648a362da2da4b0")


def webhooks(*prefixes: str, secret: str = SECRET) -> Webhooks:
    return Webhooks(Settings(webhooks=prefixes, webhook_secret=(SecretStr(secret),)))


@pytest.mark.parametrize(
    "address",
    [
        "https://host/hooks",
        "https://host/hooks/",
        "https://HOST:443/hooks/a%20b?key=1",
        "https://host/hooks/a..b",
        "http://127.0.0.1:9000/",
    ],
)
def test_addresses_below_a_listed_one_are_allowed(address: str) -> None:
    """Written this way or that."""
    webhooks("https://host/hooks/", "http://127.0.0.1:9000").check(address)


@pytest.mark.parametrize(
    "address",
    [
        "http://host/hooks", "https://host:8443/hooks", "https://host/hooksandmore", "https://host/",
        "https://host.evil/hooks", "https://host@evil/hooks", "https://me:pw@host/hooks", "https://evil/hooks",
        "https://host/hooks/../admin", "https://host/hooks/%2e%2e/admin", "https://host/hooks/..%2fadmin",
        "https://host/hooks/%2E%2E%2Fadmin", "//host/hooks", "/hooks", "hooks", "https://", "https://[", "ftp://host/hooks",
        "https://host\\@evil/hooks", "https://evil\\@host/hooks", "file:///etc/passwd", "https://host:x/hooks",
    ],
)  # fmt: skip
def test_all_others_are_refused(address: str) -> None:
    """Other schemes, hosts, ports and paths, in every disguise."""
    with pytest.raises(InvalidRequest, match=r"^webhook: is not one that the server's administrator allows"):
        webhooks("https://host/hooks").check(address)


def test_a_server_without_any_says_what_is_missing() -> None:
    """It is the administrator's to say."""
    with pytest.raises(InvalidRequest, match="--webhooks"):
        Webhooks(Settings()).check("https://host/hooks")
    Webhooks(Settings()).check(None)


def test_signatures_are_those_of_the_standard() -> None:
    """As the library standardwebhooks 1.1.0 makes them; one by each key."""
    letter = Letter("job_p5jXN8AQM9LWM0D4loKWxJek", "", b'{"test": 2432232314}', 0, 0)
    once = "v1,CuQEixOgNjIb/BtSCLVbz1Iik26r+A3VzKf9jkyrJaI="
    assert signed(letter, [KEY], 1614265330.9) == {
        "webhook-id": letter.job,
        "webhook-timestamp": "1614265330",
        "webhook-signature": once,
    }
    first, second = signed(letter, [KEY, KEY[::-1]], 1614265330)["webhook-signature"].split(" ")
    assert first == once
    assert second.startswith("v1,")
    assert second != once


@pytest.mark.parametrize(
    ("prefix", "secret", "param"),
    [
        ("host/hooks", SECRET, "webhooks"),
        ("https://me@host/", SECRET, "webhooks"),
        ("https://host/?a", SECRET, "webhooks"),
        ("https://host/", "whsec_c2hvcnQ=", "webhook_secret"),
        ("https://host/", SECRET.removeprefix("whsec_"), "webhook_secret"),
        ("https://host/", "whsec_no base64", "webhook_secret"),
    ],
)
def test_settings_that_make_no_sense_are_refused(prefix: str, secret: str, param: str) -> None:
    """At the start, and without the secret in the words."""
    with pytest.raises(InvalidRequest) as refused:
        webhooks(prefix, secret=secret)
    assert refused.value.param == param
    assert secret not in refused.value.message
    with pytest.raises(InvalidRequest, match="needed with --webhooks"):
        Webhooks(Settings(webhooks=("https://host/",)))
