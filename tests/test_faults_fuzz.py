"""Made-up input by the ten thousand: it is read or refused, and does nothing else. Each test is seeded, so that a case is found again."""
import io
import json
import pickle
import shutil
import time
from pathlib import Path, PureWindowsPath
from random import Random
from types import SimpleNamespace

import pytest
import torch
from fuzzing import FLOATS, NUMBERS, TEXTS, Fuzz, Mutator
from models import diffusers_unet, generator

from hypernetworks.captions import Captions, caption_from_name, decode_text, find_caption
from hypernetworks.checkpoint import Row, RunFolder
from hypernetworks.config import TrainingConfig, options, plain, read
from hypernetworks.config_files import read_config
from hypernetworks.errors import FileRefused, NameRefused
from hypernetworks.files import check_name, describe, load, load_optimizer
from hypernetworks.generator_files import describe_generator, is_generator, load_generator, save_generator
from hypernetworks.headers import read_metadata
from hypernetworks.learner import check_options
from hypernetworks.library import facts_of, settings
from hypernetworks.prompt import extract, tag
from hypernetworks.uploads import safe_stem

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore")]
GOLDEN = Path(__file__).parent / "golden"
CASES = 10_000


@pytest.fixture
def fuzz(fault_counts, tmp_path):
    one = Fuzz(fault_counts, tmp_path)
    yield one
    one.end()


def warmed_up(read, seeds):
    """What is imported at the first use is no case's doing."""
    for seed in seeds:
        read(seed)


# --- files --------------------------------------------------------------------------------------------------------------------------

WORDS = [b'"__metadata__"', b'"data_offsets":[0,0]', b'"dtype":"F64"', b'"shape":[4294967296,4294967296]', b"null", b"\\u0000", b"[[", b"}}", bytes(8), b"\xff" * 8]


def safetensors_parts(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def safetensors_file(entries, weights):
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + weights


def changed_header(mutator, data):
    """Its header says something else; half of the time something else in what the metadata describes."""
    entries, weights = safetensors_parts(data)
    if mutator.random.random() < 0.5:
        metadata = entries["__metadata__"]
        name = mutator.random.choice([name for name in metadata if metadata[name][:1] in "[{"] or list(metadata))
        try:
            metadata[name] = json.dumps(mutator.changed(json.loads(metadata[name])))
        except ValueError:
            metadata[name] = mutator.text([metadata[name]])
    else:
        entries = mutator.changed(entries, ("__metadata__", "pairs", "structure", "format", "kind"))
    return safetensors_file(entries, weights)


def test_safetensors_files(fuzz, tmp_path):
    made = tmp_path / "made.safetensors"
    save_generator(generator(diffusers_unet(), embedding_dim=8, hidden_dim=8, rank=1, basis_size=2, auxiliary=(4, 3), tasks=("a", "b")), made)
    seeds = [*((GOLDEN / f"own_by_{kind}.safetensors").read_bytes() for kind in ("width", "layer")), made.read_bytes()]
    learned, mutator, path = list(seeds), Mutator(1), tmp_path / "a.safetensors"
    readers = (load, describe, load_generator, describe_generator, is_generator, read_metadata, facts_of)

    def read(reader):
        found = reader(path)
        if isinstance(found, dict):
            settings(found)
        return found

    for seed in seeds:
        path.write_bytes(seed)
        for reader in readers:
            try:
                read(reader)
            except FileRefused:
                pass
    for number in range(CASES):
        data = mutator.data(learned, WORDS) if number % 2 else changed_header(mutator, mutator.random.choice(seeds))
        path.write_bytes(data)
        reader = readers[number // 2 % len(readers)]
        fuzz.case(("safetensors", number, reader.__name__), read, reader, size=len(data))
        fuzz.learn(learned, data)


OPCODES = [
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\nbytearray\n", b"\x8c\x05posix\x8c\x06system\x93", b"(S'touch hacked'\ntR", b"\x82\x01", b"ios\nsystem\n",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"R", b"b", b"\x81", b"\x92", b"0", b"2", b"Q", b"(", b"t", b"u",
    b"\x8a\xff" + b"\xff" * 255, b"\x8b" + b"\xff" * 4, b"X\xff\xff\xff\x7f", b"T\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"r\xff\xff\xff\x7f", b"h\x00", b"\x94", b".", b"\x95" + b"\xff" * 8,
]  # fmt: skip


def changed_contents(mutator, contents, form):
    buffer = io.BytesIO()
    torch.save(mutator.changed(contents, ("layer_structure", "activation_func", "dropout_structure", "linear.0.weight")), buffer, _use_new_zipfile_serialization=form)
    return buffer.getvalue()


def test_pt_files(fuzz, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where what asks to `touch hacked` would do it
    names = [path for path in sorted(GOLDEN.glob("*.pt")) if path.stat().st_size < 50_000]
    seeds = [path.read_bytes() for path in [*names, GOLDEN / "a1111.pt.optim"]]
    contents = [torch.load(path, weights_only=True) for path in names]
    mutator, path = Mutator(2), tmp_path / "a.pt"
    for one in contents[:3]:
        zipped = io.BytesIO()
        torch.save(one, zipped)
        seeds.append(zipped.getvalue())

    def read_optimizer():
        shutil.copy(path, tmp_path / "b.pt.optim")
        return load_optimizer(tmp_path / "b.pt")

    shutil.copy(names[0], tmp_path / "b.pt")
    readers = (lambda: load(path), lambda: load(path), lambda: describe(path), read_optimizer)
    warmed_up(lambda data: (path.write_bytes(data), read_optimizer()), seeds)
    for number in range(CASES):
        if number % 3:
            data = mutator.data(seeds, OPCODES)
        else:
            data = changed_contents(mutator, mutator.random.choice(contents), bool(number % 2))
        path.write_bytes(data)
        fuzz.case(("pt", number), readers[number % 4], size=len(data))
        fuzz.learn(seeds, data)
    assert not list(tmp_path.rglob("hacked*"))


def test_run_folders(fuzz, tmp_path):
    run = RunFolder(tmp_path, "a")
    run.begin({"options": {"name": "a"}}, 0)
    for step in range(1, 30):
        run.add_row(Row(step, 0.5 / step, 0.25 if step % 5 else None, 1e-3))
    weight = torch.arange(6.0)
    run.save_state({"step": 29, "structure": {"widths": {}}, "weights": {"a": weight}, "optimizer": {"state": {0: {"exp_avg": weight}}, "param_groups": []}})
    seeds = {path: path.read_bytes() for path in (run.state_path, run.path / "config.json", run.path / "loss.csv")}
    readers = {"state.pt": run.load_state, "config.json": run.about, "loss.csv": run.rows}
    learned, mutator = {path: [data] for path, data in seeds.items()}, Mutator(3)
    warmed_up(lambda read: read(), readers.values())
    for number in range(CASES):
        path = list(seeds)[number % 3]
        data = mutator.data(learned[path], OPCODES if path.name == "state.pt" else WORDS)
        path.write_bytes(data)
        found = fuzz.case((path.name, number), readers[path.name], size=len(data))
        fuzz.learn(learned[path], data)
        if path.name == "state.pt" and found is not None:
            fuzz.check((path.name, number), type(found["step"]) is int and {"weights", "optimizer", "structure"} <= found.keys())
        elif path.name == "loss.csv" and found is not None:
            fuzz.check((path.name, number), all(type(row.step) is int for row in found))
        path.write_bytes(seeds[path])


# --- text ---------------------------------------------------------------------------------------------------------------------------

TAGS = [
    "a star <hypernet:ink>", "<hypernet:ink:0.8> a <hypernet:oil:1:0.5:k=2:start=0.2:end=0.9:uncond=0>", "<hypernet:maker:text=a%3A star:blend=0.3:ref2=0123456789>",
    "<HyperNet : ink : in=0.1 : mid=-2 : out=1e3 >", "<lora:x:1> (a:1.2) [b|c] <hypernet:a/b:1>", "<hypernet:maker:task=up:task2=down>",
]  # fmt: skip


def test_tags(fuzz, tmp_path):
    seeds, mutator, words = list(TAGS), Mutator(4), ("<hypernet:", ">", ":", "=", "k=", "text=", "ref=", "uncond=", "nan", "inf", "1e999", "１", "%00", "%zz")
    for number in range(CASES):
        text = mutator.text(seeds, words)
        problems = []
        found = fuzz.case(("tag", number, text[:200]), extract, text, problems if number % 2 else None)
        fuzz.learn(seeds, text)
        for active in found[1] if found else ():
            written = fuzz.case(("written tag", number), tag, active)
            fuzz.check(("tag", number, text[:200], written), written is None or extract(written) == ("", [active]))


def test_captions(fuzz, tmp_path):
    seeds = ["a red star, on white", "tag one, tag_two, (tag three:1.2)", "00012-a_red_star (2)", "IMG_20230101_120000", "[name] style, [filewords]", "Screenshot 2023-01-01 at 12.00.00"]
    encoded = [text.encode(code) for text in [*seeds, "é, 星, 𝓪"] for code in ("utf-8", "utf-8-sig", "utf-16")]
    mutator, path = Mutator(5), tmp_path / "a.txt"
    find_caption(Path("a.png"), None)
    for number in range(CASES):
        if number % 3 == 0:
            data = mutator.data(encoded, [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n" * 50])
            path.write_bytes(data)
            found = fuzz.case(("caption file", number), find_caption, Path("a.png"), path, size=len(data))
            fuzz.learn(encoded, data)
            fuzz.check(("caption file", number), found and (found.caption is None or found.caption == " ".join(found.caption.split())))
            fuzz.case(("bytes", number), decode_text, data)
        elif number % 3 == 1:
            name = mutator.text(seeds)
            found = fuzz.case(("file name", number, name[:200]), caption_from_name, name)
            fuzz.learn(seeds, name)
            fuzz.check(("file name", number, name[:200]), found is None or bool(found.strip()))
        else:
            about = dict(shuffle_tags=True, tag_dropout=mutator.random.random(), caption_dropout=0.1, keep_tags=mutator.random.choice((0, 1, 10**6)))
            writer = Captions(mutator.text(seeds), mutator.text(seeds), mutator.text(seeds), **about)
            picture = SimpleNamespace(caption=mutator.text(seeds))
            found = fuzz.case(("caption", number), writer.write, picture, Random(number))
            fuzz.check(("caption", number), isinstance(found, str) and found == writer.write(picture, Random(number)))


CONFIGURATION = """name = "ink"
dataset = "pictures"
max_steps = 300
learning_rate = "5e-4:200, 1e-4:1000, 1e-5"
rate_schedule = "cosine"
layer_structure = [1, 2.0, 1]
target_layers = ["attn2"]
optimizer = "AdamW"
optimizer_arguments = "betas=(0.9, 0.99), weight_decay=0.01"
clip_schedule = "10:100, 1"
per_layer = true
noise_offset = 5e-2
loss_function = ""
preview_prompts = '''
a star
a heart'''
"""


def test_configurations(fuzz, tmp_path):
    known, mutator = list(options(TrainingConfig)), Mutator(6)
    words = (*known, "nan", "inf", "[[", "]]", "[a]\n", "'''", '"""', " = ", "\n", "os.system", "__import__('os').system('id')", "1e999", "auto*0.5", "1979-05-27T07:32:00Z", "0x1F")
    values = {name: option.default for name, option in options(TrainingConfig).items()}
    seeds = [CONFIGURATION, CONFIGURATION.replace("AdamW", "schedulefree.AdamWScheduleFree"), "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())]
    files = [tmp_path / "a.toml", tmp_path / "a.json"]

    def read_file(path):
        config = read(TrainingConfig, read_config(path))
        check_options(config, torch.device("cpu"))
        return config

    for path, text in zip(files, (CONFIGURATION, json.dumps(values)), strict=True):
        path.write_text(text)
        warmed_up(read_file, [path])
    for number in range(CASES):
        path = files[number % 2]
        text = mutator.text(seeds, words) if path.suffix == ".toml" else json.dumps(mutator.changed(values, known))
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        config = fuzz.case(("configuration", number), read_file, path)
        if path.suffix == ".toml":
            fuzz.learn(seeds, text)
        if config is not None:
            fuzz.check(("configuration", number), read(TrainingConfig, plain(config)) == config)


PARTS = [*TEXTS, *map(str, NUMBERS), *map(str, FLOATS), "ink", "a", "B", ".", " ", "-", "_", "con", "PRN", "aux.", "LPT9", "COM0", "CONIN$", "／", "＼", "：", "．", "ｃｏｎ", "\u2215", "\uff0e\uff0e", "é", "\u0300", "\x7f"]


def leads_nowhere_else(name):
    """Whether a name is one plain part of a path on every system, and none that Windows keeps for itself."""
    device = name.split(".")[0].rstrip(" ").upper()
    return (
        name not in ("", ".", "..") and PureWindowsPath(name).name == name and not set(name) & set('/\\:*?"<>|') and min(map(ord, name)) >= 32
        and not name.endswith((".", " ")) and device not in {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
    )  # fmt: skip


def test_names(fuzz, tmp_path):
    mutator = Mutator(7)
    for number in range(CASES):
        name = "".join(mutator.random.choice(PARTS) for _ in range(mutator.random.choice((1, 2, 3, 5))))[:300]
        found = fuzz.case(("name", number, name), check_name, name, refusals=(NameRefused,))
        fuzz.check(("name", number, name), found is None or (found == name and leads_nowhere_else(name) and (tmp_path / f"{name}.pt").parent == tmp_path))
        stem = fuzz.case(("stem", number, name), safe_stem, name)
        fuzz.check(("stem", number, name, stem), leads_nowhere_else(stem + ".png"))
        if number % 10 == 0 and found:
            (tmp_path / f"{found}.safetensors").touch()
            (tmp_path / f"{stem}.png").touch()


# --- the watch itself ---------------------------------------------------------------------------------------------------------------


def test_what_goes_a_new_way_is_built_upon(tmp_path):
    """Three characters in a row are found one by one, and never at once."""

    def tried(guided):
        fuzz, seeds, mutator = Fuzz(SimpleNamespace(fuzzed=0, escaped=0), tmp_path, Path(__file__)), ["a"], Mutator(9)
        for _ in range(CASES):
            text = mutator.text(seeds)
            fuzz.case("password", password, text)
            if guided:
                fuzz.learn(seeds, text)
        return fuzz.escaped

    def password(text):
        if text[:1] == "q":
            if text[1:2] == "r":
                if text[2:3] == "s":
                    raise ValueError("It was found.")

    assert tried(guided=True) and not tried(guided=False)


def test_what_is_watched_for_would_be_seen(tmp_path, fault_counts):
    counts = SimpleNamespace(fuzzed=0, escaped=0)
    fuzz = Fuzz(counts, tmp_path / "inside")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tmp_path)
    (tmp_path / "outside").write_text("x")
    kept = []

    def dawdle():
        end = time.process_time() + 2.1
        while time.process_time() < end:
            pass

    deeds = {
        "runs": lambda: pickle.loads(b"cos\nsystem\n(S'true'\ntR."), "executes": lambda: exec("1"), "reads": lambda: (tmp_path / "outside").read_text(),
        "climbs": lambda: (tmp_path / "inside" / ".." / "outside").read_text(), "follows": lambda: (tmp_path / "inside" / "link" / "outside").read_text(),
        "writes": lambda: (tmp_path / "new").write_text("x"), "lists": lambda: list(tmp_path.iterdir()), "fails": lambda: 1 / 0,
        "dawdles": dawdle, "fills": lambda: kept.append(b"x" * (64 << 20)),
    }  # fmt: skip
    for name, deed in deeds.items():
        fuzz.case(name, deed, size=0)
    fuzz.case("nothing", lambda: (tmp_path / "inside" / "file").write_text("x"), size=0)
    assert [name for name, _ in fuzz.escaped] == list(deeds) and counts.escaped == len(deeds)
