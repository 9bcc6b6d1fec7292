"""Sweeps: which runs come of lists of values, and what their table says."""
import csv
import io
import json

import pytest

from hypernetworks import sweep
from hypernetworks.checkpoint import Row, RunFolder
from hypernetworks.cli import main
from hypernetworks.config import TrainingConfig, read
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import ConfigError, NameRefused, NotThere
from hypernetworks.files import check_name, describe
from hypernetworks.host import Folders

BASE = {"name": "ink", "dataset": "pictures", "max_steps": 7}


def test_every_combination_is_a_run_with_a_telling_name():
    made = sweep.make(BASE, {"learning_rate": ["auto*0.5", "auto"], "batch_size": [2, "4"]})
    assert [run.name for run in made.runs] == [
        "ink - learning_rate autox0.5 - batch_size 2", "ink - learning_rate autox0.5 - batch_size 4",
        "ink - learning_rate auto - batch_size 2", "ink - learning_rate auto - batch_size 4",
    ]  # fmt: skip
    assert made.runs[1] == read(TrainingConfig, {**BASE, "name": made.runs[1].name, "learning_rate": "auto*0.5", "batch_size": 4})
    assert made.values[3] == {"learning_rate": "auto", "batch_size": "4"}


@pytest.mark.parametrize("lists", [
    {"layer_structure": [[1, 0.25, 1], [1, 2, 1]], "flip": [True, False]}, {"learning_rate": ["1e-4:100, 1e-5", "5e-4"]},
    {"preview_prompts": ["a" * 300, "b/../c\n"]}, {"caption_template": ["[name]: <x>|?", "\u202e"]},
])
def test_names_are_names_of_files_whatever_the_values_are(lists):
    made = sweep.make(BASE, lists)
    assert all(check_name(run.name) == run.name and len(run.name) <= sweep.LONGEST_NAME for run in made.runs) and len(made.runs) in (2, 4)


@pytest.mark.parametrize(("lists", "words"), [
    ({}, "no lists"), ({"learning_rate": []}, "list of values for learning_rate"), ({"learning_rate": "auto"}, "list of values"),
    ({"name": ["a", "b"]}, "name cannot be swept"), ({"dataset": ["/etc"]}, "dataset cannot be swept"), ({"max_stebs": [1]}, "max_steps"),
    ({"max_steps": [1, 0]}, "it takes"), ({"max_steps": [5, "5"]}, "twice"), ({"seed": list(range(60)), "max_steps": [1, 2]}, "120 runs"),
])
def test_what_makes_no_sweep_is_one_sentence(lists, words):
    with pytest.raises(ConfigError, match=words):
        sweep.make(BASE, lists)
    with pytest.raises(NameRefused):
        sweep.make({"dataset": "x"}, {"max_steps": [1]})


def test_lines_of_text_are_lists_by_name_or_label():
    text = "learning_rate: auto*0.5, auto\n\n  batch size : 2,4 \nLayer structure: 1, 0.25, 1; 1, 2, 1\nrate_schedule: constant"
    assert sweep.lists_from_text(text) == {
        "learning_rate": ["auto*0.5", "auto"], "batch_size": ["2", "4"], "layer_structure": ["1, 0.25, 1", "1, 2, 1"], "rate_schedule": ["constant"],
    }  # fmt: skip
    assert sweep.lists_from_text("learning_rate: 5e-4:200, 1e-4; 1e-4") == {"learning_rate": ["5e-4:200, 1e-4", "1e-4"]}
    with pytest.raises(ConfigError, match="no line of a sweep"):
        sweep.lists_from_text("learning_rate auto")


@pytest.fixture
def kept(tmp_path):
    """A sweep of three runs of which one has ended, one is going on and one has not begun."""
    folders, made = Folders.below(tmp_path), sweep.make(BASE, {"learning_rate": ["1e-3", "1e-2", "1e-1"]})
    sweep.keep(made, folders)
    rows = [[Row(0, None, 0.01, None), Row(1, 0.5, None, 1.0), Row(4, None, 0.3, None), Row(6, None, 0.4, None)], [Row(2, None, 0.25, None)], []]
    for config, found in zip(made.runs, rows, strict=True):
        if found:
            run = RunFolder(folders.runs, config.name)
            run.begin({}, 0)
            for row in found:
                run.add_row(row)
    RunFolder(folders.runs, made.runs[0].name).note_result({"ending": "finished", "step": 6, "seconds": 12.34})
    return folders


def test_the_table_holds_the_lowest_validation_loss_after_the_first_step(kept):
    found = sweep.outcomes(kept, "ink")
    assert [(one.validation_loss, one.best_step, one.steps, one.seconds, one.ending) for one in found] == [
        (0.3, 4, 6, 12.34, "finished"), (0.25, 2, 2, None, ""), (None, None, 0, None, ""),
    ]  # fmt: skip
    assert sweep.best(found) == 1
    assert sweep.markdown(found) == (
        "| learning_rate | validation loss | at step | steps | seconds | ending |\n| --- | --- | --- | --- | --- | --- |\n"
        "| 1e-3 | 0.3 | 4 | 6 | 12.3 | finished |\n| 1e-2 | **0.25** | 2 | 2 |  |  |\n| 1e-1 |  |  | 0 |  |  |\n"
    )
    written = sweep.write_table(kept, "ink")
    assert [path.name for path in written] == ["ink.md", "ink.csv"] == [path.name for path in sweep.tables(kept, "ink")]
    lines = list(csv.DictReader(io.StringIO(written[1].read_text())))
    assert lines[0] == {
        "run": "ink - learning_rate 1e-3", "learning_rate": "1e-3", "validation loss": "0.3", "at step": "4", "steps": "6", "seconds": "12.3",
        "ending": "finished",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["{", "[1]", '[{"run": "../../x", "values": {}}]', '[{"run": "a", "values": 3}]'])
def test_a_damaged_sweep_is_one_sentence(kept, text):
    (kept.data / "sweeps" / "ink.json").write_text(text)
    with pytest.raises((ConfigError, NameRefused)):
        sweep.outcomes(kept, "ink")
    with pytest.raises(NotThere):
        sweep.outcomes(kept, "../ink")


def test_the_command_line_trains_all_of_them_and_prints_the_table(capsys, tmp_path):
    config = tmp_path / "sweep.toml"
    config.write_text(
        f'name = "ink"\ndataset = {json.dumps(str(PICTURES / "striped"))}\nmax_steps = 1\nbatch_size = 1\npreview_every = 0\nvalidation_every = 1\n'
        'per_layer = false\ntarget_layers = ["attn2"]\n[sweep]\nlearning_rate = ["1e-3", "1e-2"]\n', encoding="utf-8",
    )  # fmt: skip
    assert main(["sweep", str(config), "--home", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    found = sweep.outcomes(Folders.below(tmp_path), "ink")
    assert sweep.markdown(found) in out and all(one.ending == "finished" and one.seconds > 0 and one.validation_loss > 0 for one in found)
    for name in ("1e-3", "1e-2"):
        run = RunFolder(tmp_path / "data" / "runs", f"ink - learning_rate {name}")
        assert run.about()["options"]["learning_rate"] == name
        assert describe(tmp_path / "networks" / f"ink - learning_rate {name}.safetensors").step == 1
    assert main(["sweep", str(config), "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().err.count("exists already") == 2
