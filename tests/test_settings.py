"""Settings: said once, reachable by flag and by variable, refused when they would open the server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import SecretStr, ValidationError

from gguf_imagegen.commands.flags import env_name, settings_from
from gguf_imagegen.settings import Keep, Settings, is_loopback

SECRET = "sesame-4711"


@cache
def serve_help() -> str:
    command = [sys.executable, "-m", "gguf_imagegen", "serve", "--help"]
    env = {**os.environ, "COLUMNS": "250"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60).stdout


def example(name: str) -> tuple[str, Any]:
    """A value of this field that is not its default, as text and as what it becomes."""
    special = {
        "component": ("vae=a.gguf, llm=b.gguf", ("vae=a.gguf", "llm=b.gguf")),
        "served_model_name": ("one, two", ("one", "two")),
        "lora_names": ("a=b, c=@a:0.5", ("a=b", "c=@a:0.5")),
        "min_pixels": ("5000", 5000),
        "min_side": ("70", 70),
        "default_size": ("256x128", "256x128"),
        "default_steps": ("42", 42),
        "keep_pictures": ("1.5GB, 2d", Keep(1_500_000_000, 2 * 86_400.0)),
        "cors_origins": ("http://a,http://b", ("http://a", "http://b")),
        "allowed_hosts": ("a,b", ("a", "b")),
        "alias": ("a=b, c=d", ("a=b", "c=d")),
        "config": (os.devnull, Path(os.devnull)),
        "root_path": ("img/", "/img"),
        "trusted_proxies": ("10.0.0.1/8, ::1", (ip_network("10.0.0.0/8"), ip_network("::1"))),
        "api_key": ("one,two", (SecretStr("one"), SecretStr("two"))),
        "webhook_secret": ("one,two", (SecretStr("one"), SecretStr("two"))),
        "webhooks": ("http://a/b, https://c", ("http://a/b", "https://c")),
        "enhance_key": ("words", SecretStr("words")),
        "cluster_token": ("words", SecretStr("words")),
        "cluster_ports": ("6400-6499", "6400-6499"),
        "host": ("localhost", "localhost"),
        "otlp_endpoint": ("http://a:4318", "http://a:4318"),
        "devices": ("cuda:0, cpu", ("cuda:0", "cpu")),
        "dialects": ("openai, a1111", ("openai", "a1111")),
        "heartbeat": ("2.5", 2.5),
        "max_input_pixels": ("5000", 5000),
        "max_loaded": ("4", 4),
        "max_pixels": ("5000", 5000),
        "max_side": ("5000", 5000),
    }
    annotation = Settings.model_fields[name].annotation
    if name in special:
        return special[name]
    annotation = next((each for each in get_args(annotation) if get_origin(each) is Literal), annotation)
    if get_origin(annotation) is Literal:
        other = next(v for v in get_args(annotation) if v != Settings.model_fields[name].default)
        return other, other
    if annotation is bool:
        other = not Settings.model_fields[name].default
        return str(other).lower(), other
    if annotation in (int, float):
        return "42", 42
    if annotation is Path or Path in get_args(annotation):
        return "/some/where", Path("/some/where")
    return "words", "words"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_each_field_has_a_flag_and_a_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve --help` shows the flag, its meaning and its variable; the variable really sets the field."""
    flag, variable = f"--{name.replace('_', '-')}", f"GGUF_IMAGEGEN_{name.upper()}"
    line = next(line for line in serve_help().splitlines() if re.search(rf"{flag}\b(?!-)", line))
    assert f"[env: {variable}]" in line
    assert str(Settings.model_fields[name].description).split(",")[0] in line
    text, value = example(name)
    assert getattr(Settings(), name) != value
    monkeypatch.setenv(variable, text)
    assert getattr(Settings(), name) == value


def test_help_tells_the_defaults() -> None:
    """Square brackets are not lost as markup."""
    assert "[default: 8080]" in serve_help()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_each_field_is_in_the_docs(name: str) -> None:
    """docs/settings.md has a row for every flag, with the default of those that have a number."""
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
    (row,) = [
        row
        for row in page.splitlines()
        if row.startswith("| `") and f"`--{name.replace('_', '-')}`" in row.split("|")[1]
    ]
    default = Settings.model_fields[name].default
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        assert f"{default:.10g}" in row.split("|")[2]


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flag, then variable, then default."""
    assert settings_from({}).port == 8080
    monkeypatch.setenv("GGUF_IMAGEGEN_PORT", "1234")
    monkeypatch.setenv("GGUF_IMAGEGEN_THREADS", "3")
    settings = settings_from({"port": 4321})
    assert (settings.port, settings.threads) == (4321, 3)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("10GB,30d", Keep(10**10, 30 * 86_400.0)),
        ("1w, 500 MiB", Keep(500 << 20, 7 * 86_400.0)),
        ("2TB", Keep(2 * 10**12, None)),
        ("12h", Keep(None, 12 * 3600.0)),
        ("none", Keep(None, 0.0)),
        ("0", Keep(None, 0.0)),
    ],
)
def test_how_much_is_kept(text: str, kept: Keep) -> None:
    """A size, an age, both in either order, or nothing."""
    assert Settings(keep_pictures=text).keep_pictures == kept


@pytest.mark.parametrize("text", ["", "lots", "10", "10GB,20GB", "1d,2d", "-1GB", "10GB;30d", "10GB,none"])
def test_how_much_is_kept_is_checked(text: str) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(ValidationError, match="such as 10GB,30d"):
        Settings(keep_pictures=text)


def test_the_state_folder_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG's variable, or its default; `~` is the home folder."""
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert Settings().state_dir == Path("/var/state/gguf-imagegen")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert Settings().state_dir == Path.home() / ".local/state/gguf-imagegen"
    assert Settings(state_dir=Path("~/x")).state_dir == Path.home() / "x"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_beyond_loopback_needs_a_key(host: str) -> None:
    """An address that others reach is refused with the ways out; a key or --insecure opens it."""
    with pytest.raises(ValidationError, match=r"without a key: set --api-key .*--insecure"):
        Settings(host=host)
    assert Settings(host=host, api_key="k").host == host
    assert Settings(host=host, insecure=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    """The machine's own addresses are open to the machine."""
    assert is_loopback(host)
    assert Settings(host=host).host == host


def test_an_empty_key_is_no_key() -> None:
    """`--api-key ""` or a comma does not pass for protection."""
    for key in ("", " , "):
        with pytest.raises(ValidationError, match="without a key"):
            Settings(host="0.0.0.0", api_key=key)


def test_secrets_are_not_shown() -> None:
    """Neither repr, nor str, nor a dump has the key."""
    settings = Settings(api_key=SECRET)
    assert settings.api_key[0].get_secret_value() == SECRET
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert SECRET not in shown


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        (["--port", "99999"], {}, "--port (or GGUF_IMAGEGEN_PORT): "),
        ([], {"GGUF_IMAGEGEN_MAX_QUEUE": "0"}, "--max-queue (or GGUF_IMAGEGEN_MAX_QUEUE): "),
        ([], {"GGUF_IMAGEGEN_RNG": "dice"}, "--rng (or GGUF_IMAGEGEN_RNG): "),
        (["--keep-alive", "nan"], {}, "--keep-alive (or GGUF_IMAGEGEN_KEEP_ALIVE): Input should be a finite"),
        (["--host", "0.0.0.0"], {}, "refusing to listen on 0.0.0.0 without a key"),
        (["--heartbeat", "0", "--api-key", SECRET], {}, "--heartbeat"),
    ],
)
def test_wrong_values_end_in_words(flags: list[str], env: dict[str, str], words: str) -> None:
    """Exit code 2, the flag and its variable named; no traceback and no key."""
    run = subprocess.run(
        [sys.executable, "-m", "gguf_imagegen", "serve", *flags],
        env={**os.environ, "COLUMNS": "250", **env}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 2
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    assert SECRET not in run.stderr + run.stdout


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_no_number_is_without_end(value: str) -> None:
    """NaN and the infinities pass no bound by luck, whatever the setting."""
    for name, field in Settings.model_fields.items():
        if field.annotation is float:
            with pytest.raises(ValidationError, match=name):
                Settings.model_validate({name: value})


def test_settings_do_not_change() -> None:
    """Read once, the same to the end."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


def test_variables_are_named_after_fields() -> None:
    """The name in the help is the name that pydantic-settings reads."""
    assert env_name("max_body_mb") == "GGUF_IMAGEGEN_MAX_BODY_MB"
    assert Settings(max_body_mb=0.5).max_body_bytes == 512 * 1024
