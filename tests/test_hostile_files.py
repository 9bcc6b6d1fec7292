"""Files that are damaged, hostile or something else: refused with a sentence, and nothing in them is run."""

import builtins
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hypernetworks.errors import FileRefused, UnsafeFile
from hypernetworks.files import describe, load, load_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:invalid escape sequence", "ignore:Duplicate name")
GOLDEN = Path(__file__).parent / "golden"
everywhere = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


SEEDS = [GOLDEN / name for name in ("own_by_width.safetensors", "a1111.pt", "a1111_prelu.pt", "aria1th_upsample_linear.pt")]


def reads_or_refuses(path):
    for reader in (load, describe):
        try:
            reader(path)
        except FileRefused as error:
            assert str(error).startswith(path.name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.sampled_from(SEEDS), data=st.data())
def test_whatever_bytes_a_damaged_file_holds_it_is_read_or_refused(tmp_path, seed, data):
    content = bytearray(seed.read_bytes())
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)):
        content[place] = byte
    cut = data.draw(st.integers(0, len(content)))
    whole = data.draw(st.booleans())
    path = tmp_path / f"damaged{seed.suffix}"
    path.write_bytes(content if whole else content[:cut])
    reads_or_refuses(path) if path.stat().st_size else None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.sampled_from(SEEDS), place=st.integers(0, 2500), content=st.binary(min_size=1, max_size=12))
def test_damage_in_the_first_bytes_where_headers_and_pickles_stand_is_refused_or_harmless(tmp_path, seed, place, content):
    original = seed.read_bytes()
    path = tmp_path / f"damaged{seed.suffix}"
    path.write_bytes(original[:place] + content + original[place + len(content) :])
    reads_or_refuses(path)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_a_file_cut_short_anywhere_is_refused(tmp_path, seed):
    content = seed.read_bytes()
    path = tmp_path / f"short{seed.suffix}"
    for length in {1, 7, 8, 9, 100, *range(0, len(content), len(content) // 25), len(content) - 1} - {0}:
        path.write_bytes(content[:length])
        with pytest.raises(FileRefused, match="damaged"):
            load(path)


metadata_texts = st.one_of(
    st.text(max_size=30),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["layer_structure", "activation", "layer_norm", "x"]), inner, max_size=4)
        ),
        max_leaves=12,
    ).map(json.dumps),
)


@everywhere
@given(pairs=metadata_texts, structure=metadata_texts, step=metadata_texts)
def test_whatever_a_header_claims_is_read_or_refused(tmp_path, pairs, structure, step):
    path = tmp_path / "odd.safetensors"
    if path.exists():
        path.unlink()
    metadata = {
        "format": "hypernetworks",
        "format_version": "1",
        "kind": "residual",
        "pairs": pairs,
        "structure": structure,
        "step": step,
    }
    save_file({"6.k.linear.0.weight": torch.zeros(6, 6)}, path, metadata)
    reads_or_refuses(path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"pairs": "[" * 100_000}, "does not describe"),
        ({"pairs": "[[6, 6], [8, 8], [9, 9]]"}, "does not describe|is missing"),
        ({"pairs": "[[6, 6], [8, 9]]"}, "that width"),
        ({"pairs": "[[6, 6], [1000000000000, 1000000000000]]"}, "whole number"),
        ({"structure": '{"layer_structure": [1, 3, 1], "activation": "swish"}'}, "18 is expected"),
        ({"structure": '{"layer_structure": [1, 1e300, 1]}'}, "up to"),
        ({"structure": '{"layer_structure": [1, ' + "1, " * 50_000 + "1]}"}, "more layers"),
        ({"structure": '{"layer_structure": [1, ' + "1.000000, " * 40_000 + "1]}"}, "far longer"),
        ({"structure": '{"layer_structure": [1, ' + "1, " * 100_000 + "1]}"}, "more entries"),
        ({"structure": '{"colour": "red"}'}, "colour"),
        ({"step": "many"}, "does not describe"),
        ({"format_version": "2"}, "newer"),
        ({"kind": "generator of another age"}, "newer"),
    ],
)
def test_a_header_that_lies_is_refused_with_a_reason(tmp_path, change, words):
    own = GOLDEN / "own_by_width.safetensors"
    with safe_open(own, framework="np") as file:
        metadata = file.metadata()
    save_file(load_file(own), tmp_path / "a.safetensors", metadata | change)
    with pytest.raises(FileRefused, match=words):
        load(tmp_path / "a.safetensors")


class Asks:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def legacy_contents(**own):
    state = {"linear.0.weight": torch.zeros(6, 6), "linear.0.bias": torch.zeros(6)}
    return {6: (state, dict(state)), "layer_structure": [1, 1]} | own


def wrapped(bad):
    """The bad thing at several depths of an otherwise good file, and alone."""
    return {
        "field": legacy_contents(optional_info=bad),
        "list": legacy_contents(layer_structure=[1, [bad]]),
        "weight": {6: ({"linear.0.weight": bad}, {})},
        "reduce in reduce": legacy_contents(name=Asks(OrderedDict, [("a", bad)])),
        "alone": bad,
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("form", ["zip", "old", "bare pickle"])
@pytest.mark.parametrize("function, name", [(os.system, f"{os.system.__module__}.system"), (builtins.eval, "builtins.eval")])
def test_a_file_that_asks_for_code_is_refused_by_the_name_of_it_and_nothing_runs(tmp_path, protocol, form, function, name):
    marker, path = tmp_path / "it-ran", tmp_path / "hostile.pt"
    order = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w')"
    for contents in wrapped(Asks(function, order)).values():
        if form == "bare pickle":
            path.write_bytes(pickle.dumps(contents, protocol))
        else:
            torch.save(contents, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
        for reader in (load, describe):
            with pytest.raises(UnsafeFile, match=name):
                reader(path)
    shutil.move(path, tmp_path / "a.pt.optim")
    shutil.copy(GOLDEN / "kohya.pt", tmp_path / "a.pt")
    with pytest.raises(UnsafeFile, match=name):
        load_optimizer(tmp_path / "a.pt")
    assert not marker.exists()


def test_names_built_from_remembered_strings_are_found_too(tmp_path):
    path = tmp_path / "hostile.pt"
    # 'posix' and 'system' are stored, thrown away and fetched again before the call
    path.write_bytes(b"\x80\x04\x8c\x05posix\x94\x30\x8c\x06system\x94\x30h\x00h\x01\x93\x8c\x04true\x85R.")
    with pytest.raises(UnsafeFile, match="posix.system"):
        load(path)


ORDER = b"(S'touch it-ran'\ntR."  # the call, of what a pickle has named before
BY_HAND = {
    "reduce": (b"cos\nsystem\n" + ORDER, "os.system"),
    "eval": (b"cbuiltins\neval\n" + ORDER, "builtins.eval"),
    "Python 2's name of a module": (b"c__builtin__\neval\n" + ORDER, "builtins.eval"),
    "a name within a name": (b"\x80\x04\x8c\x02os\x8c\x0epath.os.system\x93" + ORDER, "os.path.os.system"),
    "instance": (b"(S'touch it-ran'\nios\nsystem\n.", "os.system"),
    "object": (b"(cos\nsystem\nS'touch it-ran'\no.", "os.system"),
    "build": (b"ccollections\nOrderedDict\n)R}S'__reduce__'\ncbuiltins\neval\nsb.", "builtins.eval"),
    "new object": (b"\x80\x02csubprocess\nPopen\n(S'true'\nt\x81.", "subprocess.Popen"),
    "new object with keywords": (b"\x80\x04csubprocess\nPopen\n(S'true'\nt}\x92.", "subprocess.Popen"),
    "extension code": (b"\x80\x02\x82\x01" + ORDER, "extension 1"),
    "long extension code": (b"\x80\x02\x84\x01\x02\x00\x00" + ORDER, "extension 513"),
    "behind what is harmless": (b"ccollections\nOrderedDict\n)R0cos\nsystem\n" + ORDER, "os.system"),
    "attribute by attribute": (b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR" + ORDER, "builtins.__import__, builtins.getattr"),
    "through torch": (b"ctorch._utils\n_import_dotted_name\n(S'os.system'\ntR" + ORDER, "torch._utils._import_dotted_name"),
    "from the network": (b"ctorch.hub\nload\n" + ORDER, "torch.hub.load"),
    "a file to be read": (b"cio\nopen\n(S'/etc/passwd'\ntR.", "io.open"),
    "another pickle": (b"cpickle\nloads\n" + ORDER, "pickle.loads"),
    "an end too early": (b"cos\nsystem\n(S'touch it-ran'\ntR", "os.system"),
}


def as_zip(path, pickled, *more):
    """A file as torch writes it, with this pickle."""
    torch.save(legacy_contents(), path)
    with zipfile.ZipFile(path) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, pickled if name.endswith("data.pkl") else data)
        for name, data in more:
            archive.writestr(name, data)


@pytest.mark.parametrize("pickled, name", BY_HAND.values(), ids=BY_HAND)
def test_hostile_pickles_made_by_hand_are_refused_by_name(tmp_path, monkeypatch, pickled, name):
    monkeypatch.chdir(tmp_path)
    for number, content in enumerate((pickled, pickle.dumps(1, 2) + pickled, b"\x80\x02}0" + pickled.removeprefix(b"\x80\x02"), None)):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(content) if content else as_zip(path, pickled)
        for reader in (load, describe):
            with pytest.raises(UnsafeFile, match=rf"reading it would run .*{name}"):
                reader(path)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("how", ["exec", "eval", "call", "call first", "call on what is read"])
@pytest.mark.parametrize("form", ["zip", "bare pickle"])
def test_hostile_pickles_made_with_fickling_are_refused_by_name(tmp_path, monkeypatch, how, form):
    from fickling.fickle import Pickled

    monkeypatch.chdir(tmp_path)
    path, code = tmp_path / "a.pt", "open('it-ran', 'w')"
    torch.save(legacy_contents(), path)
    with zipfile.ZipFile(path) as archive:
        pickled = Pickled.load(archive.read("a/data.pkl"))
    if how == "exec":
        pickled.insert_python_exec(code)
    elif how == "eval":
        pickled.insert_python_eval(code, run_first=False)
    elif how == "call on what is read":
        pickled.insert_function_call_on_unpickled_object(f"def made(read):\n    {code}\n    return read")
    else:
        pickled.insert_python("touch it-ran", module="os", attr="system", run_first=how == "call first")
    as_zip(path, pickled.dumps()) if form == "zip" else path.write_bytes(pickled.dumps())
    for reader in (load, describe):
        with pytest.raises(UnsafeFile, match="os.system" if how in ("call", "call first") else r"builtins\.(exec|eval)"):
            reader(path)
    assert not (tmp_path / "it-ran").exists()


def test_archives_that_hide_a_second_pickle_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(legacy_contents(), tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        harmless = archive.read("good/data.pkl")
    hostile = b"cos\nsystem\n" + ORDER
    path = tmp_path / "a.pt"
    for more in ((("other/data.pkl", hostile),), (("a/data.pkl", hostile),), (("data.pkl", hostile),)):
        as_zip(path, harmless, *more)
        with pytest.raises(FileRefused, match="damaged"):
            load(path)
    with tarfile.open(path, "w") as archive:  # torch's oldest serialization
        for name, data in (("sys_info", harmless), ("pickle", hostile), ("storages", hostile), ("tensors", hostile)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(FileRefused):
        load(path)
    assert not (tmp_path / "it-ran").exists()


def test_what_fills_the_memory_is_refused_before_it_does(tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save(legacy_contents(name=Asks(bytearray, 10**11)), path, pickle_protocol=2)
    with pytest.raises(UnsafeFile, match="builtins.bytearray"):
        load(path)
    huge = torch.zeros(1).expand(10**6, 10**6)
    for form in (True, False):
        torch.save({6: ({"linear.0.weight": huge}, {"linear.0.weight": huge})}, path, _use_new_zipfile_serialization=form)
        with pytest.raises(FileRefused, match="something else than weights"):
            load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**8)
    with pytest.raises(FileRefused, match="damaged"):
        load(path)
    os.truncate(path, 5 * 2**30)
    with pytest.raises(FileRefused, match="larger than any"):
        load(path)


def test_a_pickle_that_would_take_minutes_is_refused_within_seconds(tmp_path):
    path = tmp_path / "slow.pt"
    path.write_bytes(b"\x80\x02" + b"N0" * 5_000_000 + b"N.")
    began = time.process_time()  # other programs do not count
    with pytest.raises(FileRefused, match="damaged"):
        load(path)
    assert time.process_time() - began < 2


def test_texts_nested_without_end_are_not_shown(tmp_path):
    nested = ["ha"]
    for _ in range(60):
        nested = [nested, nested]
    torch.save(legacy_contents(name=nested, step=nested, optional_info=nested), tmp_path / "a.pt")
    network = load(tmp_path / "a.pt")
    assert (network.name, network.step, network.description) == ("a", 0, "")


def some_state(**shapes):
    return {name.replace("_", "."): torch.zeros(shape) for name, shape in shapes.items()}


GOOD = some_state(linear_0_weight=(6, 6), linear_0_bias=6)


@pytest.mark.parametrize(
    "contents, words",
    [
        ({"a.lora_up.weight": torch.zeros(2)}, "LoRA"),
        ({"lora_unet_x.lora_down.weight": torch.zeros(2)}, "LoRA"),
        ({"state_dict": {"model.diffusion_model.x": torch.zeros(2)}}, "checkpoint"),
        ({"model.diffusion_model.x": torch.zeros(2)}, "checkpoint"),
        ({"string_to_param": {"*": torch.zeros(2)}, "name": "x"}, "embedding"),
        ({"optimizer_state_dict": {}, "hash": "x"}, "optimizer"),
        ({}, "no hypernetwork"),
        ([1, 2], "no hypernetwork"),
        (torch.zeros(3), "no hypernetwork"),
        ({"step": 3, "name": "x"}, "no hypernetwork"),
        ({6: 1}, "not a pair"),
        ({6: ({}, {})}, "not a pair"),
        ({6: (GOOD,)}, "not a pair"),
        ({6: ({"linear.0.weight": 1}, GOOD)}, "else than weights"),
        ({6: ({1: torch.zeros(2)}, GOOD)}, "else than weights"),
        ({6: ({"linear.0.weight": torch.zeros(6, 6, dtype=torch.int64), "linear.0.bias": torch.zeros(6)}, GOOD)}, "int64"),
        (
            {6: ({"linear.0.weight": torch.zeros(6, 6).to_sparse(), "linear.0.bias": torch.zeros(6)}, GOOD)},
            "asks|run|else than weights",
        ),
        ({6: ({"head.weight": torch.zeros(6, 6)}, GOOD)}, "no known variant"),
        ({6: (some_state(linear_0_bias=6), GOOD)}, "no linear layer"),
        ({6: (GOOD, some_state(linear_0_weight=(6, 6)))}, "V network for 6.*linear.0.bias is nothing"),
        ({8: (GOOD, GOOD)}, "for width 8 lead from width 6 to width 6"),
        ({6: (GOOD, GOOD), 0: (GOOD, GOOD)}, "whole number"),
        ({6: (GOOD, GOOD), 2**40: (GOOD, GOOD)}, "whole number"),
        ({6: (some_state(linear_0_weight=(9, 6), linear_0_bias=9),) * 2}, "to width 9"),
        ({6: (GOOD, GOOD), "activation_func": "multiheadattention"}, "attention layer"),
        ({6: (GOOD, GOOD), "activation_func": "threshold"}, "arguments"),
        ({6: (GOOD, GOOD), "activation_func": ["relu"]}, "not a name"),
        ({6: (GOOD, GOOD), "dropout_structure": [0, 0, 0]}, "3 numbers for 1 layers"),
        ({6: (GOOD, GOOD), "dropout_structure": [0, float("nan")]}, "below 1"),
        (
            {
                6: (some_state(linear_0_weight=(12, 6), linear_0_bias=12, linear_1_weight=(6, 12), linear_1_bias=6),) * 2,
                "activation_func": "relu",
            },
            "not where",
        ),
        (
            {6: (some_state(linear_0_weight=(12, 6), linear_0_bias=12, linear_5_weight=(6, 12), linear_5_bias=6),) * 2},
            "not where",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_files_are_refused_with_a_sentence(tmp_path, contents, words):
    path = tmp_path / "other.pt"
    torch.save(contents, path)
    with pytest.raises(FileRefused, match=words):
        load(path)


@pytest.mark.parametrize(
    "name, words", [("a.lora_up.weight", "LoRA"), ("model.diffusion_model.x", "checkpoint"), ("x", "no hypernetwork")]
)
def test_other_safetensors_files_are_refused_with_a_sentence(tmp_path, name, words):
    save_file({name: torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FileRefused, match=words):
        load(tmp_path / "other.safetensors")


def test_a_file_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    shutil.copy(GOLDEN / "kohya.pt", tmp_path / "a.pt")
    monkeypatch.setattr(os, "access", lambda path, right: False)
    with pytest.raises(FileRefused, match="its owner"):
        load(tmp_path / "a.pt")


def test_files_that_are_absent_empty_or_of_another_format_are_refused(tmp_path):
    for name, content, words in [
        ("a.pt", None, "no file"),
        ("a.pt", b"", "empty"),
        ("a.safetensors", b"", "empty"),
        ("a.png", b"x", "another format"),
        ("a.pt", b"hello, this is text", "damaged"),
        ("a.safetensors", b"hello, this is text", "damaged"),
        ("a.safetensors", struct.pack("<Q", 2**60), "damaged"),
        ("a.pt", b"PK\x03\x04", "damaged"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(FileRefused, match=words):
            load(tmp_path / name)
        with pytest.raises(FileRefused, match=words):
            describe(tmp_path / name)
    with pytest.raises(FileRefused, match="no file"):
        load(tmp_path)
