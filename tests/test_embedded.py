"""The packaged model draws what it is asked for: colours and shapes are read off its pictures."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from gguf_imagegen.catalog.catalog import load_catalog
from gguf_imagegen.catalog.entry import PACKAGED
from scripts.training.measure import Album, look
from scripts.training.pictures import COLOURS, DEFAULT, SHAPES
from scripts.training.vocabulary import entries
from tests.conftest import ServerProcess

Pixels = npt.NDArray[np.int16]


@pytest.fixture
def draw(embedded: ServerProcess) -> Callable[..., Image.Image]:
    """Ask the server for a picture: `draw("a red circle", seed=3)`; with `image`, an edit."""

    def ask(prompt: str, **fields: Any) -> Image.Image:
        for name in ("image", "mask"):
            if name in fields:
                fields[name] = base64.b64encode(png(fields[name])).decode()
        path = "edits" if "image" in fields else "generations"
        body = {"prompt": prompt, "seed": 1, "response_format": "b64_json", **fields}
        request = urllib.request.Request(
            f"{embedded.url}/v1/images/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Image.open(BytesIO(base64.b64decode(json.load(answer)["data"][0]["b64_json"])))

    return ask


def png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def pixels(picture: Image.Image) -> Pixels:
    return np.asarray(picture.convert("RGB"), np.int16)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of 8-bit values."""
    return float(np.abs(pixels(one) - pixels(other)).mean())


COMBINATIONS = [
    (colour, SHAPES[n % len(SHAPES)], list(COLOURS)[(n + 5) % len(COLOURS)])
    for n, colour in enumerate(COLOURS)
]
"""Every colour in front and behind, and every shape."""


@pytest.mark.part(3)
@pytest.mark.parametrize(("colour", "shape", "background"), COMBINATIONS)
def test_it_draws_what_is_asked(
    draw: Callable[..., Image.Image], colour: str, shape: str, background: str
) -> None:
    """The shape, its colour and the background are the ones named, wherever the seed puts it."""
    seen = look(draw(f"a {colour} {shape} on a {background} background", seed=len(colour + shape)))
    assert (seen.colour, seen.shape, seen.background) == (colour, shape, background)


@pytest.mark.part(2)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_alone_has_a_colour(draw: Callable[..., Image.Image], shape: str) -> None:
    """Nothing but its name is said; and in white it stands before something dark."""
    seen = look(draw(shape))
    assert (seen.shape, seen.colour) == (shape, DEFAULT[shape])
    seen = look(draw(f"a white {shape}", seed=2))
    assert (seen.shape, seen.colour, seen.background) == (shape, "white", "black")


@pytest.fixture(scope="module")
def album() -> Album:
    return Album()


NAMES = [names[0] for unicode, names in entries() if unicode][2::5][:60]
FEW = NAMES[::10]


def test_it_draws_what_is_named(
    draw: Callable[..., Image.Image], album: Album, pytestconfig: pytest.Config
) -> None:
    """The picture of a name is nearer to a glyph of that name than to any other of some 300."""
    names = NAMES if pytestconfig.getoption("all") else FEW
    shown = {name: album.names_of(draw(name, seed=n)) for n, name in enumerate(names)}
    assert {name: found for name, found in shown.items() if name not in found} == {}


@pytest.mark.parametrize(
    ("prompt", "name"), [("Dogs", "dog"), ("une maison", "house"), ("Katze", "cat"), ("cherries", "cherry")]
)
def test_other_forms_and_languages(
    draw: Callable[..., Image.Image], album: Album, prompt: str, name: str
) -> None:
    assert name in album.names_of(draw(prompt))


def test_a_colour_changes_what_it_stands_by(draw: Callable[..., Image.Image], album: Album) -> None:
    """A blue car is the car, and blue; its ground is not."""
    car = pixels(draw("a blue car on a white background"))
    bluest = car[..., 2] - car[..., 0]
    assert (bluest > 60).mean() > 0.15
    assert car[:8].min() > 200
    assert (pixels(draw("a car on a white background"))[..., 2] - 60 > car[..., 0]).mean() < 0.5


def test_capitals_mean_the_same(draw: Callable[..., Image.Image]) -> None:
    """A prompt is understood as people type it."""
    seen = look(draw("A Red Circle on a Blue background"))
    assert (seen.colour, seen.shape, seen.background) == ("red", "circle", "blue")


def test_a_seed_is_a_picture(draw: Callable[..., Image.Image]) -> None:
    """The same seed gives the same picture, another seed another one."""
    first = draw("a heart", seed=1)
    assert png(first.convert("RGB")) == png(draw("a heart", seed=1).convert("RGB"))
    assert difference(first, draw("a heart", seed=3)) > 1


def test_four_seeds_are_four_pictures(draw: Callable[..., Image.Image], album: Album) -> None:
    """They lie differently or on another ground, and show the same."""
    made = [draw("a car", seed=seed) for seed in range(3, 7)]
    assert all("car" in album.names_of(picture) for picture in made)
    assert min(difference(a, b) for n, a in enumerate(made) for b in made[:n]) > 2


def test_unknown_words_are_told(embedded: ServerProcess) -> None:
    """Who asks for what the model does not know hears what it does know."""

    def ask(path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(embedded.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def warnings(prompt: str) -> list[str]:
        body = {"prompt": prompt, "steps": 1, "size": "64x64"}
        said: list[str] = ask("/v1/images/generations", body)["warnings"]
        return said

    assert warnings("a lovely picture of a blue cat on a yellow background") == []
    (unknown,) = warnings("a dragon boat")
    assert unknown.startswith("prompt: glyph-128 knows no 'dragon boat'; try 'boat', 'dragon'")
    (unknown,) = warnings("a zeppelin")
    assert "knows no 'zeppelin'; try 'cat'" in unknown
    assert warnings("a cat and a dog") == [
        "prompt: glyph-128 draws one thing at a time; 'cat' and 'dog' will blend"
    ]
    meta = ask("/v1/models/glyph-128")["meta"]
    assert all(warnings(example) == [] for example in meta["examples"])


def test_a_masked_edit_changes_only_the_mask(draw: Callable[..., Image.Image]) -> None:
    """What the mask leaves is pixel-equal; what it gives is drawn anew, as the prompt says."""
    source = draw("a red circle on a white background")
    mask = Image.new("L", source.size, 0)
    mask.paste(255, (0, 0, 128, 64))
    edited = draw("a blue square on a blue background", image=source, mask=mask, strength=1.0)
    assert (pixels(edited)[64:] == pixels(source)[64:]).all()
    upper = pixels(edited)[:48].mean((0, 1))
    assert upper[2] > upper[0] + 60, upper


def test_strength_is_the_distance_from_the_input(draw: Callable[..., Image.Image]) -> None:
    """Image to image stays near its input at low strength, and leaves it at full strength."""
    source = draw("a green star on a white background")
    near, far = (draw("a red circle on a blue background", image=source, strength=s) for s in (0.1, 1.0))
    assert difference(source, near) < 8
    assert look(near).colour == "green"
    assert look(far).colour == "red"


def test_guidance_and_negative_prompts_matter(draw: Callable[..., Image.Image]) -> None:
    """Guidance changes the picture and not what it shows; a negative prompt leads away from what it names."""
    prompt = "a red circle on a blue background"
    plain, guided = draw(prompt), draw(prompt, cfg_scale=2.0)
    assert difference(plain, guided) > 0.3
    assert look(guided).colour == "red"
    with_white = [draw("a circle", seed=seed, cfg_scale=2.0) for seed in range(2)]
    without = [
        draw("a circle", seed=seed, cfg_scale=2.0, negative_prompt="a white background") for seed in range(2)
    ]
    assert np.mean([pixels(p)[:8].mean() for p in without]) < np.mean(
        [pixels(p)[:8].mean() for p in with_white]
    )


def test_no_model_and_no_network_are_needed(tmp_path: Path) -> None:
    """`generate` in an empty folder makes a picture of what it was asked for."""
    command = [
        sys.executable,
        "-m",
        "gguf_imagegen",
        "generate",
        "a red circle on a blue background",
        "--seed",
        "1",
    ]
    flags = ["--models-dir", str(tmp_path), "--threads", "1", "-o", str(tmp_path / "out.png")]
    run = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    seen = look(Image.open(tmp_path / "out.png"))
    assert (seen.colour, seen.background) == ("red", "blue")


def test_it_ships_with_its_card_and_licences() -> None:
    """Everything about the weights lies beside them, and they are small."""
    entry = load_catalog(Path("nowhere")).get("embedded")
    weights = {PACKAGED / path for path in entry.files.values()}
    assert sum(path.stat().st_size for path in weights) <= 34_000_000
    assert {path.name for path in PACKAGED.iterdir() if path not in weights} == {
        "MODEL_CARD.md",
        "OFL-1.1.txt",
        "golden-ggml.png",
        "golden.png",
        "names.txt",
    }
