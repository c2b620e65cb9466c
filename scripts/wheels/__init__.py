"""What is released: wheels of the engine and of the package, an index of them, and an archive with Python."""
