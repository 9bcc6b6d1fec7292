"""Small files that would become large in memory: each is refused within two seconds and twice its size."""
import io
import json
import os
import pickle
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from fuzzing import Fuzz
from PIL import Image

from hypernetworks.captions import find_caption
from hypernetworks.checkpoint import RunFolder
from hypernetworks.config import TrainingConfig, read
from hypernetworks.config_files import LARGEST, read_config
from hypernetworks.dataset import open_picture
from hypernetworks.errors import BodyRefused, HypernetworkError
from hypernetworks.files import describe, load
from hypernetworks.generator_files import describe_generator, is_generator, load_generator
from hypernetworks.headers import change_metadata, read_metadata
from hypernetworks.host import Folders
from hypernetworks.library import facts_of
from hypernetworks.prompt import LONGEST_CONDITION, ActiveNetwork, ConditionSource, extract, tag
from hypernetworks.received import JSON, keep, keep_reference
from hypernetworks.uploads import store, unpack

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured as Linux tells it")]
MB = 1 << 20


@pytest.fixture
def fuzz(fault_counts, tmp_path):
    one = Fuzz(fault_counts, tmp_path)
    yield one
    one.end()


def refused(fuzz, what, read, path, kind=HypernetworkError):
    """It is refused: whatever it gives instead escapes."""
    fuzz.check(what, fuzz.case(what, read, path, size=path.stat().st_size, refusals=(kind,)) is None, "was read")


def with_header(path, text, weights=b""):
    path.write_bytes(len(text).to_bytes(8, "little") + text + weights)


def own_metadata(**changes):
    about = {"format": "hypernetworks", "format_version": "1", "kind": "residual", "pairs": "[[6, 6]]", "structure": "{}", "architecture": "{}", "layers": "[]", "step": "1"}
    return about | changes


def headers():
    tiny = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return {
        "a million tensors": b"{%s}" % b",".join(tiny % number for number in range(1_000_000)),
        "as many as fit": b"{%s}" % b",".join(tiny % number for number in range(35_000)),
        "one tensor of a million dimensions": b'{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,0]}}' % b",".join([b"0"] * 900_000),
        "lists within lists": b"[" * 50_000_000,
        "a long name": b'{"%s":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' % (b"a" * 1_900_000 + "𝓪".encode()),
        **{
            f"{kind} in its {name}": json.dumps({"__metadata__": own_metadata(kind=kind, **{name: text}), "a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode()
            for kind in ("residual", "generator") for name in ("pairs", "structure", "architecture", "layers")
            for text in ("[" + "[]," * 600_000 + "[]]", "{" + ",".join(f'"{number}":{{}}' for number in range(90_000)) + "}")
        },
    }  # fmt: skip


@pytest.mark.parametrize("what", headers())
def test_headers(fuzz, tmp_path, what):
    path = tmp_path / "a.safetensors"
    with_header(path, headers()[what])
    for reader in (load, describe, load_generator, describe_generator, facts_of):
        refused(fuzz, (what, reader.__name__), reader, path)
    for reader in (read_metadata, is_generator):
        fuzz.case((what, reader.__name__), reader, path, size=path.stat().st_size)
    refused(fuzz, (what, "change"), lambda path: change_metadata(path, {"description": "x" * 10}) if path.stat().st_size > 3 * MB else None, path)


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def as_zip(path, pickled):
    zipped(path, {"a/data.pkl": pickled, "a/version": b"3"}, zipfile.ZIP_STORED)


def overlapping(path, count=10_000):
    """Fifield 2019: members that share their bytes."""
    zipped(path, {"a/data.pkl": pickle.dumps({"a": "x" * 100_000}, 2)}, zipfile.ZIP_STORED)
    data = path.read_bytes()
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    record = data[start:end]
    contents = b"".join(record.replace(b"a/data.pkl", b"%05d/data_" % number) for number in range(count)) + record
    path.write_bytes(data[:start] + contents + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count + 1, count + 1, len(contents), start, 0))


def many_members(path):
    contents = (b"PK\1\2" + bytes(42)) * 500_000
    path.write_bytes(contents + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(contents), 0, 0))


def endless(path, operation, count=3_000_000, begin=b"\x80\x04N"):
    path.write_bytes(begin + operation * count + b".")


def claims(path):
    """A weight that says that it has a hundred billion values."""
    torch.save({6: ({"linear.0.weight": torch.zeros(6, 6)},) * 2}, path, _use_new_zipfile_serialization=False, pickle_protocol=2)
    data = path.read_bytes()
    place = data.index(b"K$", data.index(b"FloatStorage"))  # how many values the storage has: 36
    path.write_bytes(data[:place] + b"\x8a\x08" + (10**11).to_bytes(8, "little") + data[place + 2 :])


PICKLES = {
    **{f"{what}, in a zip": lambda path, data=data: as_zip(path, b"\x80\x04N" + data * 3_000_000 + b".") for what, data in (("lists", b"]"), ("remembering", b"\x94"))},
    "a long text, in a zip": lambda path: as_zip(path, b"\x80\x02X" + struct.pack("<I", 30 * MB + 4) + b"x" * (30 * MB) + "𝓪".encode() + b"."),
    "bytes of any size, in a zip": lambda path: as_zip(path, b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R."),
    "zeros in a zip": lambda path: zipped(path, {"a/data.pkl": bytes(200 * MB), "a/version": b"3"}),
    "text in a zip": lambda path: zipped(path, {"a/data.pkl": pickle.dumps({"a": "x" * 100 * MB}, 2), "a/version": b"3"}),
    "weights in a zip": lambda path: zipped(path, {"a/data.pkl": pickle.dumps({}, 2), "a/data/0": bytes(200 * MB), "a/version": b"3"}),
    "members that share their bytes": overlapping, "half a million members": many_members, "a weight of a hundred billion": claims,
    "lists": lambda path: endless(path, b"]"), "remembering": lambda path: endless(path, b"\x94"), "dictionaries": lambda path: endless(path, b"}"),
    "marks": lambda path: endless(path, b"("), "tuples": lambda path: endless(path, b")"), "numbers": lambda path: endless(path, b"M\xff\xff"),
    "a long text with a wide letter": lambda path: path.write_bytes(b"\x80\x02X" + struct.pack("<I", 30 * MB + 4) + b"x" * (30 * MB) + "𝓪".encode() + b"."),
    "a long number": lambda path: path.write_bytes(b"\x80\x02\x8b" + struct.pack("<i", 20 * MB) + b"\x7f" * (20 * MB) + b"."),
    "a long number in digits": lambda path: path.write_bytes(b"I" + b"7" * (5 * MB) + b"\n."),
    "a text that claims four gigabytes": lambda path: path.write_bytes(b"\x80\x02X\xff\xff\xff\xff" + b"x" * MB),
    "bytes that claim all there are": lambda path: path.write_bytes(b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f" + b"x" * MB),
    "a frame without end": lambda path: path.write_bytes(b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f" + b"N."),
}  # fmt: skip


@pytest.mark.parametrize("what", PICKLES)
def test_pickles(fuzz, tmp_path, what):
    path, run = tmp_path / "a.pt", RunFolder(tmp_path, "run")
    PICKLES[what](path)
    for reader in (load, describe):
        refused(fuzz, (what, reader.__name__), reader, path)
    run.path.mkdir()
    os.link(path, run.state_path)
    refused(fuzz, (what, "state"), lambda path: run.load_state(), path)


def test_archives_of_pictures(fuzz, tmp_path):
    path = tmp_path / "a.zip"
    for make in (
        lambda path: zipped(path, {"a.png": bytes(300 * MB)}), lambda path: zipped(path, {f"{number}.png": bytes(10 * MB) for number in range(30)}),
        lambda path: zipped(path, {"a.txt": b"x" * 300 * MB, "a.png": b"x"}), many_members, overlapping,
    ):  # fmt: skip
        make(path)
        refused(fuzz, make, lambda path: unpack(path, tmp_path / "into"), path)
        refused(fuzz, make, lambda path: store([path], tmp_path / "into"), path)
        assert not list((tmp_path / "into").glob("*")) if (tmp_path / "into").exists() else True


def test_pictures_of_too_many_pixels(fuzz, tmp_path):
    path = tmp_path / "a.png"
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">2I", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    refused(fuzz, "pixels", open_picture, path)


def test_texts(fuzz, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"")
    os.truncate(path, 1 << 40)
    found = fuzz.case("a caption of a terabyte", find_caption, Path("a.png"), path, size=0)
    assert found.caption is None and "longer than" in found.complaint
    path = path.rename(tmp_path / "a.toml")
    refused(fuzz, "a configuration of a terabyte", read_config, path)
    path.write_text("a = [" + "[]," * 85_000 + "]")
    assert path.stat().st_size <= LARGEST
    refused(fuzz, "a configuration of lists", lambda path: read(TrainingConfig, read_config(path)), path)
    for number, part in enumerate(("a.", '"a".', "'a' . ", '"\\"".', "é\t.")):
        for text in (part * (LARGEST // 8) + "a = 1", "[" + part * (LARGEST // 8) + "a]", "x = {b = \"\"\" \"\"\"\", " + part * (LARGEST // 8) + "a = 1}"):
            path.write_text(text, encoding="utf-8")
            assert path.stat().st_size <= LARGEST
            refused(fuzz, ("a name of many parts", number, text[:20]), read_config, path)
    run = RunFolder(tmp_path, "run")
    run.path.mkdir()
    (run.path / "config.json").write_text("[" * 5_000_000)
    assert fuzz.case("about", run.about, size=5_000_000) == {}
    (run.path / "loss.csv").write_text("," * 20_000_000 + "\n")
    assert fuzz.case("rows", run.rows, size=20_000_000) == []


@pytest.mark.parametrize("part", [" ", "\n ", "<", "%", "a ", ":"])
def test_conditions(fuzz, part):
    text = "a" + part * (LONGEST_CONDITION // len(part) - 2) + "b"
    active = ActiveNetwork("a", condition=ConditionSource("text", text))
    assert extract(fuzz.case("a tag", tag, active)) == ("", [active])
    assert fuzz.case("a longer one", ConditionSource, "text", text * 2) is None


def test_what_is_sent(fuzz, tmp_path):
    folders, body = Folders.below(tmp_path), tmp_path / "body"
    for text in ('{"files": [' + "[]," * 10_000_000 + "[]]}", '{"files": ' + "[" * 10_000_000, '{"files": {' + '"":{},' * 5_000_000 + '"":{}}}'):
        body.write_text(text)
        refused(fuzz, text[:20], lambda path: keep(JSON, path, "a", folders), body, BodyRefused)
    text = body.read_text()
    assert fuzz.case("a reference", keep_reference, text, folders, size=len(text), refusals=(BodyRefused,)) is None
