"""Random quality reports with everything that one may hold."""

import random
from collections.abc import Callable
from typing import Any

import pytest

KINDS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
HOSTILE = (
    "<script>alert(1)</script>", '"><img src=http://evil.example/x onerror=alert(1)>', "</pre></article></main><h1>",
    "javascript:alert(1)", "&lt;b&gt;", "' onmouseover='alert(1)", "\u202egnp.exe", "a\x00b\ud800c", "]]></svg><style>",
)  # fmt: skip


@pytest.fixture
def make_report() -> Callable[..., dict[str, Any]]:
    """Makes a report of version 2: make_report(layers=8, name=lambda: ..., seed=None)."""
    return _make_report


def _make_report(layers: int = 8, name: Callable[[], str] | None = None, seed: int | None = None) -> dict[str, Any]:
    chance = random.Random(seed)  # fresh unless seeded
    said = name or (lambda: " ".join(f"word{chance.randrange(50)}" for _ in range(chance.randrange(1, 9))))
    edges = [10 ** (step / 4) for step in range(-24, 5)]
    counts = [chance.randrange(300) if 3 < i < 22 else 0 for i in range(len(edges) + 1)]
    tensors = [
        {"name": f"model.layers.{i}.{kind}.weight", "codec": "sign1", "bytes": 25_088,
         "bits_per_parameter": 1.02, "error": chance.random()}
        for i in range(layers) for kind in KINDS
    ]  # fmt: skip
    by_class = {
        kind: {"tensors": 1 + chance.randrange(99), "parameters": size, "checkpoint_bytes": 2 * size,
               "delta_bytes": size // 5, "bits_per_parameter": 1.6, "ratio": 10.0}
        for kind, size in (("linear", 6_000_000_000), ("embedding", 525_000_000), ("norm", 266_000))
    }  # fmt: skip
    return {
        "version": 2,
        "quality": {
            "kl": 0.00188, "kl_p50": 3.2e-5, "kl_p99": 0.061, "top1_agreement": 0.9933, "sequences": 52,
            "kl_histogram": {"edges": edges, "counts": counts}, "tokens": 298, "counted": {"answers": 52},
            "perplexity": {"base": 511.3, "fine_tune": 1.0165, "compressed": 1.0214},
        },
        "accuracy": {"base": 0.0, "fine_tune": 0.865, "compressed": 0.86, "rows": 200, "skipped": 3},
        "sizes": {"parameters": 6_525_266_000, "checkpoint_bytes": 13_050_532_000, "delta_bytes": 1_305_053_200,
                  "bits_per_parameter": 1.6, "ratio": 10.0, "by_class": by_class},
        "calibration": {"source": said(), "sequences": 204, "tokens": 3859},
        "layers": [
            {"layer": i, "error": chance.uniform(0.1, 0.3), "worst_error": chance.uniform(0.3, 0.6),
             "bits_per_parameter": 1.05}
            for i in range(layers)
        ],
        "tensors": tensors,
        "generations": {
            "prompts": [
                {"prompt": said(), "cut": i == 0, "expected": said(), "base": {"text": said(), "ended": False},
                 "fine_tune": {"text": said(), "ended": True}, "compressed": {"text": said(), "ended": True}}
                for i in range(4)
            ],
            "left_out": None,
        },
        "allocation": {
            "preset": said(), "budget_bits": 2.0, "predicted_kl": 0.0004, "choices": {"sign1": 30, "int2": 26},
            "attempts": [
                {"bits": 1.5, "kl": 0.007, "agreement": 0.98, "accuracy_drop": None, "failures": [said()]},
                {"bits": 2.1, "kl": 0.0004, "agreement": 0.99, "accuracy_drop": 0.5, "failures": []},
            ],
        },
        "policy": {"max_kl": 0.001},
        "gate": {"passed": False, "failures": [said()]},
    }  # fmt: skip
