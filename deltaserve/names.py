"""Names of models, revisions, uploads and jobs, and the checks that keep them safe as paths and object keys."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deltaserve.errors import InvalidArgumentError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REVISION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class RevisionName:
    """A revision of a fine-tune: `<model>@<revision>` in requests and on the Session."""

    model: str
    revision: str

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}"

    @property
    def resource(self) -> str:
        """The AIP resource name."""
        return f"models/{self.model}/revisions/{self.revision}"


def check_name(name: str, field: str) -> str:
    """Returns `name` if it may name a model, alias, upload or job; raises InvalidArgumentError otherwise."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidArgumentError(
            f"{field} is {name[:80]!r}; expected 1 to 63 of a-z 0-9 . _ -, first a letter or digit, without '..'",
            field=field,
        )
    return name


def check_file_name(name: str, field: str) -> str:
    """Returns `name` if it is a plain file name without any folder; raises InvalidArgumentError otherwise."""
    if not _FILE.fullmatch(name) or ".." in name:
        raise InvalidArgumentError(
            f"{field} is {name[:80]!r}; expected a plain file name of at most 128 letters, digits, . _ -, without '..'",
            field=field,
        )
    return name


def parse_model(text: str, field: str = "model") -> tuple[str, str | None]:
    """Splits `<model>` or `<model>@<revision>`; the revision is None when absent."""
    model, at, revision = text.partition("@")
    check_name(model, field)
    if not at:
        return model, None
    return model, check_revision(revision, field)


def parse_revision(text: str, field: str = "revision") -> RevisionName:
    """Parses `<model>@<revision>` where both parts are required."""
    model, revision = parse_model(text, field)
    if revision is None:
        raise InvalidArgumentError(f"{field} is {text!r}; expected <model>@<revision>", field=field)
    return RevisionName(model, revision)


def parse_resource(text: str, field: str = "name") -> tuple[str, str | None]:
    """Splits `models/<model>` or `models/<model>/revisions/<n>`; the revision is None when absent."""
    parts = text.split("/")
    if len(parts) == 2 and parts[0] == "models":
        return check_name(parts[1], field), None
    if len(parts) == 4 and parts[0] == "models" and parts[2] == "revisions":
        return check_name(parts[1], field), check_revision(parts[3], field)
    raise InvalidArgumentError(
        f"{field} is {text[:80]!r}; expected models/<model> or models/<model>/revisions/<n>", field=field
    )


def check_revision(revision: str, field: str) -> str:
    """Returns `revision` if it is a positive whole number in decimal; raises InvalidArgumentError otherwise."""
    if not _REVISION.fullmatch(revision):
        raise InvalidArgumentError(
            f"{field} has revision {revision[:40]!r}; expected a positive whole number", field=field
        )
    return revision
