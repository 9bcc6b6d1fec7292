"""The metadata of safetensors files, against the safetensors library."""
import os

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hypernetworks.errors import FileRefused
from hypernetworks.headers import change_metadata, read_metadata

TENSORS = {
    "a": torch.arange(5, dtype=torch.float16), "b": torch.randn(3, 2), "c": torch.zeros(0), "d": torch.tensor([True]), "e": torch.randn(7).bfloat16(),
}  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "ink.safetensors"
    save_file(TENSORS, path, {"format": "x", "description": "before"})
    return path


def metadata(path):
    with safetensors.safe_open(path, framework="pt") as opened:
        return opened.metadata()


@given(st.dictionaries(texts, texts))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_metadata_is_what_the_library_reads(tmp_path, entries):
    save_file(TENSORS, tmp_path / "x.safetensors", entries)
    assert (read_metadata(tmp_path / "x.safetensors") or {}) == (metadata(tmp_path / "x.safetensors") or {})


@given(st.dictionaries(texts, texts))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_changed_entries_are_changed_and_nothing_else(tmp_path, changes):
    path = tmp_path / "y.safetensors"
    save_file(TENSORS, path, {"format": "x", "description": "before"})
    change_metadata(path, changes)
    assert metadata(path) == read_metadata(path) == {"format": "x", "description": "before", **changes}
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_a_file_without_metadata_gets_some(tmp_path):
    save_file(TENSORS, tmp_path / "z.safetensors")
    assert read_metadata(tmp_path / "z.safetensors") is None
    change_metadata(tmp_path / "z.safetensors", {"description": "ä"})
    assert metadata(tmp_path / "z.safetensors") == {"description": "ä"}


def test_no_shortened_file_is_taken_for_whole(file):
    data = file.read_bytes()
    for length in [*range(0, len(data), 7), len(data) - 1]:
        file.write_bytes(data[:length])
        assert read_metadata(file) is None
    file.write_bytes(data + b"\0")
    assert read_metadata(file) is None


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_other_bytes_are_no_metadata_and_are_left_as_they_are(tmp_path, data):
    path = tmp_path / "other"
    path.write_bytes(data)
    assert read_metadata(path) is None
    with pytest.raises(FileRefused, match="left as it is"):
        change_metadata(path, {"description": "x"})
    assert path.read_bytes() == data and os.listdir(tmp_path) == ["other"]


def test_metadata_that_is_not_text_is_not_taken(tmp_path):
    header = b'{"__metadata__":{"step":1},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "odd").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    assert read_metadata(tmp_path / "odd") is None
