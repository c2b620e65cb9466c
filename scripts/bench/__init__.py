"""How fast this server and its engines are: `python -m scripts.bench --help`, in the project's folder."""
