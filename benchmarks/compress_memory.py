"""Host memory and time of compressing a 1.3B-parameter random Llama pair: the pipeline streams layer by layer.

The pair is generated shard by shard below --folder (5.4 GB), the pipeline runs in a process of its own, and the most
memory that process ever held is printed beside the limit.

    .venv/bin/python -m benchmarks.compress_memory --codec sign1
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.hardware import describe
from deltaserve.delta.architectures import expected_shapes

LIMIT_GIB = 8.0
_TOKENIZER = Path(__file__).parents[1] / "examples" / "models" / "base"
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}


def generate(base: Path, tuned: Path, layers: int) -> int:
    """Writes a random base and a fine-tune of it, one shard a layer; returns the parameters of one of them."""
    config = _CONFIG | {"num_hidden_layers": layers}
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in expected_shapes(config).items():
        parts = name.split(".")
        key = f"layer-{int(parts[2]):03d}" if parts[1] == "layers" else "other"
        shards.setdefault(key, {})[name] = shape
    random = torch.Generator().manual_seed(0)
    index: dict[str, str] = {}
    for folder in (base, tuned):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(_TOKENIZER / file, folder / file)
    for shard, shapes in sorted(shards.items()):
        weights = {name: _weight(name, shape, random) for name, shape in shapes.items()}
        save_file(weights, base / f"{shard}.safetensors")
        changed = {name: w + 0.002 * torch.randn(w.shape, generator=random).to(w.dtype) for name, w in weights.items()}
        save_file(changed, tuned / f"{shard}.safetensors")
        index |= dict.fromkeys(shapes, f"{shard}.safetensors")
    for folder in (base, tuned):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(torch.Size(shape).numel() for shapes in shards.values() for shape in shapes.values())


def _weight(name: str, shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=random).mul_(0.02)
    return (values + 1 if name.endswith("norm.weight") else values).to(torch.bfloat16)


def run(folder: Path, codec: str, layers: int, samples: int, tokens: int) -> None:
    """Generates the pair, compresses it, prints the figures."""
    parameters = generate(folder / "base", folder / "tuned", layers)
    print(f"# {describe()}; {parameters / 1e9:.2f}B parameters, {layers} layers, codec {codec}", flush=True)
    work = folder / "work"
    work.mkdir()
    options = {"codec": codec, "calibration_samples": samples, "calibration_tokens": tokens}
    spec = {"base": str(folder / "base"), "tuned": str(folder / "tuned"), "work": str(work), "options": options}
    (work / "spec.json").write_text(json.dumps(spec))
    started = time.monotonic()
    command = [sys.executable, "-m", "services.compressor.pipeline", str(work / "spec.json")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 << 20)
    report = json.loads((work / "out" / "report.json").read_text())
    print(f"peak memory {peak:.2f} GiB, limit {LIMIT_GIB:.0f} GiB, ratio {peak / LIMIT_GIB:.2f}")
    print(f"time {seconds:.0f} s; whole checkpoint {report['sizes']['ratio']:.2f}x smaller")


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="sign1")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="where the pair goes; a temporary folder by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run(Path(folder), arguments.codec, arguments.layers, arguments.samples, arguments.tokens)


if __name__ == "__main__":
    main()
