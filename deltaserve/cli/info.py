"""`deltaserve info`: what a manifest, a delta, a checkpoint or a single safetensors file holds, without torch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from deltaserve.cli.console import bits_text, bytes_text, make_console, make_table, ratio_text
from deltaserve.cli.options import json_option
from deltaserve.cli.report import show_report_fields
from deltaserve.delta.classes import classify
from deltaserve.delta.headers import TensorHeader, read_folder_headers, read_header
from deltaserve.delta.manifest import MANIFEST_FILE, PLANE_SEPARATOR, Manifest, parse_manifest
from deltaserve.errors import FormatError


@dataclass
class Tally:
    """Sizes of a group of tensors; bytes as stored, and as the checkpoint has them (0 when not known)."""

    tensors: int = 0
    parameters: int = 0
    checkpoint_bytes: int = 0
    stored_bytes: int = 0

    def add(self, parameters: int, stored_bytes: int, checkpoint_bytes: int = 0) -> None:
        """Counts one more tensor."""
        self.tensors += 1
        self.parameters += parameters
        self.stored_bytes += stored_bytes
        self.checkpoint_bytes += checkpoint_bytes


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(exists=True, path_type=Path))
@json_option
def info(path: Path, as_json: bool) -> None:
    """Tell sizes, codecs, bits a parameter and ratios of FILE.

    FILE is a manifest.json, the folder of a delta or of a checkpoint, or any .safetensors file.
    """
    console = make_console()
    manifest = _manifest_at(path)
    if manifest is not None:
        if as_json:
            click.echo(json.dumps(_manifest_json(manifest), indent=1))
        else:
            show_manifest(console, manifest)
        return
    headers = read_folder_headers(path) if path.is_dir() else _read_file(path)
    groups = by_class(headers.values())
    if as_json:
        click.echo(json.dumps({name: asdict(tally) for name, tally in groups.items()}, indent=1))
    else:
        _show_headers(console, path, headers, groups)


def show_manifest(console: Console, manifest: Manifest) -> None:
    """Prints a manifest: what it is, sizes by class and by codec, files, and its report's main figures."""
    console.print(f"{manifest.model}@{manifest.revision}", style="bold", end="  ")
    console.print(f"{manifest.base.architecture}, {manifest.created}")
    console.print(f"delta of base {manifest.base.fingerprint}\n")
    table = make_table("class", ">tensors", ">parameters", ">checkpoint", ">delta", ">ratio", ">bits/param")
    for name, size in manifest.sizes.by_class.items():
        table.add_row(name, *_cells(Tally(size.tensors, size.parameters, size.checkpoint_bytes, size.delta_bytes)))
    sizes = manifest.sizes
    whole = Tally(len(manifest.tensors), sizes.parameters, sizes.checkpoint_bytes, sizes.delta_bytes)
    table.add_section()
    table.add_row("everything stored", *_cells(whole), style="bold")
    console.print(table)
    memory, stored = _planes_bytes(manifest), _stored_bytes(manifest)
    if memory != stored:
        text = f"{bytes_text(memory)} in memory; on disk, where some are lossless streams, {bytes_text(stored)}"
        console.print(f"\nplanes take {text}")
    console.print()
    codecs = make_table("codec", ">tensors", ">parameters", ">delta", ">bits/param")
    for codec, tally in _by_codec(manifest).items():
        cells = _cells(tally)
        codecs.add_row(codec, cells[0], cells[1], cells[3], cells[5])
    console.print(codecs)
    own = [f"{file.path} ({bytes_text(file.size)})" for file in manifest.files if file.source == "delta"]
    shared = [file.path for file in manifest.files if file.source == "base"]
    console.print(f"\nfiles: {', '.join(own)}" + (f"; the base's own: {', '.join(shared)}" if shared else ""))
    if manifest.report:
        console.print()
        show_report_fields(console, manifest.report)


def by_class(headers: Iterable[TensorHeader]) -> dict[str, Tally]:
    """Returns sizes by tensor class; the planes of a packed tensor count as one tensor."""
    planes: dict[str, list[TensorHeader]] = defaultdict(list)
    for header in headers:
        planes[header.name.partition(PLANE_SEPARATOR)[0]].append(header)
    groups: dict[str, Tally] = defaultdict(Tally)
    for name, parts in planes.items():
        packed = PLANE_SEPARATOR in parts[0].name
        kind = classify(name, (1, 1) if packed and not _is_vector(name) else parts[0].shape)
        stored = sum(part.bytes for part in parts)
        # how many parameters packed planes stand for is known to the manifest only
        groups[kind].add(0 if packed else parts[0].elements, stored, 0 if packed else stored)
    return dict(groups)


def _is_vector(name: str) -> bool:
    return name.endswith((".bias", "norm.weight"))


def _manifest_at(path: Path) -> Manifest | None:
    """Returns the manifest that `path` is, holds, or (for a delta's payload) lies beside."""
    if path.is_dir():
        path = path / MANIFEST_FILE
        if not path.is_file():
            return None
    if path.suffix == ".json":
        return parse_manifest(path.read_bytes())
    return None


def _read_file(path: Path) -> dict[str, TensorHeader]:
    if path.suffix != ".safetensors":
        raise FormatError(f"{path.name!r} is neither {MANIFEST_FILE}, a .safetensors file nor a folder with one")
    return read_header(path)


def _show_headers(console: Console, path: Path, headers: dict[str, TensorHeader], groups: dict[str, Tally]) -> None:
    dtypes: dict[str, int] = defaultdict(int)
    for header in headers.values():
        dtypes[header.dtype] += header.bytes
    stored = ", ".join(f"{dtype} {bytes_text(size)}" for dtype, size in sorted(dtypes.items()))
    console.print(path.name, style="bold", end="  ")
    console.print(f"{len(headers)} tensors: {stored}\n")
    packed = any(PLANE_SEPARATOR in name for name in headers)
    table = make_table("class", ">tensors", ">parameters", ">bytes", ">bits/param")
    whole = Tally()
    for name, tally in groups.items():
        cells = _cells(tally)
        table.add_row(name, cells[0], cells[1], cells[3], cells[5])
        whole.tensors += tally.tensors
        whole.parameters += tally.parameters
        whole.stored_bytes += tally.stored_bytes
    cells = _cells(whole)
    table.add_section()
    table.add_row("all", cells[0], cells[1], cells[3], cells[5], style="bold")
    console.print(table)
    if packed:
        console.print(f"\na packed delta: its {MANIFEST_FILE} also tells codecs, parameters and ratios")


def _by_codec(manifest: Manifest) -> dict[str, Tally]:
    groups: dict[str, Tally] = defaultdict(Tally)
    for tensor in manifest.tensors:
        parameters = 1
        for dimension in tensor.shape:
            parameters *= dimension
        group = tensor.params.get("group_size")
        name = f"{tensor.codec}, groups of {group}" if group else tensor.codec
        groups[name].add(parameters, tensor.stored_bytes)
    return dict(groups)


def _planes_bytes(manifest: Manifest) -> int:
    """Returns the bytes of all planes in memory."""
    return sum(tensor.bytes for tensor in manifest.tensors)


def _stored_bytes(manifest: Manifest) -> int:
    """Returns the bytes of all planes on disk, lossless streams counted as such."""
    return sum(tensor.stored_bytes for tensor in manifest.tensors)


def _cells(tally: Tally) -> tuple[str, str, str, str, str, str]:
    """Returns tensors, parameters, checkpoint bytes, stored bytes, ratio and bits a parameter as text."""
    return (
        str(tally.tensors),
        f"{tally.parameters:,}" if tally.parameters else "-",
        bytes_text(tally.checkpoint_bytes) if tally.checkpoint_bytes else "-",
        bytes_text(tally.stored_bytes),
        ratio_text(tally.checkpoint_bytes, tally.stored_bytes),
        bits_text(tally.stored_bytes, tally.parameters),
    )


def _manifest_json(manifest: Manifest) -> dict[str, Any]:
    sizes = manifest.sizes
    return {
        "model": manifest.model,
        "revision": manifest.revision,
        "base_fingerprint": manifest.base.fingerprint,
        "parameters": sizes.parameters,
        "checkpoint_bytes": sizes.checkpoint_bytes,
        "delta_bytes": sizes.delta_bytes,
        "planes": {"memory_bytes": _planes_bytes(manifest), "stored_bytes": _stored_bytes(manifest)},
        "ratio": sizes.checkpoint_bytes / sizes.delta_bytes,
        "bits_per_parameter": 8 * sizes.delta_bytes / sizes.parameters,
        "by_class": {
            name: {
                "tensors": size.tensors,
                "parameters": size.parameters,
                "checkpoint_bytes": size.checkpoint_bytes,
                "delta_bytes": size.delta_bytes,
            }
            for name, size in sizes.by_class.items()
        },
        "codecs": {name: asdict(tally) for name, tally in _by_codec(manifest).items()},
    }
