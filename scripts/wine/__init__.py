"""Windows' Python put together from wheels, since PyPI has no package of it, to run under Wine."""
