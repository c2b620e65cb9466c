"""Pull, rm, verify and serve as a user runs them: real processes, a hub of our own, kills."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from gguf_imagegen.catalog.entry import PACKAGED
from gguf_imagegen.commands.pull import shown, transfer_words
from gguf_imagegen.download.progress import Downloading, FileReady, Planned, Rewriting, Verifying
from gguf_imagegen.planning.addons import named_file, names_in
from tests.conftest import ServerProcess
from tests.hub import DEADLINE, HubServer, write_catalog

MB = 1_000_000
SIZE = 20 * MB
DATA = np.random.default_rng(1).bytes(SIZE)
SMALL = DATA[:MB]
TAE = PACKAGED / "embedded-tae.gguf"
ROOT = Path(__file__).parents[2]


class Home:
    """A models folder, a catalog whose models lie in the hub, and the command line in real processes."""

    def __init__(self, folder: Path, hub: HubServer) -> None:
        self.hub = hub
        self.models = folder / "models"
        big = {**hub.add("org/big", "big.gguf", DATA), "sha256": None}
        shared = hub.add("org/shared", "vae.safetensors", SMALL)
        two = {"model": hub.add("org/two", "two.gguf", SMALL[::-1]), "vae": shared}
        self.catalog = write_catalog(folder / "hub.yaml", big={"model": big, "vae": shared}, two=two)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "COLUMNS": "200",
        }  # fmt: skip

    def command(self, *words: str) -> list[str]:
        flags = ["--models-dir", str(self.models), "--catalog", str(self.catalog)]
        return [sys.executable, "-m", "gguf_imagegen", *words, *flags]

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env={**self.env, **env}, capture_output=True, text=True, timeout=120
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*words), env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def file(self, name: str) -> Path:
        return self.models / "org" / name

    def partial(self, size: int) -> Path:
        """What has arrived of the big file, as soon as it is so large."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            for path in self.models.glob(".state/org/big/big.gguf.*.partial"):
                if path.stat().st_size >= size:
                    return path
            time.sleep(0.01)
        raise AssertionError("nothing arrives")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with HubServer() as hub:
        yield Home(tmp_path, hub)


def fails_in_one_line(run: subprocess.CompletedProcess[str], words: str) -> None:
    assert run.returncode == 1, run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("gguf-imagegen: ")
    assert words in last
    assert "Traceback" not in run.stderr


def test_pull_verify_rm(home: Home) -> None:
    """A model is pulled and found right; shared files survive the removal of one of two models."""
    for name in ("big", "two"):
        run = home.run("pull", name)
        assert run.returncode == 0, run.stderr
        assert run.stderr.splitlines()[-1] == f"{name} is on this machine"
    assert home.file("big/big.gguf").read_bytes() == DATA
    assert "vae.safetensors: is here" in run.stderr
    run = home.run("verify", "big")
    assert run.returncode == 0, run.stderr
    assert run.stdout == "org/big/big.gguf: as published\norg/shared/vae.safetensors: as published\n"
    run = home.run("rm", "big")
    assert run.returncode == 0, run.stderr
    assert run.stdout == (
        "removed org/big/big.gguf\nkept org/shared/vae.safetensors: another model uses it\n20 MB freed\n"
    )
    assert home.run("rm", "two").returncode == 0
    assert [path for path in home.models.rglob("*") if path.is_file()] == []
    fails_in_one_line(home.run("rm", "two"), "model 'two' has no files of its own on this machine")
    run = home.run("verify", "glyph-128")
    assert (run.returncode, run.stderr) == (0, "")
    assert "comes with the package" in run.stdout


def test_quantisations(home: Home) -> None:
    """ID:QUANT is pulled alone, ID is what is here already, and rm of ID takes every quantisation."""
    q4, q8 = (
        {**home.hub.add("org/both", f"{name}.gguf", SMALL[number:])}
        for number, name in enumerate(("q4", "q8"))
    )
    write_catalog(home.catalog, both={"quants": {"q4": q4, "q8": q8}})
    assert home.run("pull", "both:q8").stderr.splitlines()[-1] == "both:q8 is on this machine"
    assert home.run("pull", "both").stderr.splitlines()[-1] == "both:q8 is on this machine"
    assert [path.name for path in home.file("both").iterdir()] == ["q8.gguf"]
    assert home.run("pull", "both:q4").returncode == 0
    fails_in_one_line(home.run("rm", "both:q5"), "there are: q4, q8")
    assert home.run("rm", "both").stdout.startswith("removed org/both/q4.gguf\nremoved org/both/q8.gguf\n")


def test_what_does_not_fit_is_not_pulled(home: Home) -> None:
    """A named quantisation is held against the memory too; the words name the flag that turns this off."""
    huge = {"repo": "org/huge", "file": "huge.gguf", "bytes": 10**15}
    quants = {"F16": huge, "Q4_0": home.hub.add("org/huge", "small.gguf", SMALL)}
    write_catalog(home.catalog, huge={"quants": quants})
    run = home.run("pull", "huge:F16")
    fails_in_one_line(run, "'huge:F16' needs about 10000")
    for words in (" may be used: take huge:Q4_0, which fits", "--no-memory-check"):
        assert words in run.stderr
    assert "org/huge/resolve" not in str(home.hub.contents)
    fails_in_one_line(home.run("pull", "huge:F16", "--no-memory-check"), "huge.gguf")
    assert home.run("pull", "huge").stderr.splitlines()[-1] == "huge:Q4_0 is on this machine"


def test_components(home: Home, tmp_path: Path) -> None:
    """LoRAs and upscalers get their names in a folder that requests can name them from; others a flag."""
    header = b'{"x.lora_down.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    lora = len(header).to_bytes(8, "little") + header + bytes(4)
    catalog = yaml.safe_load(home.catalog.read_text())
    catalog["components"] = {
        "fast": home.hub.add("org/fast", "weights.safetensors", lora),
        "larger": home.hub.add("org/larger", "larger.pth", b"PK"),
        "tiny": home.hub.add("org/tiny", "tae.gguf", TAE.read_bytes()),
    }
    home.catalog.write_text(yaml.safe_dump(catalog))
    run = home.run("pull", "fast")
    assert run.returncode == 0, run.stderr
    loras = home.models / "loras"
    assert run.stderr.splitlines()[-2:] == [
        "fast is on this machine",
        f"requests can name it 'fast' when the server has: --lora-dir {loras}",
    ]
    assert named_file("fast", loras, "lora").read_bytes() == lora
    assert home.run("pull", "fast").returncode == 0
    run = home.run("pull", "larger", "--upscaler-dir", str(tmp_path / "mine"))
    assert run.stderr.endswith(
        f"requests can name it 'larger' when the server has: --upscaler-dir {tmp_path / 'mine'}\n"
    )
    assert names_in(tmp_path / "mine", "upscaler") == ["larger"]
    path = home.file("tiny/tae.gguf")
    assert home.run("pull", "tiny").stderr.endswith(
        f"it lies at {path}; use it with: --component taesd={path}\n"
    )
    (tmp_path / "mine/fast.safetensors").write_bytes(b"own")
    run = home.run("pull", "fast", "--lora-dir", str(tmp_path / "mine"))
    assert "fast.safetensors is another file, and stays as it is" in run.stderr
    assert (tmp_path / "mine/fast.safetensors").read_bytes() == b"own"


def test_progress_in_a_log(home: Home) -> None:
    """Where stderr is no terminal, there is a line with speed for each tenth of a file."""
    lines = home.run("pull", "two").stderr.splitlines()
    assert "2 files, 2 MB of 2 MB to come" in lines
    assert any(line.startswith("two.gguf: 100 % fetched, 1 MB of 1 MB, ") for line in lines), lines
    assert "two.gguf: done" in lines
    assert len(lines) < 60


def test_a_killed_pull_goes_on(home: Home) -> None:
    """After kill -9 in the middle the next pull asks only for the rest, and the file is right."""
    home.hub.faults.hold_after = 8 * MB
    with home.start("pull", "big") as process:
        partial = home.partial(MB)
        process.kill()
    arrived = partial.stat().st_size
    assert MB <= arrived <= 8 * MB
    first = len(home.hub.contents)
    home.hub.release()
    run = home.run("pull", "big")
    assert run.returncode == 0, run.stderr
    (rest,) = [one for one in home.hub.contents[first:] if one.sent > MB]
    assert rest.range == f"bytes={arrived}-"
    assert rest.sent == SIZE - arrived
    assert home.file("big/big.gguf").read_bytes() == DATA


def test_ctrl_c_ends_a_pull(home: Home) -> None:
    """SIGINT ends a pull at once with the exit code of shells, words on how to go on, and no traceback."""
    home.hub.faults.hold_after = 5 * MB
    with home.start("pull", "big") as process:
        home.partial(MB)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "stopped; `gguf-imagegen pull big` goes on from there"
    assert "Traceback" not in stderr


def test_two_processes(home: Home) -> None:
    """The second of two pulls of one model ends with who has it; the first is not disturbed."""
    home.hub.faults.hold_after = MB // 2
    with home.start("pull", "two") as process:
        home.hub.wait_until("the hub holds", lambda: home.hub.sent >= MB // 2)
        fails_in_one_line(home.run("pull", "two"), f"by another process (process {process.pid})")
        home.hub.release()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert home.file("two/two.gguf").read_bytes() == SMALL[::-1]


def test_offline(home: Home) -> None:
    """HF_HUB_OFFLINE is obeyed: the hub gets no request, and what is here already is enough."""
    fails_in_one_line(
        home.run("pull", "two", HF_HUB_OFFLINE="1"), "two.gguf is not downloaded, and HF_HUB_OFFLINE is set"
    )
    assert home.hub.served == []
    assert home.run("pull", "two").returncode == 0
    assert home.run("pull", "two", HF_HUB_OFFLINE="1").returncode == 0


def test_a_token_is_never_shown(home: Home) -> None:
    """A refused token stands neither in the words nor in the log."""
    run = home.run("pull", "two", HF_TOKEN="hf_secretSecretSecret")
    fails_in_one_line(run, "check HF_TOKEN")
    assert "hf_secret" not in run.stderr + run.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [("nothing", "there is no model 'nothing'"), ("tiny-random", "get it from: gguf-imagegen")],
)
def test_models_that_cannot_be_pulled(home: Home, name: str, words: str) -> None:
    """An unknown model and one without a source are refused in one line."""
    fails_in_one_line(home.run("pull", name), words)


def test_a_packaged_model_is_here(home: Home) -> None:
    """What comes with the package needs no pull, and cannot be removed."""
    run = home.run("pull", "embedded")
    assert (run.returncode, run.stderr) == (0, "embedded comes with the package; nothing to download\n")
    assert home.hub.served == []
    fails_in_one_line(home.run("rm", "embedded"), "does not lie in the models folder")


def test_verify_finds_rot(home: Home) -> None:
    """A flipped bit in a file on disk is found, the file set aside, and the next pull brings it anew."""
    assert home.run("pull", "two").returncode == 0
    file = home.file("two/two.gguf")
    file.write_bytes(b"\0" + SMALL[::-1][1:])
    run = home.run("verify", "two")
    assert run.returncode == 1
    assert "org/two/two.gguf: WRONG, set aside; pull the model again\n" in run.stdout
    assert not file.exists()
    assert home.run("pull", "two").returncode == 0
    assert file.read_bytes() == SMALL[::-1]
    assert list(home.models.rglob("*.corrupt")) == []


def test_verify_asks_the_hub_for_what_nobody_noted(home: Home) -> None:
    """A file put there by hand that the catalog has no hash of is compared with the hub's."""
    file = home.file("big/big.gguf")
    file.parent.mkdir(parents=True)
    file.write_bytes(DATA)
    run = home.run("verify", "big", HF_HUB_OFFLINE="1")
    assert run.returncode == 0
    assert run.stdout.startswith("org/big/big.gguf: no hash is published for it; its sha256 is ")
    assert home.run("verify", "big").stdout == "org/big/big.gguf: as published\n"


@pytest.mark.posix
def test_a_file_that_the_disk_does_not_take(home: Home) -> None:
    """A refused write ends the pull with what is wrong; what had arrived stays, and resumes."""
    words = shlex.join(home.command("pull", "big"))
    limited = subprocess.run(
        ["bash", "-c", f"ulimit -f 4096; {words}"],  # blocks of 1024 bytes
        env=home.env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert limited.returncode == 1
    assert "the models folder cannot hold so large a file: File too large" in limited.stderr
    assert "Traceback" not in limited.stderr
    arrived = sum(path.stat().st_size for path in home.models.rglob("big.gguf.*.partial"))
    assert 0 < arrived <= 4096 * 1024
    assert home.run("pull", "big").returncode == 0


def test_a_full_disk_is_named(home: Home) -> None:
    """The system's "no space left on device" becomes words with what to do."""
    code = (
        "from gguf_imagegen.download.pull import disk_errors\n"
        "with disk_errors():\n    open('/dev/full', 'wb', buffering=0).write(b'x')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=home.env, capture_output=True, text=True, timeout=60
    )
    assert "DiskFull: the disk of the models folder is full: No space left on device; make room" in run.stderr


def test_the_script(home: Home) -> None:
    """scripts/download_models.py does what pull does, for several models."""
    script = [sys.executable, str(ROOT / "scripts" / "download_models.py"), "two", "big"]
    flags = ["--models-dir", str(home.models), "--catalog", str(home.catalog)]
    run = subprocess.run([*script, *flags], env=home.env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert home.file("big/big.gguf").read_bytes() == DATA
    assert home.file("two/two.gguf").exists()


def test_serve_pulls_what_it_serves(tmp_path: Path, model_dir: Path) -> None:
    """`serve --model ID` fetches the missing files with progress on stderr, and then serves the model."""
    with HubServer() as hub:
        sources: dict[str, Any] = {
            "model": hub.add("org/tiny", "tiny.gguf", (model_dir / "tiny-random.gguf").read_bytes()),
            "taesd": hub.add("org/tiny", "tae.gguf", (model_dir / "tiny-random-tae.gguf").read_bytes()),
        }
        catalog = write_catalog(tmp_path / "hub.yaml", from_hub=sources)
        process = ServerProcess(
            tmp_path / "models",
            "--model",
            "from-hub",
            "--catalog",
            str(catalog),
            env={"HF_ENDPOINT": hub.url},
        )
        try:
            assert "tiny.gguf: done\n" in process.log()
            process.wait_until_ready()
        finally:
            process.stop()


def test_bars_show_every_event() -> None:
    """On a terminal each file has a bar with what is done with it, and speed and time left."""
    console = Console(force_terminal=True, width=120, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115
    with shown(console) as show:
        show(Planned((("org/m/a.gguf", 10), ("org/m/b.gguf", 10), ("org/m/c.gguf", 10)), 0, 30))
        show(Downloading("org/m/a.gguf", 5, 10, 2_500_000, 125.0))
        show(Verifying("org/m/b.gguf", 10, 10))
        show(Rewriting("org/m/c.gguf", 3, 10))
        show(FileReady("org/m/d.gguf", fetched=False))
    text = console.export_text()
    console.file.close()
    for words in (
        "a.gguf",
        "50 %",
        "5 bytes of 10 bytes, 2 MB/s, 2:05 left",
        "verifying",
        "rewriting",
        "is here",
    ):
        assert words in text, text


def test_time_left_in_words() -> None:
    """Hours are told where there are some, and nothing at the end or while nothing comes."""
    assert transfer_words(Downloading("x", 1, 10, 1.0, 7384.0)).endswith(", 2:03:04 left")
    assert transfer_words(Downloading("x", 10, 10, 1.0, 0.0)).endswith("1 bytes/s")
    assert transfer_words(Downloading("x", 1, 10, 0.0, None)).endswith("0 bytes/s")
