"""Sources with their includes in place."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaserve.errors import InternalError
from deltaserve.ops.kernel_source import KERNELS, SOURCES, kernel_source


def test_every_source_is_known() -> None:
    assert sorted(path.stem for path in SOURCES.glob("*.cu")) == sorted(KERNELS)


@pytest.mark.parametrize("name", KERNELS)
def test_no_local_include_is_left(name: str) -> None:
    source = kernel_source(name)
    assert '#include "' not in source
    assert source.count("mma_bf16(float (&d)[4]") == 1
    assert 'extern "C" __global__ void' in source


def test_lines_are_told_where_they_are_from(tmp_path: Path) -> None:
    (tmp_path / "k.cu").write_text('// one\n#include "a.cuh"\n#include "b.cuh"\nlast\n')
    (tmp_path / "a.cuh").write_text("#pragma once\na\n")
    (tmp_path / "b.cuh").write_text('#pragma once\n#include "a.cuh"\nb\n')
    lines = kernel_source("k", tmp_path).splitlines()
    assert [line for line in lines if line and not line.startswith("#line")] == ["// one", "a", "b", "last"]
    assert lines[lines.index("last") - 1] == '#line 4 "k.cu"'
    assert lines[lines.index("b") - 1] == '#line 3 "b.cuh"'


def test_a_changed_header_changes_the_source(tmp_path: Path) -> None:
    (tmp_path / "k.cu").write_text('#include "a.cuh"\n')
    texts = []
    for text in ("one", "two"):
        (tmp_path / "a.cuh").write_text(text)
        texts.append(kernel_source("k", tmp_path))
    assert texts[0] != texts[1]


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    (tmp_path / "k.cu").write_text('#include "gone.cuh"\n')
    with pytest.raises(InternalError, match=r"gone\.cuh"):
        kernel_source("k", tmp_path)
