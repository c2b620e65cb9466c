"""A ticket holds all that its pictures depend on, and gives the same plan back, whatever is default then."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from gguf_imagegen.catalog.entry import Defaults, Entry
from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.jobs.job import Ended, Job
from gguf_imagegen.jobs.spool import Spool
from gguf_imagegen.jobs.stored import OfJob, restored, stored
from gguf_imagegen.jobs.ticket import Repeat, Ticket, pinned, plan_of, request_of, ticket_of
from gguf_imagegen.planning.plan import Operation, plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary import errors
from gguf_imagegen.vocabulary.callers import Caller, Sender
from gguf_imagegen.vocabulary.errors import ImagegenError, InvalidRequest
from tests.unet import write_embedding

ENTRY = Entry(
    id="m",
    quant="Q8_0",
    family="sd1",
    files={"model": Path("/srv/models/m.gguf"), "taesd": Path("t.gguf")},
    vae_inside=True,
    defaults=Defaults(size=(128, 128), steps=9, sampler="heun"),
)


def png(color: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (96, 64), color).save(out, "PNG")
    return out.getvalue()


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "set": {"n": 3, "seed": 5, "negative_prompt": "x", "cfg_scale": 3.5},
    "sized": {"size": "256x192", "steps": 4, "sampler": "lcm", "schedule": "karras"},
    "hires": {"hires": {"scale": 2.0, "denoising_strength": 0.5}, "step_cache": "ucache"},
    "previews": {"stream": True, "partial_images": 2, "stream_options": {"preview": "tae"}},
    "guided": {"slg_scale": 2.5, "slg_skip_layers": [1, 2], "eta": 0.5, "clip_skip": 2},
    "varied": {"variation_strength": 0.2, "n": 2},
    "decoded": {"decoder": "tiny", "output_format": "jpeg", "output_compression": 80, "keep_alive": 5},
    "edit": {"image": png(), "strength": 0.3},
    "masked": {"image": [png()], "mask": png("white")},
}


def made(**fields: Any) -> tuple[Job, Any]:
    request, warnings = parse_request({"prompt": "a cat", **fields})
    operation: Operation = "edit" if request.image else "generation"
    made = plan(request, ENTRY, Settings(), operation, [*warnings, "a warning"])
    return Job(made, Sender(Caller("ann"), "v1", "ann at home"), lasting=True), request


@pytest.mark.parametrize("name", REQUESTS)
def test_a_ticket_gives_its_plan_back(name: str, tmp_path: Path) -> None:
    """Through JSON: plan, request with its pictures, sender and names; and no path, and no pixel."""
    job, request = made(**REQUESTS[name])
    spool, repeat = Spool(tmp_path), Repeat("k", "b")
    data = msgspec.json.encode(ticket_of(job, request, spool, repeat))
    assert b"/srv" not in data
    assert len(data) < 4000
    ticket = msgspec.json.decode(data, type=Ticket)
    assert (ticket.id, ticket.names, ticket.repeat) == (job.id, job.names, repeat)
    assert (ticket.sender.caller.name, ticket.sender.dialect, ticket.lasting) == ("ann", "v1", True)
    variation = job.plan.variation(0)
    complete = {"seed": job.plan.spec.seed, "variation_seed": variation.seed if variation else None}
    assert request_of(ticket, spool, ABILITIES) == request.model_copy(update=complete)
    again = plan(request_of(ticket, spool, ABILITIES), ENTRY, Settings(), ticket.operation, [])
    assert pinned(plan_of(ticket, lambda name: ENTRY), again) == job.plan.without_pixels()
    assert replace(again, warnings=job.plan.warnings) == job.plan


def test_new_defaults_change_nothing(tmp_path: Path) -> None:
    """Steps, sampler and decoder are those of when it was taken; paths are those of now."""
    job, request = made()
    ticket = ticket_of(job, request, Spool(tmp_path), None)
    defaults = Defaults(size=(128, 128), steps=3, sampler="euler")
    changed = ENTRY.model_copy(
        update={"defaults": defaults, "decoder": "tiny", "files": {"model": Path("/mnt/m.gguf")}}
    )
    found = plan_of(ticket, lambda name: changed)
    assert (found.spec.steps, found.spec.sampler, found.entry.decoder) == (9, "heun", "full")
    assert found.entry.files == changed.files
    gone = plan_of(ticket, lambda name: None)
    assert (gone.entry.name, gone.spec) == ("m:Q8_0", job.plan.spec)


def test_a_plan_of_another_version(tmp_path: Path) -> None:
    """What cannot be read is a ValueError."""
    job, request = made()
    ticket = ticket_of(job, request, Spool(tmp_path), None)
    bad = msgspec.structs.replace(ticket, plan={**ticket.plan, "width": "wide"})
    with pytest.raises(ValueError, match="width"):
        plan_of(bad, lambda name: ENTRY)


def test_text_that_is_none(tmp_path: Path) -> None:
    """Half of a surrogate pair cannot be stored, and is the request's fault."""
    job, request = made()
    wrong = request.model_copy(update={"upscaler": "\ud800"})
    with pytest.raises(InvalidRequest, match="Unicode"):
        ticket_of(job, wrong, Spool(tmp_path), None)


def _kinds(kind: type[ImagegenError]) -> list[type[ImagegenError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in _kinds(below))]


@pytest.mark.parametrize("kind", [k for k in _kinds(ImagegenError) if k.__module__ == errors.__name__])
def test_errors_come_back(kind: type[ImagegenError]) -> None:
    """Of each class with its words, field and advice."""
    error = kind("some words", param="size")
    error.retry_after = 7 if kind is not errors.InvalidImage else None
    event = stored(Ended(error))
    again = restored(msgspec.json.decode(msgspec.json.encode(event), type=OfJob))
    assert isinstance(again, Ended)
    assert type(again.error) is kind
    assert (str(again.error), again.error.param) == (str(error), "size")
    assert again.error.retry_after == error.retry_after
    assert again.error.body() == error.body()


def test_embeddings_are_those_of_the_folder_now(tmp_path: Path) -> None:
    """A ticket has no paths; the plan made again has."""
    write_embedding(tmp_path / "easyneg.safetensors")
    request, _ = parse_request({"prompt": "a cat, easyneg"})
    fresh = plan(request, ENTRY, Settings(embedding_dir=tmp_path), "generation", [])
    job = Job(fresh, Sender(Caller("ann"), "v1", "ann at home"), lasting=True)
    ticket = ticket_of(job, request, Spool(tmp_path / "spool"), None)
    (bare,) = plan_of(ticket, lambda name: ENTRY).spec.embeddings
    assert str(bare.path) == "easyneg.safetensors"
    assert pinned(plan_of(ticket, lambda name: ENTRY), fresh).spec.embeddings == fresh.spec.embeddings


@pytest.mark.parametrize(("then", "now"), [(True, "xy"), (False, None)])
def test_a_ticket_that_says_tiling(then: bool, now: str | None, tmp_path: Path) -> None:
    """As it was called once in a model's entry."""
    job, request = made()
    ticket = ticket_of(job, request, Spool(tmp_path), None)
    old = replace_plan(ticket, {**ticket.plan["entry"], "tiling": then})
    found = plan_of(old, lambda name: ENTRY)
    assert found.entry.seamless == now
    assert found.spec == job.plan.spec


def replace_plan(ticket: Ticket, entry: dict[str, Any]) -> Ticket:
    return msgspec.structs.replace(ticket, plan={**ticket.plan, "entry": entry})
