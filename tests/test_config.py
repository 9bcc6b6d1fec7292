"""Options: declared once, checked by name."""
import pytest

from hypernetworks.config import TrainingConfig, options, plain, read
from hypernetworks.errors import ConfigError


def test_every_option_says_what_it_is_and_accepts_its_default():
    for name, option in options(TrainingConfig).items():
        assert option.label and option.help.endswith((".", "?")) and option.group, name
        assert option.check(option.default) == option.default, name


def test_an_unknown_key_is_refused_by_name_with_the_nearest_one():
    with pytest.raises(ConfigError, match="'learning_rte'.*'learning_rate'"):
        read(TrainingConfig, {"learning_rte": 1})


@pytest.mark.parametrize("name, value", [
    ("max_steps", 0), ("max_steps", 1.5), ("max_steps", "many"), ("loss", "mae"), ("caption_dropout", 1.1),
    ("caption_dropout", float("nan")), ("flip", "maybe"), ("target_layers", ["attn3"]), ("layer_structure", "1,x,1"), ("seed", -1),
])
def test_a_bad_value_is_refused_with_what_the_option_takes(name, value):
    with pytest.raises(ConfigError, match=rf"\({name}\) cannot be .* it takes "):
        read(TrainingConfig, {name: value})


@pytest.mark.parametrize("name, value, said", [
    ("optimizer_arguments", "a=1," * 25_001, "Optimizer arguments (optimizer_arguments) is longer than 100,000 characters."),
    ("layer_structure", [1] * 100_001, "Layer structure (layer_structure) is longer than 100,000 members."),
    ("max_steps", "1" + "0" * 100_000 + "x", None),
    ("target_layers", ["attn" * 25_000], None),
])
def test_what_is_too_long_is_refused_in_a_short_sentence(name, value, said):
    with pytest.raises(ConfigError) as refused:
        read(TrainingConfig, {name: value})
    assert len(str(refused.value)) < 400 and (said is None or str(refused.value) == said)


def test_values_come_back_from_text_as_from_toml():
    asked = dict(layer_structure="1, 1.5, 1", flip="yes", max_steps="20", learning_rate=1e-3, target_layers=["attn2"])
    config = read(TrainingConfig, asked)
    assert (config.layer_structure, config.flip, config.max_steps, config.target_layers) == ((1.0, 1.5, 1.0), True, 20, ("attn2",))
    assert read(TrainingConfig, plain(config)) == config


def test_options_are_worked_out_once_and_cannot_be_changed():
    known = options(TrainingConfig)
    assert options(TrainingConfig) is known
    with pytest.raises(TypeError):
        known["name"] = known["kind"]


def test_plain_holds_only_what_differs_from_the_defaults():
    assert plain(read(TrainingConfig, {"max_steps": 7})) == {"max_steps": 7}
