"""The container image without Docker: its steps in chroots, its command with few rights."""
