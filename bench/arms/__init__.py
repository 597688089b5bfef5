"""What runs in a process of its own: `python -m bench.arms.NAME SPEC.json`."""
