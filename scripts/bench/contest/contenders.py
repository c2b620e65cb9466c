"""Who takes part: a name, what to run, and how; each measures one setting and answers with its times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from scripts.bench import openvino_runtime, sd_server
from scripts.bench.compare_engines import ROOT, TINYBLAS, build
from scripts.bench.contest.server import server_times
from scripts.bench.figures import Teller
from scripts.bench.plausible import model_file

Times = dict[str, float]
BLOCK_PROGRAM: Final = ROOT / "scripts" / "bench" / "openvino_block.py"
MOST_STEPS_OF_PARTS: Final = 4
"""Pictures of more steps are drawn whole, which OpenVINO's modules without a sampler cannot be."""
HELP: Final = """NAME=WHAT[,WORD...]. WHAT is installed, plain (as pip builds it), tinyblas, openvino,
sd-server, or a folder that `pip install --target` made. A WORD is a variable of the environment
(GGML_PACKED=off), a flag of `scripts.bench.contest.engine` (--kernels=off, --no-flash-attention), f32 or
int8 for OpenVINO, or block-flash for flash attention in single blocks."""
DEFAULTS: Final = (
    "plain pip=plain",
    "without our kernels=installed,GGML_PACKED=off",
    "ours=installed,block-flash",
    "OpenVINO=openvino",
    "OpenVINO f32=openvino,f32",
    "sd-server=sd-server",
)


@dataclass(frozen=True)
class Setting:
    """What is measured: `subject` is sd15, sdxs, or a block's name; `size` the pixels of a side."""

    subject: str
    kind: str
    size: int
    threads: int
    steps: int

    @property
    def is_block(self) -> bool:
        return self.subject not in ("sd15", "sdxs")


@dataclass(frozen=True)
class Contender:
    """`what` is a folder, openvino or sd-server; `nice` and the pinned cores are the contest's own."""

    name: str
    what: str
    words: tuple[str, ...]

    def times(self, setting: Setting, *more: str) -> Times | None:
        """None where it does not take part: OpenVINO has no GGUF types, sd-server no single blocks.

        `more` are further flags of the program of a build.
        """
        match self.what:
            case "openvino":
                return self._openvino(setting)
            case "sd-server":
                return None if setting.is_block else self._server(setting)
            case _:
                return self._build(setting, *more)

    def _build(self, setting: Setting, *more: str) -> Times:
        threads = ["--threads", str(setting.threads)]
        if setting.is_block:
            flash = ["--flash-attention"] * ("block-flash" in self.words)
            command = ["scripts.bench.ggml_block", setting.subject, setting.kind, *threads, *flash]
            return self._run([sys.executable, "-m", *command])
        model = str(model_file(setting.subject, setting.kind))
        flags = [word for word in self.words if word.startswith("--")]
        size = ["--size", f"{setting.size}x{setting.size}", "--steps", str(setting.steps)]
        return self._run(
            [sys.executable, "-m", "scripts.bench.contest.engine", model, *size, *threads, *flags, *more]
        )

    def _openvino(self, setting: Setting) -> Times | None:
        precision = "f32" if "f32" in self.words else ""
        python, threads = str(openvino_runtime.python()), str(setting.threads)
        if setting.is_block:
            kind = precision or ("int8" if "int8" in self.words else "default")
            return self._run([python, str(BLOCK_PROGRAM), setting.subject, kind, threads])
        if setting.kind != "F16" or setting.steps > MOST_STEPS_OF_PARTS:
            return None  # it has no GGUF types, and no sampler
        models = openvino_runtime.MODELS if setting.subject == "sd15" else openvino_runtime.SDXS
        command = [python, str(openvino_runtime.PROGRAM), "measure", str(models), str(setting.size), threads]
        return self._run([*command, *([precision] if precision else [])])

    def _server(self, setting: Setting) -> Times:
        binary = sd_server.built(_Quiet())
        model = model_file(setting.subject, setting.kind)
        return server_times(binary, model, setting.size, setting.steps, setting.threads)

    def _run(self, command: Sequence[str]) -> Times:
        variables = dict(
            word.split("=", 1) for word in self.words if "=" in word and not word.startswith("-")
        )
        folder = "" if self.what in ("installed", "openvino") else self.what
        path = os.pathsep.join(filter(None, [folder, str(ROOT)]))
        environment = {**os.environ, "PYTHONPATH": path, **variables}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ran.returncode:
            last = (ran.stderr.strip() or f"status {ran.returncode}").splitlines()[-1]
            raise RuntimeError(f"{self.name}: {last}")
        return dict(json.loads(ran.stdout.splitlines()[-1]))


class _Quiet:
    def say(self, text: str) -> None:
        Console(stderr=True).print(text, highlight=False)


def contender(text: str, teller: Teller | None = None) -> Contender:
    """Parse NAME=WHAT[,WORD...]; builds and environments are made here, for minutes at the first time."""
    name, _, rest = text.partition("=")
    what, *words = rest.split(",")
    if not name or not what:
        raise ValueError(f"{text}: expected NAME=WHAT[,WORD...]")
    match what:
        case "plain":
            what = str(build("plain", "", Console(stderr=True)).folder)
        case "tinyblas":
            what = str(build("tinyblas", TINYBLAS, Console(stderr=True)).folder)
        case "openvino":
            openvino_runtime.prepare(teller or _Quiet())
        case "sd-server":
            sd_server.built(teller or _Quiet())
        case "installed":
            pass
        case folder if not (Path(folder) / "stable_diffusion_cpp").is_dir():
            raise ValueError(f"{folder}: no engine there; `pip install --target` makes one")
    return Contender(name, what, tuple(words))
