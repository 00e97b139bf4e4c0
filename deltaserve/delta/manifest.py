"""The manifest of a packed delta: what docs/delta-format.md describes, as types, with a strict reader.

Free of torch, so that the router and the CLI can read manifests.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from deltaserve.errors import FormatError
from deltaserve.json_bounds import check_values
from deltaserve.names import check_file_name

FORMAT = "deltaserve-delta"
VERSION = 1
MANIFEST_FILE = "manifest.json"
DELTA_FILE = "delta.safetensors"
MAX_MANIFEST_BYTES = 8 << 20
PLANE_SEPARATOR = "::"  # a plane of tensor T is stored in delta.safetensors as "T::plane"
STREAM_SUFFIX = "::rans"  # … and as "T::plane::rans" when it is a lossless stream

TensorClass = Literal["linear", "embedding", "lm_head", "norm", "bias", "other"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class BaseRef(_Strict, frozen=True, kw_only=True):
    """The one base that a delta may be applied to."""

    fingerprint: str  # deltaserve.delta.fingerprint
    architecture: str  # e.g. "LlamaForCausalLM"


class StreamSize(_Strict, frozen=True, kw_only=True):
    """A plane that is stored as a lossless stream."""

    raw_bytes: Annotated[int, msgspec.Meta(ge=1)]  # of the plane
    stored_bytes: Annotated[int, msgspec.Meta(ge=1)]  # of the stream


class TensorEntry(_Strict, frozen=True, kw_only=True, omit_defaults=True):
    """One tensor of the fine-tune and how it is coded.

    A codec other than `dense` codes Δ = W_f − W_b, where W_b is the base tensor named by `base`, zero-padded or cut to
    the fine-tune's number of rows (resized vocabularies). `dense` holds W_f itself, and `base` is None.
    """

    name: str  # as in the fine-tune's checkpoint
    kind: TensorClass
    shape: list[int]  # of the fine-tune's tensor
    dtype: Literal["BF16", "F16", "F32"]  # of the fine-tune's tensor
    codec: str
    base: str | None = None
    params: dict[str, int] = {}  # codec parameters, e.g. {"group_size": 128}
    bytes: int  # of all planes in memory: raw, whether or not they are stored as streams
    sha256: str  # over the raw planes' bytes, planes in order of their names
    lossless: dict[str, StreamSize] = {}  # the planes that are stored as streams

    @property
    def stored_bytes(self) -> int:
        """Bytes that the tensor takes in the payload file."""
        return self.bytes - sum(stream.raw_bytes - stream.stored_bytes for stream in self.lossless.values())

    @property
    def in_memory(self) -> TensorEntry:
        """The entry of the tensor with its planes raw."""
        return msgspec.structs.replace(self, lossless={}) if self.lossless else self


class FileEntry(_Strict, frozen=True, kw_only=True):
    """A file that belongs to the delta: the payload, tokenizer, chat template, generation config."""

    path: str
    size: int
    sha256: str
    # "delta": stored beside the manifest; "base": identical to the base's file of that name, and only there
    source: Literal["delta", "base"] = "delta"


class ClassSize(_Strict, frozen=True, kw_only=True):
    """Sizes of all tensors of one class."""

    tensors: int
    parameters: int
    checkpoint_bytes: int  # in the fine-tune's dtype
    delta_bytes: int  # packed planes as stored, streams counted as such


class Sizes(_Strict, frozen=True, kw_only=True):
    """Sizes of the whole; ratios follow from these."""

    parameters: int
    checkpoint_bytes: int  # the fine-tune's tensors
    delta_bytes: int  # everything stored for the delta: payload file with header, files with source "delta"
    by_class: dict[TensorClass, ClassSize]


class Manifest(_Strict, frozen=True, kw_only=True):
    """Everything about one revision; stored last, so that its presence publishes the revision."""

    format: str
    version: int
    model: str
    revision: str
    created: str  # RFC 3339, UTC
    base: BaseRef
    config: dict[str, Any]  # the fine-tune's config.json
    tensors: list[TensorEntry]
    files: list[FileEntry]
    sizes: Sizes
    compression: dict[str, Any] = {}  # options and versions that made it
    report: dict[str, Any] | None = None  # quality report

    def file(self, path: str) -> FileEntry:
        """Returns the entry of a file; raises FormatError when there is none."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise FormatError(f"manifest names no file {path!r}; it has {[f.path for f in self.files]}")


def parse_manifest(data: bytes) -> Manifest:
    """Reads a manifest strictly.

    Raises:
        FormatError: not JSON, another format or version, a missing, unknown or ill-typed field, or a bad name.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise FormatError(f"manifest is {len(data)} bytes; expected at most {MAX_MANIFEST_BYTES}")
    try:
        check_values(data)
        head = msgspec.json.decode(data, type=_Head)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"manifest is not a JSON object with format and version: {error}") from error
    if head.format != FORMAT or head.version != VERSION:
        raise FormatError(
            f"manifest says format {head.format!r} version {head.version}; expected {FORMAT!r} version {VERSION}"
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"manifest is malformed: {error}") from error
    _check(manifest)
    return manifest


def dump_manifest(manifest: Manifest) -> bytes:
    """Returns the manifest as indented UTF-8 JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1)


class _Head(msgspec.Struct):
    format: str
    version: int


def _check(manifest: Manifest) -> None:
    for entry in manifest.files:
        check_file_name(entry.path, "manifest.files.path")
        _check_sha256(entry.sha256, entry.path)
        if entry.size < 0:
            raise FormatError(f"manifest: file {entry.path!r} has size {entry.size}; expected 0 or more")
    _check_unique([f.path for f in manifest.files], "file")
    _check_unique([t.name for t in manifest.tensors], "tensor")
    manifest.file(DELTA_FILE)
    for tensor in manifest.tensors:
        _check_sha256(tensor.sha256, tensor.name)
        if not tensor.shape or any(size <= 0 for size in tensor.shape):
            raise FormatError(
                f"manifest: tensor {tensor.name!r} has shape {tensor.shape}; expected positive dimensions"
            )
        if tensor.codec == "dense" and tensor.base is not None:
            raise FormatError(f"manifest: dense tensor {tensor.name!r} names a base tensor; expected none")
        if tensor.codec != "dense" and tensor.base is None:
            raise FormatError(f"manifest: tensor {tensor.name!r} of codec {tensor.codec!r} names no base tensor")
    if not _SHA256.fullmatch(manifest.base.fingerprint):
        raise FormatError(f"manifest: base fingerprint {manifest.base.fingerprint[:80]!r}; expected 64 hex digits")


def _check_sha256(text: str, owner: str) -> None:
    if not _SHA256.fullmatch(text):
        raise FormatError(f"manifest: sha256 of {owner!r} is {text[:80]!r}; expected 64 lower-case hex digits")


def _check_unique(names: list[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise FormatError(f"manifest names {what} {name!r} twice")
        seen.add(name)
