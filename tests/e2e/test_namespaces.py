"""Services on hosts of their own share a store, and lose links to each other; see namespaces.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT


def _permitted() -> bool:
    try:
        probe = ["unshare", "--net", "--mount", "sh", "-c", "ip netns add ds-probe && ip netns delete ds-probe"]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not _permitted(), reason="NOT RUN: network namespaces need root and iproute2")
def test_several_routers_and_compressors_share_a_store(tmp_path: Path) -> None:
    command = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.e2e.namespaces", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    for said in ("two revisions", "while a worker was away", "while the store was away", "published once"):
        assert said in done.stdout
