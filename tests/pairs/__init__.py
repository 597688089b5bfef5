"""Fast against plain, ours against the peer's own code. A package: its file names repeat those of tests/unit."""
