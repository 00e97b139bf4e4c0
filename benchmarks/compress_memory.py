"""Memory and time of compressing a large random Llama pair: the pipeline streams layer by layer.

The pair is generated shard by shard below --folder (5.4 GB at 1.3B, 32 GB at 8B), the pipeline runs in a process of
its own, and the most memory that it ever held is printed beside the limit, with the time of each stage.

    .venv/bin/python -m benchmarks.compress_memory --codec sign1
    .venv/bin/python -m benchmarks.compress_memory --shape 8b --device cuda --preset tiny
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
_SHAPES = {
    "1.3b": {},
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    },
}
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


def generate(base: Path, tuned: Path, shape_name: str, layers: int | None, device: str) -> int:
    """Writes a random base and a fine-tune of it, one shard a layer; returns the parameters of one of them."""
    config = _CONFIG | _SHAPES[shape_name] | ({"num_hidden_layers": layers} if layers else {})
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in expected_shapes(config).items():
        parts = name.split(".")
        key = f"layer-{int(parts[2]):03d}" if parts[1] == "layers" else "other"
        shards.setdefault(key, {})[name] = shape
    random = torch.Generator(device).manual_seed(0)
    index: dict[str, str] = {}
    for folder in (base, tuned):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(_TOKENIZER / file, folder / file)
    for shard, shapes in sorted(shards.items()):
        weights = {name: _weight(name, shape, random) for name, shape in shapes.items()}
        save_file({name: w.cpu() for name, w in weights.items()}, base / f"{shard}.safetensors")
        changed = {name: (w + _change(w, random)).cpu() for name, w in weights.items()}
        save_file(changed, tuned / f"{shard}.safetensors")
        index |= dict.fromkeys(shapes, f"{shard}.safetensors")
    for folder in (base, tuned):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(torch.Size(shape).numel() for shapes in shards.values() for shape in shapes.values())


def _change(weight: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """A delta as fine-tunes have: rows of unlike sizes, and in matrices a few directions that stand out."""
    device = weight.device
    delta = 0.0015 * torch.randn(weight.shape, generator=random, device=device)
    if weight.dim() == 2:
        delta *= torch.randn(weight.shape[0], 1, generator=random, device=device).mul_(0.3).exp_()
        left = torch.randn(weight.shape[0], 4, generator=random, device=device)
        delta += 0.0003 * left @ torch.randn(4, weight.shape[1], generator=random, device=device)
    return delta.to(weight.dtype)


def _weight(name: str, shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=random, device=random.device).mul_(0.02)
    return (values + 1 if name.endswith("norm.weight") else values).to(torch.bfloat16)


def run(folder: Path, arguments: argparse.Namespace) -> None:
    """Generates the pair, compresses it, prints the figures."""
    parameters = generate(
        folder / "base", folder / "tuned", arguments.shape, arguments.layers, torch.device(arguments.device).type
    )
    torch.cuda.empty_cache()
    options = {"calibration_samples": arguments.samples, "calibration_tokens": arguments.tokens}
    options |= {"preset": arguments.preset} if arguments.preset else {"codec": arguments.codec}
    print(f"# {describe()}; {parameters / 1e9:.2f}B parameters, {options}", flush=True)
    work = folder / "work"
    work.mkdir()
    spec = {"base": str(folder / "base"), "tuned": str(folder / "tuned"), "work": str(work), "options": options}
    (work / "spec.json").write_text(json.dumps(spec | {"device": arguments.device}))
    started = time.monotonic()
    command = [sys.executable, "-m", "services.compressor.pipeline", str(work / "spec.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)
            print(f"{time.monotonic() - started:7.1f} s {told['stage']} {told['layers_done']}", flush=True)
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 << 20)
    report = json.loads((work / "out" / "report.json").read_text())
    print(f"peak host memory {peak:.2f} GiB, limit {LIMIT_GIB:.0f} GiB, ratio {peak / LIMIT_GIB:.2f}")
    sizes = report["sizes"]
    print(
        f"time {seconds:.0f} s; {sizes['bits_per_parameter']:.3f} bits, whole checkpoint {sizes['ratio']:.2f}x smaller"
    )


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="sign1")
    parser.add_argument("--preset", help="instead of a codec")
    parser.add_argument("--shape", choices=list(_SHAPES), default="1.3b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, help="other than the shape's own")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="where the pair goes; a temporary folder by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run(Path(folder), arguments)


if __name__ == "__main__":
    main()
