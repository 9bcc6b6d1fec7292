"""Presets of the user's own: what is kept, what is refused, and who sees them."""
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypernetworks import config_files
from hypernetworks.cli import _parser, training_config
from hypernetworks.config import TrainingConfig, plain, read
from hypernetworks.config_files import read_config, toml_text
from hypernetworks.errors import ConfigError, NameRefused, NameTaken
from hypernetworks.host import Folders
from hypernetworks.presets import PRESETS
from hypernetworks.user_presets import OWN, UserPresets

CHANGED = {
    "name": "fox", "dataset": "/pictures", "seed": 7, "loss_function": "some.code", "max_steps": 33, "layer_structure": [1.0, 0.5, 1.0],
    "flip": True, "caption_template": 'a "drawing" of\n[filewords]\\', "blocks": ["middle"], "learning_rate": "auto*0.5",
}


@pytest.fixture
def presets(tmp_path):
    return UserPresets(Folders.below(tmp_path))


def test_what_is_saved_comes_back_without_what_belongs_to_one_network(presets):
    config = read(TrainingConfig, CHANGED)
    assert presets.save(" My style ", config) == "My style"
    assert presets.values("my STYLE") == {name: value for name, value in plain(config).items() if name not in OWN}
    assert list(presets.all()) == [*PRESETS, "My style"] and "Mirror pictures on" in presets.all()["My style"].help
    assert read_config(presets.folder / "My style.toml")["max_steps"] == 33  # a file like any configuration


def test_it_is_replaced_only_when_asked_for_and_deleted(presets):
    presets.save("mine", read(TrainingConfig, {"max_steps": 1}))
    with pytest.raises(NameTaken, match="'mine' already"):
        presets.save("MINE", read(TrainingConfig, {"max_steps": 2}))
    presets.save("MINE", read(TrainingConfig, {"max_steps": 3}), overwrite=True)
    assert presets.values("mine") == {"max_steps": 3} and len(list(presets.folder.iterdir())) == 1
    presets.delete("Mine")
    assert list(presets.all()) == list(PRESETS)
    with pytest.raises(ConfigError, match="no preset 'Mine'"):
        presets.delete("Mine")


@pytest.mark.parametrize("name", [*PRESETS, "STYLE "])
def test_those_that_ship_stay_as_they_are(presets, name):
    for act in (lambda: presets.save(name, TrainingConfig(), overwrite=True), lambda: presets.delete(name)):
        with pytest.raises(NameTaken, match="ships"):
            act()
    presets.folder.mkdir(parents=True)
    (presets.folder / "style.toml").write_text("max_steps = 1\n")
    assert presets.values("style") == PRESETS["Style"].values


@pytest.mark.parametrize("name", ["../outside", "a/b", "", "con", "a:b"])
def test_a_name_that_is_no_file_is_refused(presets, name):
    with pytest.raises(NameRefused):
        presets.save(name, TrainingConfig())
    with pytest.raises(ConfigError):
        presets.delete(name)


def test_a_damaged_file_is_left_out_and_said_when_it_is_asked_for(presets):
    presets.save("good", TrainingConfig())
    (presets.folder / "bad.toml").write_text("max_steps = many")
    (presets.folder / "odd.toml").write_text("max_stebs = 3")
    assert list(presets.all()) == [*PRESETS, "good"]
    with pytest.raises(ConfigError, match="bad.toml"):
        presets.values("bad")
    with pytest.raises(ConfigError, match="Did you mean 'max_steps'"):
        presets.values("odd")


def test_the_command_line_starts_from_one(presets, tmp_path):
    presets.save("mine", read(TrainingConfig, {"max_steps": 12, "batch_size": 2}))
    parsed = _parser().parse_args(["train", "--home", str(tmp_path), "--preset", "mine", "--batch-size", "3"])
    assert plain(training_config(parsed)) == {"max_steps": 12, "batch_size": 3}
    parsed.preset = "mein"
    with pytest.raises(ConfigError, match="'mine'"):
        training_config(parsed)


values = st.one_of(st.text(st.characters(codec="utf-8")), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.booleans())


@given(st.dictionaries(st.sampled_from([f"option_{number}" for number in range(9)]), values | st.lists(st.text(st.characters(codec="utf-8")))))
def test_what_is_written_is_toml(values):
    text = toml_text(values)
    found = config_files._from_toml(text)
    assert found == values and {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in values.items()}
    assert config_files._from_lines(text) == values


def test_without_a_reader_of_toml_only_our_own_files_are_read(monkeypatch, tmp_path):
    for name in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "own.toml").write_text(toml_text({"max_steps": 3, "flip": True}))
    assert read_config(tmp_path / "own.toml") == {"max_steps": 3, "flip": True}
    (tmp_path / "other.toml").write_text("[sweep]\nmax_steps = [1, 2] # two\n")
    with pytest.raises(ConfigError, match="pip install tomli"):
        read_config(tmp_path / "other.toml")
