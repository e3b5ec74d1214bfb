"""One command per file; each runs as `python tools/NAME.py` and as `leantad NAME`."""
