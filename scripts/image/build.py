"""Building a stage: a Debian of debootstrap, and the steps of the Dockerfile in it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from scripts.image.dockerfile import Stage, Step

ROOT: Final = Path(__file__).resolve().parents[2]
UNSEEN: Final = shutil.ignore_patterns("__pycache__")
"""Of the checkout, as Dockerfile.dockerignore has it."""
CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"
TRUSTED: Final = "/run/trusted.crt"
"""This machine's certificates while a step runs: the index of packages may have one of its own."""
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENTER: Final = f"""\
set -e
cd "$1"; shift
mount --make-rprivate /
mount -t proc proc proc
mount --rbind /dev dev
while [ "$1" != -- ]; do mkdir -p ".$2"; mount --bind "$1" ".$2"; shift 2; done; shift
touch .{TRUSTED}; mount --bind {CERTIFICATES} .{TRUSTED}
exec "$@"
"""


@dataclass(frozen=True)
class Image:
    """A root folder, and what the Dockerfile says of how it is run."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=lambda: {"PATH": PATH})
    labels: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    volumes: Sequence[str] = ()
    check: Sequence[str] = ()
    entry: Sequence[str] = ()
    command: Sequence[str] = ()


class Builder:
    """Builds stages in folders of `work`; `given` has folders in place of what a stage would make."""

    def __init__(self, stages: Mapping[str, Stage], work: Path, given: Mapping[str, Path]) -> None:
        self._stages = stages
        self._work = work
        self._given = given
        self._built: dict[str, Image] = {}

    def build(self, name: str) -> Image:
        """Raises CalledProcessError where a step fails, ValueError for an image that is not Debian's."""
        if name not in self._built:
            stage = self._stages[name]
            image = self._base(stage)
            for step in stage.steps:
                image = self._done(step, image)
            self._built[name] = image
        return self._built[name]

    def _base(self, stage: Stage) -> Image:
        root = self._work / f"image-{stage.name}"
        shutil.rmtree(root, ignore_errors=True)
        if stage.base in self._stages:
            base = self.build(stage.base)
            subprocess.run(["cp", "-a", base.root, root], check=True)
            return replace(base, root=root)
        root.mkdir()
        subprocess.run(["tar", "-C", root, "-xf", self._debian(stage.base)], check=True)
        shutil.copy("/etc/resolv.conf", root / "etc")
        return Image(root)

    def _debian(self, name: str) -> Path:
        """An archive of the smallest system, made once."""
        distribution, _, suite = name.removesuffix("-slim").partition(":")
        if distribution != "debian":
            raise ValueError(f"{name} is not to be had here")
        tar = self._work / f"{suite}-debian.tar"
        if not tar.is_file():
            root = self._work / f"{suite}-debian"
            shutil.rmtree(root, ignore_errors=True)
            with (self._work / "debootstrap.log").open("wb") as log:
                subprocess.run(["debootstrap", "--variant=minbase", suite, root], check=True, stdout=log)
            subprocess.run(["tar", "-C", root, "-cf", tar, "."], check=True)
            shutil.rmtree(root)
        return tar

    def _done(self, step: Step, image: Image) -> Image:
        """The image after a step."""
        match step.word:
            case "RUN":
                self._run(step, image)
            case "COPY":
                self._copy(step, image)
            case "ENV":
                return replace(image, environment={**image.environment, **step.variables(image.environment)})
            case "LABEL":
                return replace(image, labels={**image.labels, **step.variables({})})
            case "WORKDIR":
                inside(image.root, step.rest).mkdir(parents=True, exist_ok=True)
                return replace(image, folder=step.rest)
            case "USER":
                return replace(image, user=step.rest)
            case "VOLUME":
                return replace(image, volumes=json.loads(step.rest))
            case "HEALTHCHECK":
                return replace(image, check=json.loads(step.rest.removeprefix("CMD")))
            case "ENTRYPOINT":
                return replace(image, entry=json.loads(step.rest))
            case "CMD":
                return replace(image, command=json.loads(step.rest))
            case "ARG" | "EXPOSE":
                pass
            case other:
                raise ValueError(f"unknown step {other}")
        return image

    def _run(self, step: Step, image: Image) -> None:
        mount = step.mount
        binds = [str(self._source(mount["from"], mount["source"])), mount["target"]] if mount else []
        variables = [f"{name}={value}" for name, value in image.environment.items()]
        trusted = [f"{name}={TRUSTED}" for name in ("PIP_CERT", "SSL_CERT_FILE")]
        command = f"cd {shlex.quote(image.folder)} && {step.rest}"
        print(f"RUN {step.rest}", flush=True)
        subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "bash", "-c", ENTER, "bash", image.root, *binds, "--",
             "env", "-i", "HOME=/root", "DEBIAN_FRONTEND=noninteractive", *trusted, *variables,
             "chroot", ".", "sh", "-c", command],
            check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        inside(image.root, TRUSTED).unlink()

    def _copy(self, step: Step, image: Image) -> None:
        """Files into a folder or under a new name, a folder's content into a folder, as COPY has it."""
        *sources, target = step.rest.split()
        to = inside(image.root, os.path.join(image.folder, target))  # noqa: PTH118 - target may be absolute
        stage = step.options.get("from")
        for source in sources:
            path = self._source(stage, source) if stage else ROOT / source
            if path.is_dir():
                shutil.copytree(path, to, symlinks=True, dirs_exist_ok=True, ignore=None if stage else UNSEEN)
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, to)

    def _source(self, stage: str, path: str) -> Path:
        return self._given.get(stage) or inside(self.build(stage).root, path)


def inside(root: Path, path: str) -> Path:
    """Where an absolute path of an image lies."""
    return root / path.lstrip("/")
