#!/usr/bin/env python3
"""Work out the model that ships with the package, and write its files: two GGUFs and the list of names.

    pip install -e '.[train]' && apt install fonts-noto-color-emoji npm
    scripts/construct_embedded_model.py

It takes about a minute on one core and gives the same bytes each time on the same machine. The autoencoder
is taken from the files that are there; `--train-decoder MINUTES` trains it (this alone needs torch), which
makes another one each time. Names of the pictures are fetched from npm once. See `docs/embedded.md`.
"""

from __future__ import annotations

import os

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[threads] = "1"  # sums in one order, and so the same bytes

import argparse  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.training import autoencoder, export, latents, measure, pictures, words  # noqa: E402
from scripts.training.construct import Construction  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train-decoder", type=float, metavar="MINUTES", help="train the autoencoder first")
    parser.add_argument("--fresh", action="store_true", help="train it from nothing")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "embedded", help="where names are kept"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "gguf_imagegen" / "embedded", help="where files go"
    )
    options = parser.parse_args()

    concepts = words.concepts(options.folder)
    file = options.out / "embedded-tae.gguf"
    tensors = export.read(file) if file.exists() else {}
    if options.train_decoder:
        tensors = _trained(concepts, {} if options.fresh else tensors, options.train_decoder)
        export.write(file, "taesd", tensors)
    built = Construction(autoencoder.read_encoder(tensors), concepts)
    export.write_transformer(options.out / "embedded.gguf", built.weights, built.table)
    (options.out / "names.txt").write_text(built.words.listed(), encoding="utf-8")
    measure.write_album([concept.character for concept in concepts])
    for one in ("embedded.gguf", "embedded-tae.gguf", "names.txt"):
        print(f"{one}: {(options.out / one).stat().st_size / 1e6:.2f} MB")


def _trained(
    concepts: tuple[words.Concept, ...], before: dict[str, pictures.Floats], minutes: float
) -> dict[str, pictures.Floats]:
    """The autoencoder's tensors: the encoder from all pictures, the decoder trained for it."""
    import torch

    from scripts.training import decoder

    torch.manual_seed(0)
    characters = [concept.character for concept in concepts]
    encoder = latents.fit(np.stack(list(_every(characters))))
    model = decoder.Decoder()
    if before:
        model.load(decoder.turned(before, autoencoder.read_encoder(before), encoder))
    decoder.train(model, encoder, decoder.Examples(characters, seed=0), minutes=minutes, size=4)
    return autoencoder.encoder_tensors(encoder) | model.tensors()


def _every(characters: list[str]) -> list[pictures.Floats]:
    """Each glyph on white or on a colour, a third of them small as well, and some shapes."""
    names = list(pictures.COLOURS)
    found = []
    for i, character in enumerate(characters):
        ground = 1.0 if i % 2 else pictures.colour(names[i // 2 % 12])
        found.append(pictures.on(pictures.glyph(character), ground))
        if i % 3 == 0:
            found.append(pictures.on(pictures.glyph(character, 52), 1.0))
    for i, shape in enumerate(pictures.SHAPES * 5):
        sprite = pictures.drawn(shape, pictures.colour(names[i % 12]))
        found.append(pictures.on(sprite, pictures.colour(names[(5 * i + 3) % 12])))
    return found


if __name__ == "__main__":
    main()
