"""Names of files, and writing that never leaves half a file."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypernetworks.errors import NameRefused, NameTaken, TrainingFailed
from hypernetworks.files import check_name, load, save, write_atomically
from hypernetworks.residual import ResidualHypernetwork


def some_network(step=0):
    network = ResidualHypernetwork({6: 6})
    network.step = step
    return network


# names


@pytest.mark.parametrize("name", ["style", "my style (v2)", "v1.5-final", "スタイル", "é", "a" * 200, "none of it"])
def test_names_that_work_everywhere_are_taken(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name, words",
    [
        ("", "needs a name"),
        ("   ", "needs a name"),
        ("a/b", "contains /"),
        ("a\\b", "contains"),
        ("../a", "contains"),
        ("..", "dot"),
        (".hidden", "dot"),
        ("a.", "dot"),
        ("a ", "space"),
        (" a", "space"),
        ("a:b", "contains :"),
        ("<a>", "contains < >"),
        ('a"b', "contains"),
        ("a|b", "contains"),
        ("a?", "contains"),
        ("a*", "contains"),
        ("a\nb", "invisible"),
        ("a\0b", "invisible"),
        ("a\u202eb", "invisible"),
        ("a\u200bb", "invisible"),
        ("a\ud800", "invisible"),
        ("con", "reserved"),
        ("NUL", "reserved"),
        ("com1.old", "reserved"),
        ("COM¹", "reserved"),
        ("None", "reserved"),
        ("a／b", "contains /"),
        ("a" * 201, "too long"),
        ("é" * 101, "too long"),
    ],
)
def test_names_that_cannot_be_files_or_tags_are_refused_with_the_reason(name, words):
    with pytest.raises(NameRefused, match=words):
        check_name(name)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_a_name_that_is_taken_is_one_plain_part_of_a_path(name):
    try:
        check_name(name)
    except NameRefused:
        return
    assert Path("folder", name).parent == Path("folder") and Path("folder", name).name == name
    assert not set(name) & set('/\\<>:"|?*\n\r\0')


# safe writing


def test_an_existing_file_is_not_overwritten_unless_asked(tmp_path):
    path = save(some_network(step=1), tmp_path / "a.safetensors")
    with pytest.raises(NameTaken, match="a.safetensors"):
        save(some_network(step=2), path)
    assert load(path).step == 1
    save(some_network(step=2), path, overwrite=True)
    assert load(path).step == 2 and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("name", ["..safetensors", "con.safetensors", "a:b.pt", "a.ckpt"])
def test_a_path_with_an_unfit_name_is_not_written(tmp_path, name):
    with pytest.raises(NameRefused):
        save(some_network(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def fill_the_disk(path):
    path.write_bytes(b"half of i")
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"the rest")


def library_error(path):
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "writer",
    [
        pytest.param(fill_the_disk, marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")),
        library_error,
    ],
)
def test_a_full_disk_is_said_and_leaves_the_old_file_as_it_was(tmp_path, writer):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(TrainingFailed, match="full"):
        write_atomically(path, writer)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_after_any_other_error_the_old_file_is_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.pt"
    path.write_bytes(b"old")

    def writer(temporary):
        temporary.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, writer)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_the_new_file_is_whole_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    path, order = tmp_path / "a.bin", []
    replace, sync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("sync"), sync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append((Path(old).read_bytes(), new.exists())), replace(old, new)))
    write_atomically(path, lambda temporary: temporary.write_bytes(b"new"))
    assert order == ["sync", (b"new", False), "sync"] or os.name == "nt"
    assert path.read_bytes() == b"new"


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(TrainingFailed, match="cannot be written .Permission denied"):
        write_atomically(tmp_path / "new" / "a.bin", refuse)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingFailed, match="cannot be written"):
        write_atomically(tmp_path / "file" / "a.bin", lambda path: path.write_bytes(b"x"))
