"""The choice between native kernels and the torch reference, and what the doctor says about it."""

from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ConfigError, MissingPackageError
from mm3dad.ops import _native, describe_ops, farthest_point_sample


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    """An installation without kernels."""
    monkeypatch.setattr(_native, "LIBRARIES", {"cpu": tmp_path / "_kernels.so", "cuda": tmp_path / "_kernels_cuda.so"})
    monkeypatch.setattr(_native, "_has_kernels", lambda device: False)
    _native.load_library.cache_clear()
    yield tmp_path
    _native.load_library.cache_clear()


def test_choice(ops_path):
    assert (_native.native_kernels() is not None) == (ops_path == "native")


def test_unknown_choice(monkeypatch):
    monkeypatch.setenv("MM3DAD_OPS", "fast")
    with pytest.raises(ConfigError, match="MM3DAD_OPS must be one of auto, native, reference, got 'fast'"):
        farthest_point_sample(torch.zeros(2, 3), 1)
    assert describe_ops() == ["MM3DAD_OPS must be one of auto, native, reference, got 'fast'"]


def test_missing_library(no_library, monkeypatch):
    monkeypatch.setenv("MM3DAD_OPS", "native")
    with pytest.raises(MissingPackageError, match=r"kernels for cpu are not built.*build them with: python extensions/build_kernels.py"):
        farthest_point_sample(torch.zeros(2, 3), 1)
    assert "are not built" in describe_ops()[0]
    monkeypatch.setenv("MM3DAD_OPS", "auto")
    assert farthest_point_sample(torch.zeros(2, 3), 2).tolist() == [0, 1]
    assert describe_ops()[0].startswith("cpu: torch reference, the native kernels for cpu are not built")


def test_missing_compiler_is_named(no_library, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("MM3DAD_OPS", "auto")
    assert "no C++ compiler is found" in describe_ops()[0]


def test_damaged_library(no_library, monkeypatch):
    (no_library / "_kernels.so").write_bytes(b"not a library")
    monkeypatch.setenv("MM3DAD_OPS", "auto")
    assert "do not load" in describe_ops()[0]
    assert farthest_point_sample(torch.zeros(2, 3), 2).tolist() == [0, 1]


def test_description_names_kernels_or_the_choice(ops_path):
    (line, *_) = describe_ops()
    assert ("because MM3DAD_OPS=reference" in line) == (ops_path == "reference")
    assert ("farthest_point_sample" in line) == (ops_path == "native")


def test_other_devices_have_no_kernels():
    assert _native.load_library("meta") == "there are no native kernels for meta"


def test_an_op_that_the_library_lacks_runs_on_its_reference(monkeypatch):
    if not _native.LIBRARIES["cpu"].exists():
        pytest.skip("the native kernels are not built")
    monkeypatch.setenv("MM3DAD_OPS", "auto")
    assert _native.native_kernels("cpu", "fpfh") is not None
    assert _native.native_kernels("cpu", "an_op_of_next_year") is None
    monkeypatch.setenv("MM3DAD_OPS", "native")
    with pytest.raises(MissingPackageError, match="of an earlier version, without an_op_of_next_year; build them with"):
        _native.native_kernels("cpu", "an_op_of_next_year")
