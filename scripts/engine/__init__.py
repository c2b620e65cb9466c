"""The engine's library with kernels of our own: what is added to its source, and how it is built."""
