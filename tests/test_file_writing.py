"""Names of files, and writing that never leaves half a file."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypernetworks import writing
from hypernetworks.catalog import Catalog
from hypernetworks.checkpoint import Row, RunFolder
from hypernetworks.errors import DiskFull, FileRefused, NameRefused, NameTaken, TrainingFailed
from hypernetworks.files import check_name, load, save
from hypernetworks.residual import ResidualHypernetwork
from hypernetworks.writing import append, clear_temporaries, write_atomically


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
        ("", "name is needed"),
        ("   ", "name is needed"),
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
        ("a#2", "contains #"),  # a web UI cuts the prompt there
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


# power cuts and full disks, at each of the moments at which the system is asked for something


class PowerCut(BaseException):
    """Nothing of the program runs after it."""


class Disk:
    """Counts what is asked of the system while files are written; `at` so many it fails with `error`.

    After a power cut there is of a file only half, unless it was synced, and a renaming has happened for good only once the folder was synced.
    """

    def __init__(self, monkeypatch, at, error):
        self.at, self.error, self.count, self.synced, self.renamed = at, error, 0, set(), []
        self.failed, self.replace, self.fsync, self.unlink = False, os.replace, os.fsync, os.unlink
        for name, call in (("fsync", self._fsync), ("replace", self._replace), ("unlink", self._unlink)):
            monkeypatch.setattr(os, name, call)

    def _ask(self):
        if self.count == self.at or (self.failed and isinstance(self.error, PowerCut)):
            self.failed, self.at = True, -1
            raise self.error
        self.count += 1

    def _fsync(self, descriptor):
        self._ask()
        self.fsync(descriptor)
        self.synced.add(os.fstat(descriptor).st_ino)
        self.renamed = [(path, before) for path, before in self.renamed if path.parent.stat().st_ino != os.fstat(descriptor).st_ino]

    def _replace(self, old, new):
        self._ask()
        self.renamed.append((Path(new), Path(new).read_bytes() if Path(new).exists() else None))
        self.replace(old, new)

    def _unlink(self, path, **about):
        if not (self.failed and isinstance(self.error, PowerCut)):
            self.unlink(path, **about)

    def comes_back(self, folder, renamed):
        """What is there when the power is; renamings that were not yet for good have happened or not."""
        for path, before in [] if renamed else self.renamed:
            path.write_bytes(before) if before is not None else self.unlink(path)
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_ino not in self.synced and path.name.startswith("."):
                os.truncate(path, path.stat().st_size // 2)
            elif path.is_file() and renamed and path.stat().st_ino not in self.synced and path in dict(self.renamed):
                os.truncate(path, path.stat().st_size // 2)


def everything(home):
    """A run's save: a network, its state, its loss table."""
    run = RunFolder(home / "runs", "a")
    save(some_network(step=2), home / "networks" / "a.safetensors", overwrite=True)
    run.save_state({"step": 2, "structure": {}, "weights": {}, "optimizer": {}})
    run.forget_after(2)


def what_there_is(home):
    run = RunFolder(home / "runs", "a")
    clear_temporaries(home / "networks")
    run.begin({"options": {}}, 9)
    assert Catalog(home / "networks").names() == ["a"] and [path for path in home.rglob(".*")] == []
    return load(home / "networks" / "a.safetensors").step, run.load_state()["step"], [row.step for row in run.rows()]


@pytest.fixture
def home(tmp_path):
    run = RunFolder(tmp_path / "runs", "a")
    (tmp_path / "networks").mkdir()
    save(some_network(step=1), tmp_path / "networks" / "a.safetensors")
    run.begin({"options": {}}, 0)
    run.save_state({"step": 1, "structure": {}, "weights": {}, "optimizer": {}})
    for step in (1, 2, 3):
        run.add_row(Row(step, 0.5, None, 1e-3))
    return tmp_path


MOMENTS = 10  # each of three files is synced, renamed, and its folder synced; the loss table is synced before the state


@pytest.mark.skipif(os.name == "nt", reason="Windows does not sync folders")
@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("at", range(MOMENTS + 1))
def test_a_power_cut_at_any_moment_of_a_save_leaves_the_old_or_the_new_file_whole(home, monkeypatch, at, renamed):
    disk = Disk(monkeypatch, at, PowerCut())
    try:
        everything(home)
    except PowerCut:
        pass
    assert disk.failed == (at < MOMENTS)
    disk.comes_back(home, renamed)
    monkeypatch.undo()
    network, state, rows = what_there_is(home)
    assert network in (1, 2) and state in (1, 2) and rows in ([1, 2, 3], [1, 2])
    assert network >= state  # in the order in which they are saved
    if at == MOMENTS:
        assert (network, state, rows) == (2, 2, [1, 2])  # what was saved stays


@pytest.mark.parametrize("at", range(MOMENTS))
def test_a_disk_that_is_full_at_any_moment_of_a_save_leaves_every_file_whole_and_nothing_else(home, monkeypatch, at):
    Disk(monkeypatch, at, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(DiskFull, match="full"):
        everything(home)
    monkeypatch.undo()
    assert list(home.rglob(".*")) == []
    network, state, rows = what_there_is(home)
    assert network in (1, 2) and state in (1, 2) and rows in ([1, 2, 3], [1, 2])


def test_without_room_nothing_is_begun_and_the_sentence_says_how_much_is_missing(tmp_path, monkeypatch):
    path = save(some_network(step=1), tmp_path / "a.safetensors")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(1500))
    monkeypatch.setattr(writing, "_write_and_rename", None)
    with pytest.raises(DiskFull, match="a.safetensors cannot be saved: it takes 0.0 MB and the disk of .* has 0.0 MB left. Free some space"):
        save(some_network(step=2), path, overwrite=True)
    state = {"step": 1, "weights": {"a": ResidualHypernetwork({64: 64}).state_dict()}}
    with pytest.raises(DiskFull, match="state.pt"):
        RunFolder(tmp_path, "a").save_state(state)
    assert load(path).step == 1


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    append(path, "1,2\n")
    append(path, "3,4\n")
    assert path.read_bytes() == b"1,2\n3,4\n"
    if Path("/dev/full").exists():
        (tmp_path / "full").symlink_to("/dev/full")
        with pytest.raises(DiskFull, match="full"):
            append(tmp_path / "full", "5,6\n")


def test_lines_that_were_torn_are_left_out_and_the_others_read(tmp_path):
    run = RunFolder(tmp_path, "a")
    run.begin({}, 0)
    run.add_row(Row(1, 0.5, None, 0.125))
    whole = (run.path / "loss.csv").read_bytes()
    for torn in (b"2,0.5,,0.1", b"2,0.5", b"2", bytes(40), b"\xff\xfe,\n", b"2,0.5\n", b"x,0.5,,1\n", b"2,0.5,,0.1,7\n"):
        (run.path / "loss.csv").write_bytes(whole + torn)
        assert run.rows() == [Row(1, 0.5, None, 0.125)], torn
    run.begin({}, 1)
    run.add_row(Row(2, 0.25, None, 0.125))
    assert [row.step for row in run.rows()] == [1, 2] and (run.path / "loss.csv").read_bytes() == whole + b"2,0.25,,0.125\r\n"


def test_only_what_was_being_written_is_cleared(tmp_path):
    mine = [".a.pt.0123abcd.pt", ".a.safetensors.0123abcd.safetensors", ".b.pt.0123abcd.pt"]
    others = [".hidden", ".a.pt", "a.pt", ".a.0123abcdef.pt", "a.pt.0123abcd.pt", ".DS_Store"]
    for name in mine + others:
        (tmp_path / name).touch()
    clear_temporaries(tmp_path, older_than=3600)
    assert len(list(tmp_path.iterdir())) == len(mine + others)
    clear_temporaries(tmp_path, of="a.pt")
    assert {path.name for path in tmp_path.iterdir()} == {*others, *mine[1:]}
    clear_temporaries(tmp_path)
    clear_temporaries(tmp_path / "nowhere")
    assert {path.name for path in tmp_path.iterdir()} == set(others)


@pytest.mark.parametrize("content", [b"", b"PK", b"nothing of the kind", b"\x80\x02N."])
def test_a_state_that_is_damaged_is_refused_with_a_way_out(tmp_path, content):
    run = RunFolder(tmp_path, "a")
    run.begin({}, 0)
    run.state_path.write_bytes(content)
    with pytest.raises(FileRefused, match="The state of the run 'a' cannot be read .*; start the run anew."):
        run.load_state()
    run.save_state({"step": "1"})
    with pytest.raises(FileRefused, match="it is no state of a run"):
        run.load_state()
    (run.path / "config.json").write_bytes(content)
    assert run.about() == {}
