"""A tiny base, a fine-tune of it and the packed delta: real files that faults are put into."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from deltaserve.delta.architectures import architecture_of, expected_shapes
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.coding import code_delta, code_dense
from deltaserve.delta.fingerprint import fingerprint
from deltaserve.delta.manifest import BaseRef
from deltaserve.delta.writer import DeltaWriter, Identity

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot: {% endif %}"
)


@dataclass(frozen=True, slots=True)
class Tiny:
    """Folders of the three."""

    base: Path
    tuned: Path
    packed: Path


def make_tiny(folder: Path, *, codec: str = "int4", seed: int = 0) -> Tiny:
    """Writes all three below `folder`."""
    base = _model(folder / "base", seed, None)
    tuned = _model(folder / "tuned", seed + 1, Checkpoint.open(base))
    return Tiny(base, tuned, pack(base, tuned, folder / "packed", codec))


def pack(base_folder: Path, tuned_folder: Path, folder: Path, codec: str) -> Path:
    """Packs a fine-tune without calibration; every matrix by `codec`."""
    base, tuned = Checkpoint.open(base_folder), Checkpoint.open(tuned_folder)
    writer = DeltaWriter(folder / "parts")
    packed = []
    for name in tuned.tensors:
        after = tuned.read(name)
        if after.dim() == 1:
            packed.append(code_dense(name, after))
        else:
            params = {"group_size": 32} if codec.startswith("int") else {}
            delta = after.float() - base.read(name).float()
            packed.append(code_delta(name, delta, after.dtype, codec, base=name, params=params))
    writer.add_part("all", packed)
    reference = BaseRef(fingerprint=fingerprint(base), architecture=architecture_of(base.config))
    identity = Identity("tiny", "1", "2026-01-01T00:00:00Z", reference, tuned.config)
    files = tuned.side_files()
    writer.finish(folder / "out", identity, files=files, base_files=files, compression={"codec": codec})
    return folder / "out"


def _model(folder: Path, seed: int, base: Checkpoint | None) -> Path:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_shapes(CONFIG).items():
        noise = torch.randn(shape, generator=generator)
        start = torch.ones(shape) if name.endswith("norm.weight") else torch.zeros(shape)
        values = start + 0.3 * noise if base is None else base.read(name).float() + 0.1 * noise
        tensors[name] = values.to(torch.bfloat16).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    _tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i + 1 for i, c in enumerate(alphabet)} | {"<|end|>": 0}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer
