"""The same faults for three trainers, ours and two peers': `python -m bench.faults --help`."""
