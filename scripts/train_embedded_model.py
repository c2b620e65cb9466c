#!/usr/bin/env python3
"""Train the model that ships with the package, and write its two GGUF files.

    pip install -e '.[train]' && apt install fonts-noto-color-emoji npm
    scripts/train_embedded_model.py --minutes 120

Work goes on from the checkpoints in `--folder`, else from the exported files if there are any
(`--fresh` starts from nothing). Names of the pictures are fetched from npm once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from embedded import autoencoder, dataset, export, training
from embedded.transformer import Transformer

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120, help="time for all of it")
    parser.add_argument("--decoder-share", type=float, default=0.2, help="part of the time for the decoder")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "embedded", help="checkpoints")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "gguf_imagegen" / "embedded", help="exported files"
    )
    parser.add_argument("--batch", type=int, default=48, help="pictures a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="do not start from exported files")
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    data = dataset.Pictures(options.folder)
    print(f"{len(data.concepts)} emoji, {len(data.vocabulary)} tokens, on {training.device()}")
    transformer, decoder = Transformer(len(data.vocabulary)), autoencoder.Decoder()
    files = {"transformer": options.out / "embedded.gguf", "decoder": options.out / "embedded-tae.gguf"}
    if not options.fresh and all(file.exists() for file in files.values()):
        export.read_transformer(files["transformer"], transformer, data.vocabulary)
        export.read_decoder(files["decoder"], decoder)

    for_decoder = options.minutes * options.decoder_share
    transformer = training.train_transformer(
        transformer,
        data,
        options.folder,
        minutes=options.minutes - for_decoder,
        size=options.batch,
        seed=options.seed,
    )
    decoder = autoencoder.train(decoder, data, options.folder, minutes=for_decoder, size=4, seed=options.seed)

    options.out.mkdir(parents=True, exist_ok=True)
    export.write_transformer(files["transformer"], transformer, data.vocabulary)
    export.write_autoencoder(files["decoder"], data.encoder, decoder)
    for file in files.values():
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
