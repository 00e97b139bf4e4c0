"""What a started process may hold: the router, the SDK and the CLI never import torch, cupy or transformers."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "cupy", "transformers", "safetensors", "numpy")


LIGHT = (
    "services.router.__main__", "services.router.server", "deltaserve.client", "deltaserve.cli.main",
    "deltaserve.bench.child",
)  # fmt: skip


@pytest.mark.parametrize("module", LIGHT)
def test_light_processes_stay_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_kernels_does_not_shadow_what_transformers_imports() -> None:
    assert not list((ROOT / "kernels").rglob("*.py"))
    code = "import transformers.models.llama.modeling_llama as m; print(m.LlamaForCausalLM.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "LlamaForCausalLM"


def test_stubs_match_the_protos() -> None:
    command = [sys.executable, "scripts/generate_stubs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
