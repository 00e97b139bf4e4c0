"""Fuzzes the readers written in Python guided by their coverage; needs the package atheris, which CI does not install.

python -m benchmarks.reliability_cases.coverage_guided SECONDS [PARSER]: without PARSER, each in a process of its own.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from pathlib import Path

# of those that are C or Rust below, mutations of `fuzzing` do as well
GUIDED = ("safetensors header", "shard index", "lossless stream", "config.json", "adapter_config.json", "names",
          "upload journal", "calibration rows", "alias object")  # fmt: skip


def main() -> None:
    """See the module."""
    seconds = int(float(sys.argv[1]))
    if len(sys.argv) > 2:
        _fuzz(sys.argv[2], seconds)
        return
    for parser in GUIDED:
        command = [sys.executable, "-m", "benchmarks.reliability_cases.coverage_guided"]
        done = subprocess.run(
            [*command, str(seconds // len(GUIDED)), parser], capture_output=True, text=True, check=False
        )
        told = [line for line in done.stderr.splitlines() if line.startswith(("Done", "stat::number_of_exec"))]
        print(f"{parser}: {' '.join(told) or 'no figures'}, status {done.returncode}", flush=True)
        if done.returncode:
            sys.exit(done.stderr[-4000:])


def _fuzz(name: str, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["deltaserve", "services"]):
        from benchmarks.reliability_cases.parsers import make_parsers, outcome
    logging.disable(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="atheris-"))
    parser = make_parsers(folder)[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(parser.seeds):
        (corpus / str(number)).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", "-timeout=5", "-rss_limit_mb=0", "-print_final_stats=1", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], lambda data: outcome(parser, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
