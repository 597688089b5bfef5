"""Benchmarks against the peers' released packages: `python -m bench --help`. How they are fair: RESULTS.md."""
