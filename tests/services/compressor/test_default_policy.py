"""The server's own quality policy: part of a job from its creation on, whoever works on it."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltaserve.config import load
from deltaserve.errors import AlreadyExistsError, QualityGateError
from deltaserve.rpc.channels import edge_channel
from deltaserve.rpc.status import error_from_status
from deltaserve.v1 import models_pb2 as pb
from services.compressor.service import compressor
from services.compressor.settings import Settings
from tests.services.compressor.conftest import Client

QUICK = pb.CompressionOptions(codec="sign1", calibration_samples=4, calibration_tokens=32)


async def test_it_gates_jobs_that_set_no_limits(settings: Settings, tune: Callable[..., Path]) -> None:
    strict = dataclasses.replace(settings, policy_max_kl=1e-12, policy_max_bits_per_param=3.0)
    async with compressor(strict) as host, edge_channel(f"127.0.0.1:{host.port}") as channel:
        client = Client(channel, strict)
        source = str(tune("m"))
        job = await client.create_job(source, compression=QUICK)
        assert (job.spec.policy.max_kl, job.spec.policy.max_bits_per_param) == (1e-12, 3.0)
        ended = (await client.watch())[-1]
        assert isinstance(error_from_status(ended.error_status), QualityGateError)
        assert json.loads(ended.report_json)["policy"] == {"max_kl": 1e-12, "max_bits_per_param": 3.0}
        own = pb.QualityPolicy(max_kl=1e9)
        job = await client.create_job(source, job_id="own", compression=QUICK, policy=own)
        assert (job.spec.policy.max_kl, job.spec.policy.max_bits_per_param) == (1e9, 3.0)
        ended = (await client.watch("own"))[-1]
        assert ended.state == pb.JOB_STATE_SUCCEEDED, error_from_status(ended.error_status)


async def test_a_job_keeps_it_when_the_compressor_comes_back_with_another(
    settings: Settings, packed_folder: Path
) -> None:
    before = dataclasses.replace(settings, policy_max_kl=0.25)
    async with compressor(before) as host, edge_channel(f"127.0.0.1:{host.port}") as channel:
        client = Client(channel, before)
        source = await client.upload(packed_folder)
        assert (await client.create_job(source)).spec.policy == pb.QualityPolicy(max_kl=0.25)
        await client.create_job(source, job_id="explicit", policy=pb.QualityPolicy(max_kl=0.25))
    after = dataclasses.replace(settings, policy_max_kl=0.5, policy_min_agreement=0.75)
    async with compressor(after) as host, edge_channel(f"127.0.0.1:{host.port}") as channel:
        client = Client(channel, after)
        again = await client.create_job(source)  # the same request: still the same job
        assert again.spec.policy == pb.QualityPolicy(max_kl=0.25)
        assert (await client.create_job(source, policy=pb.QualityPolicy())).spec == again.spec
        other = await client.refused(client.create_job(source, job_id="explicit"))
        assert isinstance(other, AlreadyExistsError)
        new = await client.create_job(source, job_id="new")
        assert new.spec.policy == pb.QualityPolicy(max_kl=0.5, min_agreement=0.75)


def test_it_is_set_as_other_settings_are(settings: Settings) -> None:
    environ = {"DELTASERVE_COMPRESSOR_POLICY_MIN_AGREEMENT": "0.9", "DELTASERVE_COMPRESSOR_POLICY_MAX_KL": ""}
    flags = ["--base", str(settings.base), "--store", settings.store, "--policy-max-bits-per-param", "2.5"]
    assert load(Settings, "compressor", flags, environ).policy == {"min_agreement": 0.9, "max_bits_per_param": 2.5}
    assert settings.policy == {}


@pytest.mark.parametrize(
    "changes",
    [{"policy_max_kl": -1.0}, {"policy_min_agreement": 1.5}, {"policy_max_accuracy_drop": math.nan},
     {"policy_max_bits_per_param": math.inf}],
)  # fmt: skip
def test_limits_out_of_range(settings: Settings, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(settings, **changes)
