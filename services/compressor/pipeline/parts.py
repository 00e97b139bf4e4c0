"""What a run keeps in its work folder: finished parts, attempts; and the check that they belong to this very run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deltaserve.delta.packed import PackedTensor
from deltaserve.delta.writer import DeltaWriter
from deltaserve.files import publish, temp_beside

_STATE = "state.json"
_FORMAT = 3  # of the parts and of the arithmetic behind them: parts of another one are made anew


class Parts:
    """Parts of the delta with the errors of their tensors, and the attempts made.

    Attributes:
        created: when the run was first begun, RFC 3339; the same after every restart.
        writer: holds the packed tensors.
    """

    def __init__(self, work: Path, key: Mapping[str, Any], *, lossless: bool = False) -> None:
        """Opens the parts of a run, after dropping those of another one.

        Args:
            work: folder of the run.
            key: everything that the parts follow from.
            lossless: entropy-code planes on disk, see deltaserve.delta.lossless.
        """
        self._folder = work / "parts"
        state = _state(work)
        digest = hashlib.sha256(json.dumps([_FORMAT, key], sort_keys=True).encode()).hexdigest()
        if state.get("key") != digest:
            shutil.rmtree(self._folder, ignore_errors=True)
            created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            state = {"key": digest, "created": created, "coded": {}, "attempts": []}
            _write(work / _STATE, state)
        self._state, self._path = state, work / _STATE
        self.created = str(state["created"])
        self.writer = DeltaWriter(self._folder, lossless=lossless)
        for stale in self._folder.glob(".tmp-*"):
            stale.unlink()
        self._sizes = {name: size for name, size in self.writer.parts().items() if self._errors_path(name).is_file()}

    @property
    def folder(self) -> Path:
        """Where parts lie, and whatever else goes when another run begins in the work folder."""
        return self._folder

    @property
    def attempts(self) -> list[Any]:
        """What `note` was given, in order."""
        return list(self._state["attempts"])

    def note(self, attempt: Any) -> None:
        """Keeps what came of an attempt, a JSON value."""
        self._state["attempts"].append(attempt)
        _write(self._path, self._state)

    def begin(self, coded: Mapping[str, str]) -> None:
        """Begins an attempt: drops parts from the first on that a former one coded in another way.

        Args:
            coded: how each part is coded, by its name in the order of coding: each follows from all before it.
        """
        former = self._state["coded"]
        same = True
        for name, how in coded.items():
            same = same and former.get(name) == how
            if not same:
                self.writer.drop_part(name)
                self._errors_path(name).unlink(missing_ok=True)
                self._sizes.pop(name, None)
        self._state["coded"] = dict(coded)
        _write(self._path, self._state)

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return sum(self._sizes.values())

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def add(self, name: str, tensors: Sequence[PackedTensor], errors: Mapping[str, float]) -> None:
        """Writes a part and the errors of its coded tensors by name."""
        _write(self._errors_path(name), dict(errors))
        self._sizes[name] = self.writer.add_part(name, tensors)

    def read(self, name: str) -> dict[str, PackedTensor]:
        """Returns a part's tensors by name."""
        return {tensor.entry.name: tensor for tensor in self.writer.read_part(name)}

    def errors(self) -> dict[str, float]:
        """Returns the errors of all coded tensors by name."""
        merged: dict[str, float] = {}
        for name in self._sizes:
            merged.update(json.loads(self._errors_path(name).read_bytes()))
        return merged

    def _errors_path(self, name: str) -> Path:
        return self._folder / f"{name}.errors.json"


def _state(work: Path) -> dict[str, Any]:
    try:
        state = json.loads((work / _STATE).read_bytes())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    temp = temp_beside(path)
    temp.write_text(json.dumps(value))
    publish(temp, path)
