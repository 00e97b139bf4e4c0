"""What `benchmarks/reliability.py` runs for long and `tests/reliability/` for short: crashes, faults, hostile input."""
