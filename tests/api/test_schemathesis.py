"""Every route answers as the OpenAPI document says, whatever is sent: schemathesis makes the requests.

Of each body a part is as generated, a part breaks the schema, and a part is mended to go through: real
pictures, models and ids, sizes that this server makes. Nothing is left out; the route that streams without an
end is read for half a second, and models are deleted after all else.
"""

from __future__ import annotations

import asyncio
import base64
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.vocabulary.engine import Generate
from gguf_imagegen.vocabulary.events import EngineEvent
from tests.api.client import noise, png
from tests.conftest import DEADLINE, RunningApp, ServerProcess
from tests.fake_engines import QuickEngine
from tests.weights import write_upscaler

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
QUICK, QUICK_OF_ALL, REAL = 670, 2870, 130
"""Cases against an engine that works in no time, by default and with --all, and against the real one."""
MODEL = "tiny-random"
MODELS = (MODEL, "sd-turbo", "sd-turbo:q8_0", "nobody")
LIMITS = {"max_steps": 2, "max_pixels": 128 * 128, "max_images": 2, "max_queue": 1000, "heartbeat": 0.05}
REFUSING = {
    "POST /sdcpp/v1/vid_gen", "POST /v1/images/ocr", "POST /sdapi/v1/interrogate",
    "POST /v1/jobs/{id}", "POST /v1/cluster/nodes/{name}/drain",
}  # fmt: skip
"""No request of these goes through: it needs an extra, a cluster, or a job that waits."""
UPSCALERS = "upscalers"
MCP = "POST /mcp"
"""Whether a message of its own protocol goes through is chance."""
ENDLESS = "GET /v1/events"
LAST = "DELETE /v1/models/{id}"
Case = schemathesis.Case[Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

PNG = png(noise(64, 64))
PICTURE = base64.b64encode(PNG).decode()
LISTS = (
    "image",
    "images",
    "init_images",
    "url",
    "image[]",
    "ref_images",
    "extra_images",
    "controlnet_input_images",
)
SINGLE = ("mask", "mask_image", "init_image")
RIGHT: dict[str, list[Any]] = {
    "model": list(MODELS),
    "model_name": [MODEL],
    "quantization": ["none"],
    "prompt": ["a cat", "ein Käse 🧀", "<lora:x:1> b", "a <sd_cpp_extra_args>{}</sd_cpp_extra_args>"],
    "size": ["64x64", "128*128", "auto"],
    "imageList": [[{"data": PICTURE}]],
    "messages": [[{"role": "user", "content": "a cat"}]],
    "upscaler_1": ["None", "Lanczos", "Nearest"],
    "upscaling_resize": [0.5, 2],
    "hr_upscaler": ["Latent", "None"],
    "hr_scale": [1.5],
    "sampler_name": ["Euler a", "euler", "DPM++ 2M Karras"],
    "steps": [1, 2],
    "hires": [{}],
    "decoder": ["full"],
    "sample_params": [{"sample_steps": 1}],
    **{key: [64, 128] for key in ("width", "height", "upscaling_resize_w", "upscaling_resize_h")},
    **{key: [""] for key in ("scheduler", "schedule", "script_name")},
}
"""What a body of any dialect may hold there and go through."""
RIGHT_OF: dict[str, dict[str, list[Any]]] = {
    "/v1/images/upscale": {"model": ["double"]},
    "/controlnet/detect": {"controlnet_processor_res": [64, -1]},
    "/v1/models/convert": {
        "model": [MODEL], "type": ["q8_0", "f16"], "rules": [""], "name": ["smaller"], "force": [True],
    },
}  # fmt: skip
"""The same for one path."""
NO_PICTURE = (
    "/v1/models/pull", "/v1/models/convert", "/sdapi/v1/options", "/sdapi/v1/png-info", "/controlnet/detect",
)  # fmt: skip
UNSERVED = {
    "control", "control_image", "lora", "kwargs", "upscaler", "upscale", "background", "extra_body",
    "override_settings", "alwayson_scripts", "sampler_index", "hr_resize_x", "hr_resize_y",
}  # fmt: skip
"""What this server has no files for, or what may hold anything."""


class Engine(QuickEngine):
    """Makes its pictures as large as the second pass does."""

    async def generate(self, spec: Generate) -> AsyncIterator[EngineEvent]:
        if spec.hires is not None:
            spec = replace(spec, width=spec.hires.width, height=spec.hires.height)
        async for event in super().generate(spec):
            yield event


@dataclass
class Run:
    """Requests to one server; failures are gathered, so that one does not hide the others."""

    url: str
    count: int = 0
    answers: dict[str, Counter[int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    session: requests.Session = field(default_factory=requests.Session)

    def call(self, case: Case) -> None:
        label = case.operation.label
        self.count += 1
        try:
            answer = case.call(self.url, session=self.session, timeout=0.5 if label == ENDLESS else 20)
            self.answers.setdefault(label, Counter())[answer.status_code] += 1
            without_extra = answer.status_code == HTTPStatus.NOT_IMPLEMENTED
            case.validate_response(answer, checks=CHECKS[1:] if without_extra else CHECKS)
        except (Exception, FailureGroup) as exc:
            self.failures.append(f"{label}: {exc}")

    def made(self, label: str) -> bool:
        """Whether one request of an operation went through."""
        return not {200, 202}.isdisjoint(self.answers.get(label, {}))

    def ids(self, path: str) -> list[str]:
        """What may stand in the path: models, images, jobs, and one that is unknown."""
        if "/models" in path or "/deployments/" in path:
            return list(MODELS)
        if "/images/files/" in path:
            found = self.session.get(f"{self.url}/v1/images", params={"limit": 3}, timeout=20).json()["data"]
            return [image["id"] for image in found] + ["nobody.png"]
        jobs = self.session.get(f"{self.url}/v1/jobs", timeout=20).json()["data"]
        return [job["id"] for job in jobs[:3]] + ["nobody"]


def mended(case: Case, draw: Draw) -> None:
    """Make right what would be refused for reasons that no schema can say."""
    if not isinstance(case.body, dict):
        return
    as_form = case.media_type == "multipart/form-data"
    upload: Any = PNG if as_form else PICTURE
    body: dict[str, Any] = {
        key: value
        for key, value in case.body.items()
        if value is not None and key not in UNSERVED and not (as_form and not key.isidentifier())
    }
    if case.operation.path not in NO_PICTURE:
        body = {**({} if "size" in body else {"width": 64, "height": 64}), "steps": 1, **body}
    case.headers.pop("Idempotency-Key", None)
    right = {**RIGHT, **RIGHT_OF.get(case.operation.path, {})}
    for key in body:
        if key in right:
            body[key] = draw(st.sampled_from(right[key]))
        elif key in LISTS or key in SINGLE:
            several = key in LISTS and (as_form or isinstance(body[key], list))
            body[key] = [upload] if several else upload
    case.body = body


def cases(run: Run, operation: Any) -> st.SearchStrategy[Case]:
    """Cases of an operation: as generated, mended to go through, or broken against the schema."""
    fitting: st.SearchStrategy[Case] = operation.as_strategy(GenerationMode.POSITIVE)
    if weight(operation) == 1:
        return fitting
    broken = operation.as_strategy(GenerationMode.NEGATIVE)

    @st.composite
    def made(draw: Draw) -> Case:
        kind = draw(st.sampled_from(["mended", "mended", "mended", "generated", "broken"]))
        case: Case = draw(broken if kind == "broken" else fitting)
        if kind == "mended":
            mended(case, draw)
            ids = run.ids(case.path) if case.path_parameters else []
            for name in case.path_parameters or {}:
                case.path_parameters[name] = ids[draw(st.integers(0, 1000)) % len(ids)]
        return case

    return made()


def operations(run: Run) -> Iterator[Any]:
    """All of the document: what makes things, what looks at them, what deletes models."""
    document = run.session.get(f"{run.url}/openapi.json", timeout=20).json()
    results: list[Any] = list(schemathesis.openapi.from_dict(document).get_all_operations())
    found = [result.ok() for result in results]
    assert {each.label for each in found} == {
        f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods
    }
    yield from sorted(found, key=lambda each: (each.label == LAST, each.method != "post"))


def weight(operation: Any) -> int:
    """A body is worth more requests than a parameter, and that more than nothing to vary."""
    raw = operation.definition.raw
    return 30 if raw.get("requestBody") else 6 if raw.get("parameters") else 1


def drive(url: str, total: int) -> Run:
    """So many cases, spread over all operations; where there is nothing to vary one is repeated."""
    run = Run(url)
    every = list(operations(run))
    share = 1.05 * total / sum(map(weight, every))
    for operation in every:
        wanted = max(1, round(share * weight(operation)))
        before = run.count
        until_loaded(run)  # else /health is 503, as it says
        if operation.label == LAST:  # a model in memory is not deleted
            free(run)

        for again in range(5):  # until one goes through, where it can
            send(run, operation, wanted, zlib.crc32(operation.label.encode()) + again)
            if run.made(operation.label) or operation.method != "post" or operation.label in {MCP, *REFUSING}:
                break
        assert run.count > before, f"no request was made to {operation.label}"
    return run


def send(run: Run, operation: Any, wanted: int, number: int) -> None:
    """So many cases of one operation."""

    @seed(number)
    @given(case=cases(run, operation))
    @settings(
        max_examples=wanted,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def each(case: Case) -> None:
        run.call(case)

    each()


def until_loaded(run: Run) -> None:
    """The health is that of a server that is not in the middle of loading."""
    deadline = time.monotonic() + DEADLINE
    while run.session.get(f"{run.url}/health", timeout=20).json()["loading"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free(run: Run) -> None:
    """Have the model unloaded, and wait for it."""
    run.session.post(f"{run.url}/v1/models/{MODEL}/unload", timeout=20)
    deadline = time.monotonic() + DEADLINE
    while run.session.get(f"{run.url}/health", timeout=20).json()["loaded"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def judge(run: Run) -> None:
    assert not run.failures, f"{len(run.failures)} failures:\n" + "\n\n".join(run.failures[:20])
    assert {label for label in run.answers if label.startswith("POST") and not run.made(label)} - {MCP} == (
        REFUSING
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder that may be emptied, on a machine without the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it is read at import
    write_test_model(tmp_path)
    (tmp_path / UPSCALERS).mkdir()
    write_upscaler(tmp_path / UPSCALERS / "double.gguf", 2)
    return tmp_path


async def test_all_routes_answer_as_documented(
    running: RunningApp, folder: Path, pytestconfig: pytest.Config
) -> None:
    wanted = QUICK_OF_ALL if pytestconfig.getoption("all") else QUICK
    upscalers = folder / UPSCALERS
    async with running(engine=Engine, models_dir=folder, upscaler_dir=upscalers, **LIMITS) as app:
        run = await asyncio.to_thread(drive, app.url, wanted)
    judge(run)
    assert run.count >= wanted


def test_the_real_engine_as_documented(folder: Path) -> None:
    flags = [part for name, value in LIMITS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    flags += ["--upscaler-dir", str(folder / UPSCALERS), "--grace", "1"]
    server = ServerProcess(folder, *flags, env={"HF_HUB_OFFLINE": "1"})
    try:
        server.wait_until_ready()
        run = drive(server.url, REAL)
    finally:
        server.stop()
    judge(run)
    assert run.count >= REAL
