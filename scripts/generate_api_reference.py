"""Generates docs/api.md from protos/, whose comments are the manual; `--check` fails when the committed one differs."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PAGE = ROOT / "docs" / "api.md"
ORDER = ("inference.proto", "models.proto", "admin.proto", "worker.proto")

HEADER = """# API reference

Generated from [protos/deltaserve/v1](../protos/deltaserve/v1) by `scripts/generate_api_reference.py`: do not edit.
The OpenAI-compatible HTTP API has [a page of its own](openai.md). Errors are those of `deltaserve/errors.py`.
"""

# numbers of descriptor.proto by which a comment's place is told
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_FIELD, _NESTED, _NESTED_ENUM, _METHOD, _VALUE = 2, 3, 4, 2, 2

Path_ = tuple[int, ...]


def descriptors() -> list[FileDescriptorProto]:
    """Returns our protos with their comments, in the order of the page."""
    include = Path(protoc.__file__).parent / "_proto"
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        flags = ["--include_source_info", f"--descriptor_set_out={out}", f"-I{PROTOS}", f"-I{include}"]
        if status := protoc.main(["protoc", *flags, *sources]):
            raise SystemExit(f"protoc failed with exit status {status}")
        found = FileDescriptorSet.FromString(out.read_bytes()).file
    return sorted(found, key=lambda file: ORDER.index(Path(file.name).name))


class Section:
    """One proto's part of the page."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments: dict[Path_, str] = {
            tuple(place.path): place.leading_comments for place in file.source_code_info.location
        }

    def lines(self) -> Iterator[str]:
        """Yields the lines of Markdown."""
        yield f"## {self._file.name}"
        for number, service in enumerate(self._file.service):
            yield from self._service(service, (_SERVICE, number))
        for number, message in enumerate(self._file.message_type):
            yield from self._message(message, (_MESSAGE, number), message.name)
        for number, enum in enumerate(self._file.enum_type):
            yield from self._enum(enum, (_ENUM, number), enum.name)

    def _service(self, service: ServiceDescriptorProto, at: Path_) -> Iterator[str]:
        yield from ("", f"### {service.name}", "", self._text(at))
        for number, method in enumerate(service.method):
            asked = f"{'stream ' * method.client_streaming}{_short(method.input_type)}"
            answered = f"{'stream ' * method.server_streaming}{_short(method.output_type)}"
            yield from ("", f"#### {service.name}.{method.name}", "", f"`{asked}` → `{answered}`", "")
            yield self._text((*at, _METHOD, number))

    def _message(self, message: DescriptorProto, at: Path_, name: str) -> Iterator[str]:
        yield from ("", f"### {name}", "", self._text(at))
        fields = list(enumerate(message.field))
        if fields:
            yield from ("", "| field | type | |", "| --- | --- | --- |")
        entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        for number, field in fields:
            text = _cell(self._text((*at, _FIELD, number)))
            yield f"| `{field.name}` = {field.number} | {_type(field, entries)}{_oneof(message, field)} | {text} |"
        for number, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from self._message(nested, (*at, _NESTED, number), f"{name}.{nested.name}")
        for number, enum in enumerate(message.enum_type):
            yield from self._enum(enum, (*at, _NESTED_ENUM, number), f"{name}.{enum.name}")

    def _enum(self, enum: EnumDescriptorProto, at: Path_, name: str) -> Iterator[str]:
        yield from ("", f"### {name}", "", self._text(at), "", "| value | |", "| --- | --- |")
        for number, value in enumerate(enum.value):
            yield f"| `{value.name}` = {value.number} | {_cell(self._text((*at, _VALUE, number)))} |"

    def _text(self, at: Path_) -> str:
        """Returns a comment; what is indented in it is a block of its own."""
        lines = [line.removeprefix(" ").rstrip() for line in self._comments.get(at, "").strip("\n").split("\n")]
        return "\n".join(f"  {line}" if line.startswith("  ") else line for line in lines).strip("\n")


def _type(field: FieldDescriptorProto, entries: dict[str, DescriptorProto]) -> str:
    entry = entries.get(_short(field.type_name))
    if entry is not None:
        key, value = (_type(part, {}) for part in entry.field)
        return f"map of {key} to {value}"
    kinds = (FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_ENUM)
    name = _short(field.type_name) if field.type in kinds else FieldDescriptorProto.Type.Name(field.type)[5:].lower()
    ours = field.type in kinds and field.type_name.startswith(".deltaserve.")
    shown = f"[{name}](#{name.lower().replace('.', '')})" if ours else f"`{name}`"
    repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
    return f"repeated {shown}" if repeated else f"optional {shown}" if field.proto3_optional else shown


def _oneof(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    if field.proto3_optional or not field.HasField("oneof_index"):
        return ""
    return f", one of `{message.oneof_decl[field.oneof_index].name}`"


def _short(name: str) -> str:
    return name.removeprefix(".deltaserve.v1.").removeprefix(".google.protobuf.").rpartition(".")[2]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page() -> str:
    """Returns the page."""
    return HEADER + "".join("\n" + "\n".join(Section(file).lines()) + "\n" for file in descriptors())


def main() -> int:
    """Writes the page, or compares it; returns the exit status."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.stderr.write("docs/api.md differs from protos/; run `make stubs` and commit\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
