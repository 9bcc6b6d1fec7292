"""The command line as its user types it."""
import json
from pathlib import Path

import pytest
from models import generator
from PIL import Image

from hypernetworks import files
from hypernetworks.catalog import Catalog
from hypernetworks.checkpoint import RunFolder
from hypernetworks.cli import main, read_config
from hypernetworks.config import TrainingConfig, options
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import ConfigError
from hypernetworks.exporting import export
from hypernetworks.generator_files import save_generator
from hypernetworks.host import Folders
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.prompt import ActiveNetwork, ConditionSource

NATIVE = Path(__file__).parent / "golden"


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_training_and_generating_from_a_configuration_file(capsys, tmp_path):
    config = tmp_path / "quick.toml"
    config.write_text(
        f'name = "quick"\ndataset = {json.dumps(str(PICTURES / "striped"))}\nmax_steps = 50\npreview_every = 0\nlearning_rate = "1e-2"\n'
        'per_layer = false\ntarget_layers = ["attn2"]\n', encoding="utf-8",
    )
    code, out, err = run(capsys, "train", config, "--home", tmp_path, "--max-steps", "2", "--batch-size", "1", "--warmup-steps", "0")
    assert code == 0 and "Finished at step 2" in out, err
    file = tmp_path / "networks" / "quick.safetensors"
    assert files.load(file).keys == (128,) and files.load(file).step == 2

    code, out, err = run(capsys, "train", config, "--home", tmp_path)
    assert code == 2 and "exists already" in err

    ask = ["generate", "a red star <hypernet:quick:-1.5>", "--home", tmp_path, "--steps", "2", "--out", tmp_path / "pictures"]
    code, out, err = run(capsys, *ask)
    assert code == 0, err
    plain = [argument if argument != "a red star <hypernet:quick:-1.5>" else "a red star" for argument in ask]
    code, second, err = run(capsys, *plain)
    assert code == 0 and out != second
    with Image.open(out.strip()) as edited, Image.open(second.strip()) as bare:
        assert edited.size == (128, 128) and edited.tobytes() != bare.tobytes()

    code, out, err = run(capsys, "generate", "a star", "--hypernetwork", "quik", "--home", tmp_path)
    assert code == 2 and "Did you mean quick?" in err

    code, out, err = run(capsys, "inspect", file)
    assert code == 0 and "one pair per width" in out and "1, 0.25, 1" in out and "linear" in out and "preview:" not in out


def test_a_run_that_can_be_gone_on_with_is_not_forgotten_unasked(capsys, tmp_path):
    state = RunFolder(Folders.below(tmp_path).runs, "ink").state_path
    state.parent.mkdir(parents=True)
    state.write_bytes(b"some hours")
    code, _, err = run(capsys, "train", "--dataset", PICTURES / "striped", "--name", "ink", "--home", tmp_path)
    assert code == 2 and "'ink' was left before its end; go on with it (resume), replace it (overwrite)" in err
    assert state.read_bytes() == b"some hours"


def test_what_a_generator_makes_is_exported_and_refined(capsys, tmp_path):
    host = DiffusersHost(None, Folders.below(tmp_path), device="cpu")
    save_generator(generator(host.unet), tmp_path / "networks" / "maker.safetensors")
    picture, home = PICTURES / "striped" / "01.png", ["--home", tmp_path]
    code, out, err = run(capsys, "export", "maker", "--reference", picture, "--task2", "fresco", "--blend", "0.3", "--strength", "0.8", "--name", "fox", *home)
    assert code == 0, err
    (kept,) = (tmp_path / "data" / "references").iterdir()
    active = ActiveNetwork("maker", 0.8, condition=ConditionSource("reference", kept.stem), second=ConditionSource("task", "fresco"), blend=0.3)
    assert Path(out.strip()) == export(host, Catalog(tmp_path / "networks"), active, "fox").path
    code, again, err = run(capsys, "export", f"<hypernet:maker:0.8:ref={kept.stem}:task2=fresco:blend=0.3>", "--name", "fox", *home)
    assert code == 0 and again == out, err

    ends_early = "<hypernet:maker:end=0.5:task=etching>"
    code, out, err = run(capsys, "export", ends_early, *home)
    assert code == 2 and "every sampling step" in err and err.count("\n") == 1
    code, out, err = run(capsys, "export", ends_early, "--snapshot", *home)
    assert code == 0 and "every sampling step" in err and Path(out.strip()).is_file()

    code, out, err = run(capsys, "refine", "maker", "--task", "etching", "--dataset", PICTURES / "striped", "--max-steps", "2", "--name", "fox", *home)
    assert code == 0 and "Finished at step 2" in out and len(list((tmp_path / "loras").glob("fox refined-*"))) == 1, err

    code, out, err = run(capsys, "inspect", tmp_path / "networks" / "maker.safetensors")
    assert code == 0 and "generator" in out and "etching, fresco" in out and "rank:" in out


def test_converting_there_and_back_keeps_every_bit(capsys, tmp_path):
    native = next(NATIVE.glob("native*plain*.pt"))
    assert run(capsys, "convert", native, tmp_path / "a.safetensors")[0] == 0
    assert run(capsys, "convert", tmp_path / "a.safetensors", tmp_path / "b.pt")[0] == 0
    first, last = files.load(native).state_dict(), files.load(tmp_path / "b.pt").state_dict()
    assert first.keys() == last.keys() and all(first[name].equal(last[name]) for name in first)
    code, _, err = run(capsys, "convert", native, tmp_path / "b.pt")
    assert code == 2 and "b.pt" in err
    assert run(capsys, "convert", native, tmp_path / "b.pt", "--overwrite")[0] == 0


def test_every_training_option_is_a_flag(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert all(option.flag in text for option in options(TrainingConfig).values())


@pytest.mark.parametrize("arguments, words", [
    (["train"], "folder of pictures"),
    (["train", "--dataset", "x"], "name"),
    (["train", "--dataset", "nowhere", "--name", "x"], "nowhere"),
    (["train", "missing.toml"], "missing.toml"),
    (["train", "--max-steps", "many"], "max_steps"),
    (["train", "--preset", "stile"], "Style"),
    (["inspect", "missing.pt"], "missing.pt"),
    (["export", "x", "--text", "y"], "There is no hypernetwork 'x'"),
    (["export", "x", "--reference", "missing.png"], "missing.png"),
    (["export", "x", "--text", "y", "--task", "z"], "One condition"),
    (["refine", "x", "--text", "y", "--max-steps", "41"], "from 1 to 40"),
    (["refine", "x", "--text", "y"], "which folder of pictures"),
    (["generate", "x", "--size", "100"], "multiple of 8"),
    (["generate", "x <hypernet:a:b>", "--model", "nowhere"], "nowhere"),
])
def test_a_users_mistake_is_one_sentence_and_no_trace(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setenv("HYPERNETWORKS_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2 and words in err and err.count("\n") == 1


@pytest.mark.parametrize("name, text, words", [
    ("a.toml", "name = ", "TOML"), ("a.json", "{", "JSON"), ("a.json", "[1]", "names and values"), ("a.json", "[" * 100000, "JSON"),
])
def test_a_broken_configuration_is_named(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_config(tmp_path / name)


def test_a_configuration_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a.toml").write_bytes('name = "Ünïcode"'.encode("utf-16"))
    with pytest.raises(ConfigError, match="a.toml"):
        read_config(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_bytes('name = "Ünïcode"'.encode("utf-8-sig"))
    assert read_config(tmp_path / "b.toml") == {"name": "Ünïcode"}
