"""docs/comparison.md names options and tests; all of them exist."""
import re
from pathlib import Path

from hypernetworks.config import TrainingConfig, options

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "comparison.md").read_text(encoding="utf-8")


def test_the_tests_that_are_named_exist():
    named = set(re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", TEXT))
    assert len(named) > 40
    for file, function in named:
        assert (TESTS / file).exists(), file
        assert not function or f"def {function}(" in (TESTS / file).read_text(encoding="utf-8"), f"{file}::{function}"


def test_every_option_of_loss_and_noise_is_named():
    for name, option in options(TrainingConfig).items():
        if option.group == "Loss":
            assert f"`{name}`" in TEXT or f"{name}:" in TEXT, name
