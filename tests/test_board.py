"""TensorBoard: its event files say what the loss table says, and without the package that is said."""
import sys

import pytest

from hypernetworks import board
from hypernetworks.checkpoint import RunFolder
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import ConfigError
from hypernetworks.trainer import HypernetworkTrainer

QUICK = dict(
    name="quick", dataset=str(PICTURES / "striped"), max_steps=2, batch_size=1, preview_every=2, preview_steps=1, preview_prompts="a star",
    validation_every=2, checkpoint_every=0, per_layer=False, target_layers=("attn2",), resolution=64, tensorboard=True,
)  # fmt: skip


def test_event_files_hold_the_table_and_the_previews_and_a_later_run_goes_on(host):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(host.folders.runs, "quick")
    for steps in (2, 3):
        list(HypernetworkTrainer(config=QUICK | {"max_steps": steps}).run(host=host, resume=steps == 3))
        found = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
        found.Reload()
        for name, tag in board.TAGS.items():
            wanted = [(row.step, pytest.approx(getattr(row, name))) for row in folder.rows() if getattr(row, name) is not None]
            assert [(event.step, event.value) for event in found.Scalars(tag)] == wanted, name
        drawn = [event.step for event in found.Images("preview 1")]
        assert drawn == ([0, 2] if steps == 2 else [0, 2, 3])


def test_without_the_package_its_install_command_is_said_first(host, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        next(HypernetworkTrainer(config=QUICK).run(host=host))
