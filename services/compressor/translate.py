"""Between the protos of ModelService and the compressor's own types."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import get_args

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from deltaserve.aliases import AliasVersion, Route, Shadow
from deltaserve.errors import InvalidArgumentError
from deltaserve.names import check_name
from deltaserve.v1 import models_pb2 as pb
from services.compressor.jobs.records import JobRecord, Progress
from services.compressor.pipeline.spec import EmbeddingCodec, LinearCodec, Options, Preset
from services.compressor.revisions import StoredRevision
from services.compressor.uploads.declaration import Declaration, DeclaredFile, DeclaredTensor, declare
from services.compressor.uploads.upload import Upload

_CHOICES = {"codec": get_args(LinearCodec), "embedding_codec": get_args(EmbeddingCodec), "preset": get_args(Preset)}
_QUALITY_LIMITS = ("max_kl", "min_agreement", "max_accuracy_drop")
MAX_SAMPLES, MAX_TOKENS = 65_536, 131_072

_STATES = {
    "queued": pb.JOB_STATE_QUEUED,
    "running": pb.JOB_STATE_RUNNING,
    "succeeded": pb.JOB_STATE_SUCCEEDED,
    "failed": pb.JOB_STATE_FAILED,
    "cancelled": pb.JOB_STATE_CANCELLED,
}
_STAGES = {
    "preparing": pb.JOB_STAGE_PREPARING,
    "compressing": pb.JOB_STAGE_COMPRESSING,
    "evaluating": pb.JOB_STAGE_EVALUATING,
    "publishing": pb.JOB_STAGE_PUBLISHING,
}


def declaration_of(request: pb.StartUploadRequest) -> Declaration:
    """Returns the checked declaration of an upload. Raises InvalidArgumentError, FormatError."""
    files = tuple(DeclaredFile(file.path, file.size, file.sha256) for file in request.files)
    tensors = {
        tensor.name: DeclaredTensor(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in request.tensors
    }
    if len(tensors) != len(request.tensors):
        raise InvalidArgumentError("a tensor is declared twice", field="tensors")
    return declare(request.upload_id, files, request.config_json, tuple(tensors.values()))


def progress_of(upload: Upload) -> list[pb.FileProgress]:
    """Returns how far each file is, after making it durable. Blocks."""
    return [pb.FileProgress(path=p.path, received=p.received, size=p.size) for p in upload.progress()]


def spec_to_dict(spec: pb.JobSpec) -> dict[str, object]:
    """Returns a spec as the job log keeps it."""
    return MessageToDict(spec, preserving_proto_field_name=True)


def spec_of(record: JobRecord) -> pb.JobSpec:
    """Returns the spec of a job."""
    return ParseDict(record.spec, pb.JobSpec(), ignore_unknown_fields=True)


def job_of(record: JobRecord, *, report: bool = True) -> pb.Job:
    """Returns a job as clients see it, without its report if so asked."""
    job = pb.Job(
        job_id=record.job_id,
        spec=spec_of(record),
        state=_STATES[record.state],
        create_time=_timestamp(record.created),
        update_time=_timestamp(record.updated),
        report_json=record.report if report else "",
        error_status=record.error,
        attempts=record.attempts,
    )
    if record.progress is not None:
        job.progress.CopyFrom(_progress(record.progress))
    if record.state == "succeeded":
        job.revision_name = f"models/{record.model}/revisions/{record.revision}"
    return job


def routes_of(request: pb.SetAliasRequest) -> tuple[tuple[Route, ...], Shadow | None]:
    """Returns what an alias is to be. Raises InvalidArgumentError when target and routes are both given."""
    if request.target and request.routes:
        raise InvalidArgumentError("target and routes are both set; expected one of them", field="routes")
    routes = tuple(Route(route.target, route.weight) for route in request.routes)
    if request.target:
        routes = (Route(request.target),)
    shadow = Shadow(request.shadow.target, request.shadow.share) if request.HasField("shadow") else None
    return routes, shadow


def version_of(version: AliasVersion) -> pb.AliasVersion:
    """Returns a version of an alias as clients see it."""
    message = pb.AliasVersion(
        number=version.number,
        routes=[pb.AliasRoute(target=route.target, weight=route.weight) for route in version.routes],
        restores=version.restores,
    )
    if version.shadow is not None:
        message.shadow.target, message.shadow.share = version.shadow.target, version.shadow.share
    if version.time:
        message.time.FromJsonString(version.time)
    return message


def revision_of(stored: StoredRevision) -> pb.Revision:
    """Returns a revision as clients see it."""
    created = Timestamp()
    created.FromJsonString(stored.manifest.created)
    report = json.dumps(stored.manifest.report) if stored.manifest.report is not None else ""
    return pb.Revision(
        name=stored.name.resource, manifest_json=stored.manifest_json, report_json=report, create_time=created
    )


def default_limits(spec: pb.JobSpec, limits: Mapping[str, float]) -> list[str]:
    """Fills limits into a spec's policy where it sets none itself; returns the names of those that were filled in."""
    unset = [name for name in limits if not spec.policy.HasField(name)]  # type: ignore[arg-type]
    if not spec.evaluation_uri:  # without labelled rows there is no accuracy to limit
        unset = [name for name in unset if name != "max_accuracy_drop"]
    for name in unset:
        setattr(spec.policy, name, limits[name])
    return unset


def check_spec(spec: pb.JobSpec) -> None:
    """Raises InvalidArgumentError when a spec, the server's own limits included, is bad in itself."""
    check_name(spec.model, "spec.model")
    options = spec.compression
    for name, choices in _CHOICES.items():
        _check_choice(getattr(options, name), choices, f"spec.compression.{name}")
    limits = {"calibration_samples": MAX_SAMPLES, "calibration_tokens": MAX_TOKENS}
    given = {field.name: value for field, value in options.ListFields()}  # optional fields also when they are 0
    for name, limit in limits.items():
        if name in given and not 1 <= given[name] <= limit:
            field = f"spec.compression.{name}"
            raise InvalidArgumentError(f"{field} is {given[name]}; expected 1 to {limit}", field=field)
    try:
        Options(**given).check()
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"spec.compression.{error.message}", field=f"spec.compression.{error.field}"
        ) from error
    _check_policy(spec.policy)
    if options.smallest and not any(spec.policy.HasField(name) for name in _QUALITY_LIMITS):  # type: ignore[arg-type]
        raise InvalidArgumentError(
            "spec.compression.smallest looks for the smallest size that meets the policy, which limits no quality; set "
            "max_kl, min_agreement or max_accuracy_drop",
            field="spec.compression.smallest",
        )


def page_token(record: JobRecord) -> str:
    """Returns the token of the page after a job."""
    return f"{record.created!r}/{record.job_id}"


def parse_page_token(token: str) -> tuple[float, str] | None:
    """Returns (created, job id) of the last job shown; None for an empty token. Raises InvalidArgumentError."""
    if not token:
        return None
    created, _, job_id = token.partition("/")
    try:
        return float(created), check_name(job_id, "page_token")
    except ValueError as error:
        raise InvalidArgumentError(
            f"page_token is {token[:80]!r}; expected one from a former response", field="page_token"
        ) from error


def _check_policy(policy: pb.QualityPolicy) -> None:
    for descriptor, value in policy.ListFields():
        limit = 1.0 if descriptor.name == "min_agreement" else math.inf
        if not 0 <= value <= limit or math.isinf(value):
            field = f"spec.policy.{descriptor.name}"
            expected = "0 to 1" if limit == 1.0 else "a finite number, 0 or more"
            raise InvalidArgumentError(f"{field} is {value}; expected {expected}", field=field)


def _check_choice(value: str, choices: tuple[str, ...], field: str) -> None:
    if value and value not in choices:
        raise InvalidArgumentError(f"{field} is {value[:40]!r}; expected one of {', '.join(choices)}", field=field)


def _progress(progress: Progress) -> pb.JobProgress:
    message = pb.JobProgress(
        stage=_STAGES[progress.stage],
        layers_done=progress.layers_done,
        layers_total=progress.layers_total,
        bytes_out=progress.bytes_out,
        layer_error=progress.layer_error,
        attempt=progress.attempt,
    )
    if progress.eta_seconds is not None:
        message.eta.CopyFrom(Duration(seconds=int(progress.eta_seconds)))
    return message


def _timestamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
