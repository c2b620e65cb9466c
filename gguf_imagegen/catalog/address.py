"""Addresses of models on a hub: `hf.co/OWNER/REPO:QUANT`, a bare `OWNER/REPO`, or the URL of a file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from gguf_imagegen.modelfiles.header import SAFETENSORS

HubName = Literal["huggingface", "modelscope"]
HUGGINGFACE = "https://huggingface.co"
MODELSCOPE = "https://modelscope.cn"

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REPO = re.compile(rf"{_NAME}/{_NAME}")
_QUANT = re.compile(r"(.+?):([A-Za-z0-9][A-Za-z0-9._-]*)")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|refs/[A-Za-z0-9._/-]+")


def hub_endpoint() -> str:
    """Where the Hugging Face hub is: HF_ENDPOINT, else the real one."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or HUGGINGFACE


def modelscope_endpoint() -> str:
    """Where ModelScope is: MODELSCOPE_ENDPOINT, else the real one."""
    return os.environ.get("MODELSCOPE_ENDPOINT", "").strip().rstrip("/") or MODELSCOPE


def same_origin(one: str, other: str) -> bool:
    return _origin(one) == _origin(other)


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80}.get(parts.scheme, 443)


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class Address:
    """A repository of a hub, or one `file` of it; `quant` is what was said after a colon."""

    hub: HubName
    repo: str
    revision: str = ""
    file: str = ""
    quant: str = ""

    @property
    def name(self) -> str:
        """The one spelling of all that mean the same, without the quantisation: a name for the catalog."""
        repo = self.repo if self.hub == "huggingface" else f"modelscope.cn/models/{self.repo}"
        return f"{repo}/{self.file}" if self.file else repo


def address_of(text: str) -> Address | None:
    """What an address means; None for a text that is none, or an address of another host than a hub's."""
    text = text.strip()
    hub, path = _hub_and_path(text)
    if hub is None or len(text) > 500:
        return None
    match = _QUANT.fullmatch(path)
    path, said = (match[1], match[2]) if match else (path, "")
    parts = [unquote(part) for part in path.split("/") if part]
    if len(parts) < 2 or ".." in parts or not _REPO.fullmatch("/".join(parts[:2])):
        return None
    repo, rest = "/".join(parts[:2]), parts[2:]
    revision = ""
    if rest[:2] == ["file", "view"]:  # ModelScope's page of a file
        rest = ["blob", *rest[2:]]
    if rest and rest[0] in ("blob", "resolve", "tree"):
        length = 3 if rest[1:2] == ["refs"] else 1
        revision, rest = "/".join(rest[1 : 1 + length]), rest[1 + length :]
    elif rest in (["files"], ["summary"]):
        rest = []
    if revision and not _REVISION.fullmatch(revision):
        return None
    file = "/".join(rest)
    if file and not is_model_file(file):
        return None
    return Address(hub, repo, revision, file, said)


def _hub_and_path(text: str) -> tuple[HubName | None, str]:
    """The hub whose address this is, and what follows its host."""
    bare = re.fullmatch(r"(?:https?://)?(hf\.co|(?:www\.)?(?:huggingface\.co|modelscope\.cn))/(.+)", text)
    if bare is not None:
        path = re.split(r"[?#]", bare[2])[0]
        return ("modelscope" if "modelscope" in bare[1] else "huggingface"), _without_models(bare[1], path)
    if is_url(text):
        try:
            for hub, endpoint in _endpoints():
                if same_origin(text, endpoint):
                    path = urlsplit(text).path.removeprefix(urlsplit(endpoint).path)
                    return hub, _without_models(hub, path.strip("/"))
        except ValueError:
            return None, ""
        return None, ""
    known = re.fullmatch(rf"{_NAME}/{_NAME}(:{_NAME})?", text) and not is_model_file(text)
    return ("huggingface", text) if known else (None, "")


def _endpoints() -> tuple[tuple[HubName, str], ...]:
    return ("huggingface", hub_endpoint()), ("modelscope", modelscope_endpoint())


def _without_models(host: str, path: str) -> str:
    return path.removeprefix("models/") if "modelscope" in host else path


def is_model_file(name: str) -> bool:
    """By its suffix, in either case."""
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    return suffix == ".gguf" or suffix in SAFETENSORS


def file_url(repo: str, file: str, revision: str) -> str:
    """Where a file of the Hugging Face hub can be read."""
    return f"{hub_endpoint()}/{repo}/resolve/{quote(revision, safe='')}/{quote(file)}"
