"""The phase machine, fed with what stable-diffusion.cpp really says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

import pytest

from gguf_imagegen.engines.sdcpp.phases import PhaseEvent, PhaseMachine, bare_names, is_out_of_memory
from gguf_imagegen.vocabulary.events import Loading, PhaseChanged, Progress

Said = str | tuple[int, int]

TEXT_TO_IMAGE: list[Said] = [
    "stable-diffusion.cpp:3367 - generate_image 128x128\n",
    "stable-diffusion.cpp:2814 - sampling using Heun method",
    "stable-diffusion.cpp:3168 - get_learned_condition completed, taking 0.03s",
    "stable-diffusion.cpp:3401 - generating image: 1/1 - seed 42",
    (0, 2),
    (0, 2),
    (1, 2),
    (2, 2),
    "stable-diffusion.cpp:3432 - sampling completed, taking 0.2s",
    "stable-diffusion.cpp:3192 - decoding 1 latents",
    (0, 4),
    (4, 4),
]


class Clock:
    """A second passes each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def feed(machine: PhaseMachine, said: Iterable[Said]) -> list[PhaseEvent]:
    events: list[PhaseEvent] = []
    for what in said:
        events += machine.log(what) if isinstance(what, str) else machine.progress(*what, 0.5)
    return events


def test_text_to_image() -> None:
    assert feed(PhaseMachine(3), TEXT_TO_IMAGE) == [
        PhaseChanged(3, "conditioning"),
        PhaseChanged(3, "sampling"),
        Progress(3, "sampling", 0, 2, 0.0),
        Progress(3, "sampling", 1, 2, 0.5),
        Progress(3, "sampling", 2, 2, 0.5),
        PhaseChanged(3, "decoding"),
        Progress(3, "decoding", 0, 4, 0.0),
        Progress(3, "decoding", 4, 4, 0.5),
    ]


def test_an_image_is_encoded_before_the_text() -> None:
    said: list[Said] = [
        "stable-diffusion.cpp:2814 - sampling using Euler method",
        "stable-diffusion.cpp:2932 - IMG2IMG",
        (0, 9),
        (1, 9),
        "stable-diffusion.cpp:3106 - encode_first_stage completed, taking 0.10s",
    ]
    assert feed(PhaseMachine(0, encodes=True), said) == [
        PhaseChanged(0, "encoding"),
        Progress(0, "encoding", 0, 9, 0.0),
        Progress(0, "encoding", 1, 9, 0.5),
        PhaseChanged(0, "conditioning"),
    ]


def test_hires_counts_its_own_steps_and_not_the_tiles_between() -> None:
    said: list[Said] = [
        *TEXT_TO_IMAGE[:8],
        "stable-diffusion.cpp:3455 - hires fix: upscaling to 256x256",
        "stable-diffusion.cpp:3496 - hires fix: 6 steps, denoising_strength=0.50, sigma_sched_size=4",
        (0, 16),
        (16, 16),
        (0, 3),
        (1, 3),
        "stable-diffusion.cpp:3578 - hires fix completed, taking 0.9s",
    ]
    machine = PhaseMachine(0)
    assert feed(machine, said)[5:] == [
        PhaseChanged(0, "hires"),
        Progress(0, "hires", 0, 3, 0.0),
        Progress(0, "hires", 1, 3, 0.5),
    ]
    assert machine.timings().steps == 3


def test_loading_names_the_file_only() -> None:
    machine = PhaseMachine()
    said: list[Said] = [
        "stable-diffusion.cpp:305  - Version: Ovis Image ",
        "model.cpp:764  - loading tensors from /home/some one/models/ovis.gguf",
        (0, 100),
        (60, 100),
        "model.cpp:764  - loading tensors from /home/some one/models/vae.safetensors",
        (60, 100),
        (100, 100),
    ]
    assert feed(machine, said) == [
        Loading("ovis.gguf", 0, 100),
        Loading("ovis.gguf", 60, 100),
        Loading("vae.safetensors", 100, 100),
    ]
    assert machine.family == "Ovis Image"


def test_a_lora_is_loaded_in_a_phase_of_its_own() -> None:
    said: list[Said] = ["model.cpp:764  - loading tensors from /loras/ink.safetensors", (7, 7)]
    assert feed(PhaseMachine(0), [*said, *TEXT_TO_IMAGE])[:3] == [
        PhaseChanged(0, "loading"),
        Loading("ink.safetensors", 7, 7),
        PhaseChanged(0, "conditioning"),
    ]


def test_progress_without_a_phase_is_nothing() -> None:
    assert PhaseMachine(0).progress(1, 2, 0.5) == []


def test_a_prompt_in_the_log_changes_nothing() -> None:
    assert PhaseMachine(0).log("conditioner.hpp:10   - parse 'generating image: 1/1' to []") == []


def test_timings_are_sums_of_phases() -> None:
    machine = PhaseMachine(0, clock=Clock())
    feed(machine, TEXT_TO_IMAGE)
    timings = machine.timings()
    assert (timings.conditioning_ms, timings.sampling_ms, timings.decoding_ms) == (1000.0, 1000.0, 1000.0)
    assert (timings.total_ms, timings.steps) == (4000.0, 2)


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("failed to open '/home/some one/m.gguf'", "failed to open 'm.gguf'"),
        ("load lora tensors from /a/b/c.gguf failed", "load lora tensors from c.gguf failed"),
        ("/src/ggml/src/ggml.c:123: GGML_ASSERT(a / b) failed", "ggml.c:123: GGML_ASSERT(a / b) failed"),
        ("4/20 steps, 1.5s/it, text_encoders.a/b", "4/20 steps, 1.5s/it, text_encoders.a/b"),
    ],
)
def test_no_local_path_remains(text: str, bare: str) -> None:
    assert bare_names(text) == bare


def test_known_paths_may_look_like_anything() -> None:
    """Relative ones, and those with blanks, are found where they are known."""
    known = [PurePath("loras/fun.gguf"), PurePath("/home/some one/my loras/sad.gguf")]
    text = "lora_file_path = loras/fun.gguf, /home/some one/my loras/sad.gguf, 1/2"
    assert bare_names(text, known) == "lora_file_path = fun.gguf, sad.gguf, 1/2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vae alloc compute buffer failed", True),
        ("flux: failed to allocate the compute buffer", True),
        ("clip alloc params backend buffer failed, num_tensors = 12", True),
        (
            "allocating 3.00 MiB on device 0: cudaMalloc failed: out of memory",
            True,
        ),
        ("tensor 'a.b' not in model file", False),
        ("Diffusion model sampling failed", False),
    ],
)
def test_lack_of_memory_is_recognised(text: str, expected: bool) -> None:
    assert is_out_of_memory(text) is expected
