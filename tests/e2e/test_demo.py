"""`make demo` on the embedded default: what a newcomer sees first."""

import os
import subprocess
import sys

import pytest

from tests.e2e.conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_runs_to_its_end() -> None:
    environment = os.environ | {"COLUMNS": "120"}
    command = [sys.executable, "examples/demo.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("published as models/conj_fr/revisions/1", "g2p", "section", "ratio", "deltaserve up"):
        assert expected in done.stdout
    assert "Traceback" not in done.stderr
