"""Real fine-tunes: they fit their base, and pack to the sizes and errors that the format promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaserve.delta.calibration import relative_error
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.compatibility import check_compatible, check_delta_against_base
from deltaserve.delta.fingerprint import fingerprint
from deltaserve.delta.sizes import bits_per_parameter, ratio

from .packing_up import write_delta

# relative squared errors of plain rounding, groups of 16; `sign1` is unbiased, whose error is 1/0.637 − 1 for Gaussians
ERRORS = {"sign1": (0.4, 0.75), "int2": (0.08, 0.15), "int4": (0.004, 0.012)}


@pytest.mark.zoo
@pytest.mark.parametrize("codec", ERRORS)
@pytest.mark.parametrize("name", ["g2p", "conj_fr", "section"])
def test_real_fine_tunes_pack(zoo: Path, tmp_path: Path, name: str, codec: str) -> None:
    base, tuned = Checkpoint.open(zoo / "base"), Checkpoint.open(zoo / name)
    check_compatible(base.config, base.tensors, tuned.config, tuned.tensors)
    reader = write_delta(base, tuned, tmp_path, codec)
    check_delta_against_base(reader.manifest, base.config, base.tensors, fingerprint(base))
    sizes = reader.manifest.sizes
    assert ratio(sizes, ["linear"]) == pytest.approx(16 / bits_per_parameter(sizes.by_class["linear"]))
    least, most = ERRORS[codec]
    for tensor in ("model.layers.0.self_attn.q_proj.weight", "model.layers.7.mlp.down_proj.weight"):
        delta = tuned.read(tensor).float() - base.read(tensor).float()
        assert least < relative_error(delta, reader.tensor(tensor).decode(), None) < most
    assert {file.path for file in reader.manifest.files if file.source == "base"} >= {"tokenizer.json"}
