"""Every parser of ours that reads bytes which strangers made, each as a function of bytes, with honest examples."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import msgspec
import torch
from google.protobuf.message import DecodeError

from benchmarks.placement_sim import arrivals
from benchmarks.reliability_cases.tiny import CONFIG, TEMPLATE, make_tiny
from deltaserve import names
from deltaserve.catalog import ALIAS, PIN, Catalog, write_setting
from deltaserve.delta.adapter import read_adapter
from deltaserve.delta.adapter_config import parse_adapter_config
from deltaserve.delta.checkpoint import Checkpoint, read_config
from deltaserve.delta.compatibility import check_compatible, check_delta_against_base
from deltaserve.delta.fingerprint import fingerprint
from deltaserve.delta.headers import INDEX_FILE, read_folder_headers, read_header
from deltaserve.delta.lossless import encode, unwrap
from deltaserve.delta.manifest import DELTA_FILE, MANIFEST_FILE, parse_manifest
from deltaserve.delta.reader import DeltaReader
from deltaserve.errors import DataLossError, InvalidArgumentError, PreconditionError
from deltaserve.report.page import render
from deltaserve.store import Store
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import models_pb2
from services.compressor.jobs.records import JobRecord, dump_record, parse_record
from services.compressor.pipeline.rows import read_labelled, read_rows
from services.compressor.translate import check_spec, declaration_of
from services.compressor.uploads.declaration import parse_config
from services.compressor.uploads.received import ReceivedFile
from services.compressor.uploads.upload import DECLARATION_FILE, load_declaration
from services.router.http.body import decode as decode_body
from services.router.http.errors import RequestError
from services.router.http.fields import ChatOptions, CompletionOptions
from services.worker import wire
from services.worker.front.defaults import generation_defaults
from services.worker.front.grammar import compile_grammar
from services.worker.front.tokenizer import Encoding, PromptTokenizer, parse_json
from services.worker.messages import Drop, Load, Rank

REFUSALS = (InvalidArgumentError, PreconditionError, DataLossError, RequestError)
"""What a parser may say of bytes it does not take: INVALID_ARGUMENT (FormatError is one), FAILED_PRECONDITION for sound
files of another base or architecture, DATA_LOSS for a checksum; RequestError is HTTP's 400."""


@dataclass(frozen=True, slots=True)
class Parser:
    """A parser.

    Attributes:
        name: of it.
        feed: parses bytes: returns, or raises what REFUSALS allows.
        seeds: honest inputs.
        words: pieces that its inputs are made of.
    """

    name: str
    feed: Callable[[bytes], object]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = field(default=())


def outcome(parser: Parser, data: bytes) -> str:
    """Returns "accepted" or the name of the refusal; any other exception passes on: it is a bug."""
    try:
        parser.feed(data)
    except REFUSALS as error:
        return type(error).__name__
    return "accepted"


def make_parsers(folder: Path) -> dict[str, Parser]:
    """Returns all parsers by name; files that they need are written below `folder`, best on a memory file system."""
    tiny = make_tiny(folder / "tiny")
    base = Checkpoint.open(tiny.base)
    found = [*_weights(folder, tiny.packed, base), *_uploads(folder, base), *_store(folder, tiny.packed)]
    found += [*_texts(folder, tiny.base), *_requests()]
    return {parser.name: parser for parser in found}


def _weights(folder: Path, packed: Path, base: Checkpoint) -> list[Parser]:
    base_fingerprint = fingerprint(base)

    def belongs(data: bytes) -> None:
        found = _delta(folder / "delta", packed, payload, data, exact=True)
        check_delta_against_base(found.manifest, base.config, base.tensors, base_fingerprint)

    payload, manifest = (packed / DELTA_FILE).read_bytes(), (packed / MANIFEST_FILE).read_bytes()
    small = _safetensors({"a": ("F32", [2, 2], 16), "b": ("U8", [3], 3)})
    header = folder / "header.safetensors"
    shards = folder / "shards"
    shards.mkdir()
    (shards / "one.safetensors").write_bytes(small)
    index = json.dumps({"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}).encode()
    raw = torch.randint(0, 4, (4000,), dtype=torch.uint8)
    words = [b'"dtype":', b'"shape":', b'"data_offsets":', b'"BF16"', b"__metadata__", b"[0,0]", b"9223372036854775807"]
    return [
        Parser("safetensors header", lambda d: _read(header, d, read_header), [small, payload[:4096]], words),
        Parser("shard index", lambda d: _read(shards / INDEX_FILE, d, lambda _: read_folder_headers(shards)), [index]),
        Parser("manifest", parse_manifest, [manifest], [b'"same"', b'"dense"', b'"codec":', b"-1", b"1e400"]),
        Parser("delta payload", lambda d: _delta(folder / "delta", packed, d, manifest), [payload], words),
        Parser("delta manifest", belongs, [manifest]),
        Parser(
            "lossless stream",
            lambda d: unwrap(torch.frombuffer(bytearray(d or b"\0"), dtype=torch.uint8), torch.uint8, (4000,), "fuzz"),
            [encode(raw.numpy()).tobytes()],
        ),
    ]


def _uploads(folder: Path, base: Checkpoint) -> list[Parser]:
    tensors = {name: SimpleNamespace(dtype=h.dtype, shape=h.shape) for name, h in base.tensors.items()}
    request = models_pb2.StartUploadRequest(upload_id="u", config_json=json.dumps(CONFIG).encode())
    for name in ("model.safetensors", "config.json"):
        request.files.add(path=name, size=1, sha256="0" * 64)
    request.tensors.add(name="w", dtype="F32", shape=[2, 2])
    spec = models_pb2.JobSpec(model="m", source_uri="upload://u")
    adapter = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": {"up_proj": 2}, "bias": "none"}
    journal = folder / "journal"

    def adapted(data: bytes) -> None:
        config = parse_config(data, "adapter_config.json")
        parse_adapter_config(config)
        read_adapter(config, {}, base.config, base.tensors)

    def received(data: bytes) -> None:
        (folder / "data").write_bytes(b"x" * 1000)
        journal.write_bytes(data)
        found = ReceivedFile(folder / "data", journal, 1000).received
        if not 0 <= found <= 1000:
            raise AssertionError(f"{found} of 1000 bytes")

    config = [json.dumps(CONFIG).encode()]
    return [
        Parser("config.json", lambda d: _read(folder / "config.json", d, lambda p: _compatible(base, p)), config),
        Parser("declared config", parse_config, config),
        Parser("adapter_config.json", adapted, [json.dumps(adapter).encode()], [b".*", b"(a|b)", b"\\\\d+"]),
        Parser("StartUpload", lambda d: _proto(models_pb2.StartUploadRequest, d, declaration_of, tensors),
               [request.SerializeToString()]),
        Parser("JobSpec", lambda d: _proto(models_pb2.JobSpec, d, check_spec), [spec.SerializeToString()]),
        Parser("upload journal", received, [b"\0" * 16, bytes(range(48))]),
    ]  # fmt: skip


def _store(folder: Path, packed: Path) -> list[Parser]:
    record = JobRecord(job_id="j", spec={"model": "m"}, created=1.0, updated=2.0)
    upload = folder / "upload"
    upload.mkdir()
    manifest = (packed / MANIFEST_FILE).read_bytes()
    declared = b'{"upload_id":"u","files":[{"path":"f","size":1,"sha256":"00"}],"config":{},"tensors":[]}'
    return [
        Parser("job record", parse_record, [dump_record(record)]),
        Parser("upload.json", lambda d: _read(upload / DECLARATION_FILE, d, lambda _: load_declaration(upload)),
               [declared]),
        Parser("alias object", lambda d: asyncio.run(_setting(ALIAS, d, manifest)), [b'{"target": "m@1"}']),
        Parser("pin object", lambda d: asyncio.run(_setting(PIN, d, manifest)), [b'{"pinned": true}']),
        Parser("published manifest", lambda d: asyncio.run(_published(d, manifest)), [manifest]),
        Parser("report", _report, [(b'{"version": 1, "quality": {"tokens": 3, "kl": 0.1}, "sizes": {}}')]),
    ]  # fmt: skip


def _texts(folder: Path, base: Path) -> list[Parser]:
    rows = folder / "rows.jsonl"
    encoding = Encoding((base / "tokenizer.json").read_bytes())
    messages = [{"role": "user", "content": "hello"}]

    def chat(data: bytes) -> None:
        PromptTokenizer(encoding, {"chat_template.jinja": data}).encode_chat(messages, True)

    def side(data: bytes) -> None:
        files = {"tokenizer_config.json": data, "special_tokens_map.json": data, "generation_config.json": data}
        tokenizer = PromptTokenizer(encoding, files)
        generation = parse_json(files, "generation_config.json")
        generation_defaults(generation, generation, tokenizer.eos_token_id, "fuzz")

    def tokenizer(data: bytes) -> None:
        found = Encoding(data)
        found.encode("hello, 日本語", True)
        found.decode([0, 1, 5, 1 << 20])

    lines = [b'{"text": "a"}\n{"prompt": "p", "targets": ["x"]}\n', b'{"messages": [{"role": "user", "content": ""}]}']
    words = [b"{%", b"%}", b"{{", b"}}", b"for", b"messages", b"range(9)", b"|tojson", b"loop.", b"macro", b"set"]
    configs = [b'{"eos_token": {"content": "<|end|>"}, "eos_token_id": [0, 2], "temperature": 0.5, "top_p": 2}']
    return [
        Parser("calibration rows", lambda d: _read(rows, d, read_rows), lines, [b'"prompt"', b'"text"', b"\\ud800"]),
        Parser("evaluation rows", lambda d: _read(rows, d, read_labelled), lines, [b'"targets"', b'"completion"']),
        Parser("chat template", chat, [TEMPLATE.encode()], words),
        Parser("tokenizer side files", side, configs),
        Parser("tokenizer.json", tokenizer, [(base / "tokenizer.json").read_bytes()]),
        Parser("trace", lambda d: _read(folder / "trace.jsonl", d, arrivals.published),
               [(b'{"model": "a", "timestamp": 0.5, "prompt": "x", "max_tokens": 3}\n'
                b'{"model": "b", "timestamp": 1, "prompt": [1, 2], "max_tokens": 1}\n')]),
    ]  # fmt: skip


def _requests() -> list[Parser]:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": true}'
    schema = b'{"type": "object", "properties": {"a": {"type": "integer"}}}'
    frames = [wire.encode(message) for message in (Load("m@1", "folder"), Drop("m@1"), Rank({"m@1": 0.5}))]
    return [
        Parser("names", _names, [b"model@3", b"models/m/revisions/2", b"tokenizer.json"], [b"..", b"/", b"@", b"\0"]),
        Parser("chat body", lambda d: decode_body(d, ChatOptions), [body]),
        Parser("completion body", lambda d: decode_body(d, CompletionOptions), [b'{"model": "m", "prompt": "a"}']),
        Parser("json schema", lambda d: compile_grammar(pb.Grammar(json_schema=d.decode(errors="replace"))), [schema]),
        Parser("regex", lambda d: compile_grammar(pb.Grammar(regex=d.decode(errors="replace"))), [b"[a-z]+(b|c){2,5}"]),
        Parser("engine frames", lambda d: wire.FrameBuffer(wire.to_engine_decoder()).feed(d), frames),
    ]


def _names(data: bytes) -> None:
    """All readers of names; whatever one takes must be safe as a path and as a key."""
    text = data.decode(errors="surrogateescape")
    taken: list[str] = []
    for read in (names.parse_model, names.parse_resource, names.parse_revision):
        try:
            found = read(text, "f")
        except InvalidArgumentError:
            continue
        taken += [str(part) for part in (found if isinstance(found, tuple) else (found.model, found.revision)) if part]
    for check in (names.check_name, names.check_file_name):
        try:
            taken.append(check(text, "f"))
        except InvalidArgumentError:
            continue
    for part in taken:
        if "/" in part or "\\" in part or ".." in part or part.startswith(".") or not part.isascii() or not part:
            raise AssertionError(f"the name {part!r} was taken")
        if any(character < " " or character == "\x7f" for character in part):
            raise AssertionError(f"the name {part!r} was taken")


def _read(path: Path, data: bytes, read: Callable[[Path], object]) -> None:
    path.write_bytes(data)
    read(path)


def _compatible(base: Checkpoint, path: Path) -> None:
    check_compatible(base.config, base.tensors, read_config(path), base.tensors)


def _delta(folder: Path, packed: Path, payload: bytes, manifest: bytes, *, exact: bool = False) -> DeltaReader:
    """Opens and verifies a delta; unless `exact`, its manifest is made to agree about the payload's size and hash."""
    if not folder.exists():
        folder.mkdir()
        for file in packed.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / DELTA_FILE).write_bytes(payload)
    if not exact:
        fields = json.loads(manifest)
        (entry,) = (file for file in fields["files"] if file["path"] == DELTA_FILE)
        fields["sizes"]["delta_bytes"] += len(payload) - entry["size"]
        entry |= {"size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
        manifest = json.dumps(fields).encode()
    (folder / MANIFEST_FILE).write_bytes(manifest)
    return DeltaReader.open(folder)


def _proto(kind: type, data: bytes, read: Callable[..., object], *_: object) -> None:
    try:
        request = kind.FromString(data)
    except DecodeError:  # gRPC refuses these itself
        return
    read(request)


async def _setting(kind: str, data: bytes, manifest: bytes) -> None:
    """A setting's object holds anything: names that have nothing to do with it must still resolve."""
    store = Store.open("memory://")
    await store.put_new("deltas/m/1/manifest.json", manifest)
    await store.put_new(f"settings/{kind}/s/000000.json", data)
    catalog = Catalog(store)
    if str(await catalog.resolve("m")) != "m@1" or [record.name for record in await catalog.models()] != ["m"]:
        raise AssertionError("the model is gone")
    await write_setting(store, kind, "s", {"target": "m", "pinned": False})
    await catalog.refresh()
    await catalog.resolve("s" if kind == ALIAS else "m")


async def _published(data: bytes, manifest: bytes) -> None:
    """A revision's manifest holds anything: other models must still be listed."""
    store = Store.open("memory://")
    for model, contents in (("bad", data), ("m", manifest)):
        await store.put_new(f"deltas/{model}/1/manifest.json", contents)
    catalog = Catalog(store)
    if "m" not in [record.name for record in await catalog.models()]:
        raise AssertionError("the sound model is gone")
    await catalog.manifest(await catalog.resolve("bad"))


def _report(data: bytes) -> None:
    """Reports come inside manifests, which are JSON objects already."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    if isinstance(value, dict):
        page = render(value, "m@1")
        if "<script" in page.lower():
            raise AssertionError("a report made a script")


def _safetensors(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    fields, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)
