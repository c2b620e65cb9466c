"""The kernels as commits for ggml: `python -m scripts.engine.upstream DIR`."""
