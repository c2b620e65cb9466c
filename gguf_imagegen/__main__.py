"""`python -m gguf_imagegen` is `gguf-imagegen`."""

from gguf_imagegen.cli import main

main()
