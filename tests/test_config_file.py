"""The file of --config: what it sets, what goes before it, and what is wrong with it in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from gguf_imagegen.api.callers import Callers
from gguf_imagegen.commands.flags import settings_from
from gguf_imagegen.settings import Keep, Settings

ROOT = Path(__file__).parents[1]
SECRET = "sesame-4711"


def written(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def test_flag_then_variable_then_file_then_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that says something counts."""
    path = written(tmp_path, "port = 1\nthreads = 2\nmax_queue = 3\nmax-images = 4\n")
    monkeypatch.setenv("GGUF_IMAGEGEN_CONFIG", str(path))
    monkeypatch.setenv("GGUF_IMAGEGEN_THREADS", "20")
    monkeypatch.setenv("GGUF_IMAGEGEN_PORT", "10")
    settings = settings_from({"port": 100})
    assert (settings.port, settings.threads, settings.max_queue, settings.max_images) == (100, 20, 3, 4)
    assert settings.max_loaded == 1
    other = written(tmp_path, "max_queue = 7")
    assert settings_from({"config": other}).max_queue == 7


def test_values_of_every_kind(tmp_path: Path) -> None:
    """Lists and comma-separated texts, paths, switches, sizes with words."""
    path = written(
        tmp_path,
        'api_key = ["a", "b"]\ncors_origins = "http://a, http://b"\nmodels_dir = "~/m"\nephemeral = true\n'
        'default_steps = 9\nkeep_alive = 5\nkeep_pictures = "1GB"\nrng = "cpu"\n'
        'trusted_proxies = ["10.0.0.0/8"]\n',
    )
    settings = Settings(config=path)
    assert [key.get_secret_value() for key in settings.api_key] == ["a", "b"]
    assert settings.cors_origins == ("http://a", "http://b")
    assert settings.models_dir == Path.home() / "m"
    assert (settings.ephemeral, settings.keep_alive, settings.rng) == (True, 5.0, "cpu")
    assert settings.default_steps == 9
    assert settings.keep_pictures == Keep(10**9, None)
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_que = 1", "own.toml: there is no setting 'max_que'; do you mean max_queue?"),
        ("[server]\nport = 1", "own.toml: there is no setting 'server'"),
        ('config = "x"', "own.toml: there is no setting 'config'"),
        ("port = true", "own.toml: port: must be a whole number"),
        ('port = "8080"', "own.toml: port: must be a whole number"),
        ("port = 99999", "own.toml: port: Input should be less than or equal to 65535"),
        ("ephemeral = 1", "own.toml: ephemeral: must be true or false"),
        ("keep-alive = false", "own.toml: keep-alive: must be a number"),
        ('default_steps = "9"', "own.toml: default_steps: must be a whole number"),
        ("model = 5", "own.toml: model: must be a text"),
        ("devices = 1979-05-27", "own.toml: devices: must be a text, or a list of texts"),
        ("allowed_hosts = [1]", "own.toml: allowed_hosts: Input should be a valid string"),
        ('rng = "dice"', "own.toml: rng: Input should be 'cuda' or 'cpu'"),
        ("max_queue = 1\nmax-queue = 2", "own.toml: max-queue: is given twice"),
        ("port = \n", "own.toml: not valid TOML: Invalid value (at line 1, column 8)"),
        ('host = "0.0.0.0"', "refusing to listen on 0.0.0.0 without a key"),
        (f'api_key = "{SECRET}"\nport = -1', "own.toml: port: Input should be greater"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, words: str) -> None:
    """With the file's name and the key; without its folder, and without the keys in it."""
    with pytest.raises(typer.BadParameter) as told:
        settings_from({"config": written(tmp_path, text)})
    assert words in told.value.message
    assert str(tmp_path) not in told.value.message
    assert SECRET not in told.value.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a folder, or no text."""
    (tmp_path / "latin.toml").write_bytes(b'model = "\xe4"')
    for name, words in (
        ("none.toml", "cannot read none.toml: No such file"),
        ("", f"cannot read {tmp_path.name}: Is a directory"),
        ("latin.toml", "latin.toml: is not UTF-8 text"),
    ):
        with pytest.raises(typer.BadParameter, match=words):
            settings_from({"config": tmp_path / name})


def test_a_flag_mends_what_the_file_has_wrong_and_keeps_its_own_words(tmp_path: Path) -> None:
    """The flag's value is what counts, and what is blamed."""
    path = written(tmp_path, "port = 99999")
    assert settings_from({"config": path, "port": 1}).port == 1
    with pytest.raises(typer.BadParameter, match=r"^--port"):
        settings_from({"config": path, "port": -1})


def test_keys_that_others_may_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning with the file's name, when it holds keys."""
    path = written(tmp_path, f'api_key = "{SECRET}"')
    Callers(Settings(config=path))
    assert caplog.text == ""
    path.chmod(0o644)
    Callers(Settings(config=path))
    assert "other users can read the keys in own.toml: chmod 600 it" in caplog.text
    assert str(tmp_path) not in caplog.text
    assert SECRET not in caplog.text


def test_the_example_is_right() -> None:
    """Every key of it is a setting, and none says its default."""
    settings, usual = Settings(config=ROOT / "docs/gguf-imagegen.toml"), Settings()
    assert settings.root_path == "/img"
    for name in settings.of_config():
        assert getattr(settings, name) != getattr(usual, name), name


@pytest.mark.parametrize("command", [("models",), ("doctor",), ("verify", "x"), ("catalog", "check")])
def test_every_command_that_has_settings_takes_it(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Exit code 2 and words for a file that is wrong."""
    ran = subprocess.run(
        [sys.executable, "-m", "gguf_imagegen", *command, "--config", str(written(tmp_path, "a = 1"))],
        env={**os.environ, "COLUMNS": "250"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "own.toml: there is no setting 'a'" in ran.stderr
    assert "Traceback" not in ran.stderr
