"""Tiny real tokenizers, and manifests of deltas that no engine loads."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from deltaserve.delta.manifest import BaseRef, FileEntry, Manifest, Sizes, dump_manifest
from deltaserve.names import RevisionName, parse_revision
from deltaserve.store import Store, delta_key
from services.worker.front.tokenizer import Encoding

TEXT = [
    "the quick brown fox jumps over the lazy dog. ",
    "naïve café, 日本語 text, emoji 😀🎉 and numbers 0123456789. ",
    "def main() -> int:\n    return 0\n",
]
FINGERPRINT = "ab" * 32
BASE = BaseRef(fingerprint=FINGERPRINT, architecture="LlamaForCausalLM")


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: any byte is a token, a character may span several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>", "<|user|>", "<|bot|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral: words begin with ▁, unknown characters fall back to byte tokens, BOS in front."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for piece in ["▁", *"abcdefghijklmnopqrstuvwxyz.,'", "▁t", "▁th", "▁the", "he"]:
        vocab[piece] = len(vocab)
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("h", "e")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def encoding_of(tokenizer: Tokenizer) -> Encoding:
    return Encoding(tokenizer.to_str().encode())


@pytest.fixture(scope="session")
def gpt() -> Encoding:
    return encoding_of(byte_level())


@pytest.fixture(scope="session")
def llama() -> Encoding:
    return encoding_of(byte_fallback())


Publish = Callable[..., Awaitable[Manifest]]


def entry_of(path: str, data: bytes, source: Literal["delta", "base"] = "delta") -> FileEntry:
    return FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest(), source=source)


def manifest_of(name: RevisionName, files: list[FileEntry], **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "format": "deltaserve-delta",
        "version": 1,
        "model": name.model,
        "revision": name.revision,
        "created": "2026-11-24T00:00:00Z",
        "config": {"vocab_size": 320, "max_position_embeddings": 64, "eos_token_id": 0},
        "tensors": [],
        "files": files,
        "sizes": Sizes(parameters=0, checkpoint_bytes=0, delta_bytes=0, by_class={}),
    }
    return Manifest(**(fields | changes))


@pytest.fixture
def fingerprint() -> str:
    return FINGERPRINT


@pytest.fixture
def publish() -> Publish:
    """Puts a revision into a store: files of its own, files that are the base's, changed fields of the manifest."""

    async def put(
        store: Store,
        text: str,
        files: Mapping[str, bytes],
        base: Mapping[str, bytes] | None = None,
        base_ref: BaseRef = BASE,
        **changes: Any,
    ) -> Manifest:
        name = parse_revision(text)
        whole = {"delta.safetensors": b"payload of " + text.encode(), **files}
        entries = [entry_of(path, data) for path, data in whole.items()]
        entries += [entry_of(path, data, "base") for path, data in (base or {}).items()]
        manifest = manifest_of(name, entries, base=base_ref, **changes)
        for path, data in whole.items():
            assert await store.put_new(delta_key(name, path), data)
        assert await store.put_new(delta_key(name, "manifest.json"), dump_manifest(manifest))
        return manifest

    return put
