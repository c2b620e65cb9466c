"""`python -m gguf_imagegen` is `gguf-imagegen`."""

from gguf_imagegen.commands.cli import main

main()
