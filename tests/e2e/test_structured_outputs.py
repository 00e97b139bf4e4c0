"""Outputs that follow JSON Schemas and other grammars, on the real stack: HTTP by the official SDK, gRPC by ours."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from openai import AsyncOpenAI

from tests.e2e.conftest import System

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = "The package is"

SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "count": {"type": "integer", "minimum": 0, "maximum": 999},
            "ok": {"type": "boolean"},
        },
        "required": ["name", "count", "ok"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "minItems": 1,
                "maxItems": 3,
                "items": {"$ref": "#/$defs/item"},
            }
        },
        "required": ["items"],
        "additionalProperties": False,
        "$defs": {
            "item": {
                "type": "object",
                "properties": {
                    "kind": {"enum": ["a", "b", 7, None]},
                    "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]$"},
                },
                "required": ["kind", "code"],
                "additionalProperties": False,
            }
        },
    },
    "union": {
        "anyOf": [
            {"type": "null"},
            {"const": "fixed"},
            {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        ]
    },
    "date": {"type": "object", "properties": {"at": {"type": "string", "format": "date"}}, "required": ["at"],
             "additionalProperties": False},
}  # fmt: skip


def form(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("model", ["base", "conj_fr"])
async def test_outputs_follow_schemas(api: AsyncOpenAI, four_models: list[str], name: str, model: str) -> None:
    schema = SCHEMAS[name]
    done = await api.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "parler"}], response_format=form(schema), n=3,
        temperature=1.5, max_tokens=400,
    )  # fmt: skip
    for choice in done.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content or ""), schema, format_checker=jsonschema.FormatChecker())
    streamed = ""
    async for event in await api.completions.create(
        model=model, prompt="parler", max_tokens=400, stream=True, extra_body={"response_format": form(schema)}
    ):
        streamed += event.choices[0].text
    jsonschema.validate(json.loads(streamed), schema)


async def test_json_objects_regexes_and_free_requests_in_one_batch(api: AsyncOpenAI) -> None:
    async def ask(**options: Any) -> str:
        done = await api.completions.create(model="base", prompt=TEXT, max_tokens=60, seed=3, **options)
        return done.choices[0].text

    alone = await ask()
    object_, number, free = await asyncio.gather(
        ask(extra_body={"response_format": {"type": "json_object"}}),
        ask(extra_body={"response_format": {"type": "regex", "regex": r"-?[0-9]{1,5}\.[0-9]{2}"}}),
        ask(),
    )
    assert object_.startswith("{")
    assert re.fullmatch(r"-?[0-9]{1,5}\.[0-9]{2}", number)
    assert free == alone


async def test_the_sdks_own_parser_of_schemas(api: AsyncOpenAI) -> None:
    from pydantic import BaseModel, Field

    class Answer(BaseModel):
        word: str = Field(max_length=10)
        stars: int = Field(ge=1, le=5)

    done = await api.chat.completions.parse(
        model="base", messages=[{"role": "user", "content": "rate"}], response_format=Answer, max_tokens=200
    )
    parsed = done.choices[0].message.parsed
    assert parsed is not None
    assert 1 <= parsed.stars <= 5


async def test_the_grammar_of_the_sdk_and_the_command(system: System, tmp_path: Path) -> None:
    done = await system.client.complete("base", "a", json_schema=SCHEMAS["flat"], max_tokens=200, n=2)
    for text in done.texts:
        jsonschema.validate(json.loads(text), SCHEMAS["flat"])
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMAS["union"]))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deltaserve.cli", "generate", "base", "a", "--json-schema", str(schema), "--server",
        system.stack.address, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0
    jsonschema.validate(json.loads(out), SCHEMAS["union"])


async def test_what_cannot_be_followed_is_refused_by_name(api: AsyncOpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="uniqueItems") as refused:
            await api.chat.completions.create(
                model="base", messages=[{"role": "user", "content": "a"}], stream=stream,
                response_format=form({"type": "array", "uniqueItems": True}),
            )  # fmt: skip
        assert refused.value.param == "response_format"
