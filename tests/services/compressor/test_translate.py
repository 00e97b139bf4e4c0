"""Specs as they travel: proto, the job log's JSON, the pipeline's options."""

import random
from typing import Any, get_args

import msgspec
import pytest

from deltaserve.errors import InvalidArgumentError
from deltaserve.v1 import models_pb2 as pb
from services.compressor import translate
from services.compressor.jobs.records import JobRecord, Progress, dump_record, parse_record
from services.compressor.pipeline.spec import EmbeddingCodec, LinearCodec, Options, Policy, Preset

LIMITS = {"max_kl": 0.1, "min_agreement": 0.9, "max_accuracy_drop": 1.0, "max_bits_per_param": 4.0}


def spec(**fields: Any) -> pb.JobSpec:
    return pb.JobSpec(model="m", source_uri="upload:u", **fields)


def logged(asked: pb.JobSpec) -> dict[str, Any]:
    """What a job's record holds after it was written and read."""
    record = JobRecord(job_id="j", spec=translate.spec_to_dict(asked), created=0, updated=0)
    return parse_record(dump_record(record)).spec


def test_every_field_of_the_protos_is_one_of_the_pipeline() -> None:
    for message, struct in ((pb.CompressionOptions, Options), (pb.QualityPolicy, Policy)):
        assert {f.name for f in message.DESCRIPTOR.fields} == {f.name for f in msgspec.structs.fields(struct)}


def test_what_is_unset_or_empty_is_the_default() -> None:
    for options in (pb.CompressionOptions(), pb.CompressionOptions(codec="", preset="", embedding_codec="")):
        kept = logged(spec(compression=options, policy=pb.QualityPolicy()))
        assert msgspec.convert(kept["compression"], Options) == Options()
        assert msgspec.convert(kept["policy"], Policy) == Policy()


@pytest.mark.parametrize("size", ["codec", "preset", "bits_per_param", "smallest", None])
def test_options_arrive_as_they_were_given(size: str | None) -> None:
    values: dict[str, Any] = {
        "codec": random.choice(get_args(LinearCodec)),
        "preset": random.choice(get_args(Preset)),
        "bits_per_param": random.uniform(1, 8),
        "smallest": True,
        "embedding_codec": random.choice(get_args(EmbeddingCodec)),
        "group_size": random.choice([0, 16, 128]),
        "calibration_samples": random.randint(1, 100),
        "calibration_tokens": random.randint(1, 100),
        "lossless": random.choice([True, False]),
    }
    sizes = {"codec", "preset", "bits_per_param", "smallest"}
    given = {name: value for name, value in values.items() if name == size or name not in sizes}
    asked = spec(compression=pb.CompressionOptions(**given), policy=pb.QualityPolicy(max_kl=0.5))
    translate.check_spec(asked)
    kept = logged(asked)
    assert msgspec.convert(kept["compression"], Options) == Options(**given)
    assert msgspec.convert(kept["policy"], Policy) == Policy(max_kl=0.5)


def test_the_servers_limits_apply_one_by_one() -> None:
    asked = spec(policy=pb.QualityPolicy(max_kl=0.0, max_bits_per_param=9), evaluation_uri="e.jsonl")
    assert translate.default_limits(asked, LIMITS) == ["min_agreement", "max_accuracy_drop"]
    assert asked.policy == pb.QualityPolicy(**LIMITS | {"max_kl": 0.0, "max_bits_per_param": 9})
    assert translate.default_limits(asked, LIMITS) == []


def test_without_labelled_rows_there_is_no_accuracy_to_limit() -> None:
    asked = spec()
    assert "max_accuracy_drop" not in translate.default_limits(asked, LIMITS)
    assert not asked.policy.HasField("max_accuracy_drop")
    assert asked.policy.max_kl == 0.1


def test_smallest_needs_a_limit_on_quality() -> None:
    asked = spec(compression=pb.CompressionOptions(smallest=True), policy=pb.QualityPolicy(max_bits_per_param=4))
    with pytest.raises(InvalidArgumentError, match="max_kl") as refused:
        translate.check_spec(asked)
    assert refused.value.field == "spec.compression.smallest"
    translate.default_limits(asked, {"max_kl": 0.1})
    translate.check_spec(asked)


def test_a_job_without_limits_of_its_own_is_told_apart_from_one_with_the_same() -> None:
    asked = spec()
    names = translate.default_limits(asked, LIMITS)
    record = JobRecord(job_id="j", spec=translate.spec_to_dict(asked), defaulted=tuple(names), created=0, updated=0)
    assert parse_record(dump_record(record)).asked == translate.spec_to_dict(spec())
    explicit = JobRecord(job_id="j", spec=record.spec, created=0, updated=0)
    assert explicit.asked == record.spec != record.asked


def test_the_attempt_is_told() -> None:
    progress = Progress(stage="compressing", attempt=3)
    record = JobRecord(job_id="j", spec=logged(spec()), progress=progress, created=0, updated=0)
    assert translate.job_of(record).progress.attempt == 3
