"""Two runs side by side: what is read from their folders and what the page shows of it."""
import re
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from hypernetworks.checkpoint import Row, RunFolder
from hypernetworks.comparing import differences, look, run_names
from hypernetworks.errors import HypernetworkError, NotThere
from hypernetworks.host import Folders


@pytest.fixture
def folders(tmp_path):
    """Two runs, the second with another rate, fewer steps and no preview of the second prompt."""
    found = Folders.below(tmp_path)
    for name, rate, steps in (("one", "auto", 20), ("two <b>", "1e-3", 10)):
        run = RunFolder(found.runs, name)
        run.begin({"options": {"name": name, "dataset": "same", "learning_rate": rate, **({"flip": True, "blocks": ["middle"]} if steps == 10 else {})}}, 0)
        for step in range(1, steps + 1):
            run.add_row(Row(step, 1.0 / step, None, 1e-3))
        run.add_row(Row(steps, None, 0.5 / steps, None))
        for number in (1, 2) if steps == 20 else (1,):
            for step in (0, steps):
                Image.new("RGB", (32, 32), (step, 0, 0)).save(run.preview_path(step, number))
    RunFolder(found.runs, "one").note_result({"ending": "finished", "step": 20, "seconds": 125.0})
    return found


def test_a_runs_folder_gives_its_curves_last_previews_and_options(folders):
    assert set(run_names(folders)) == {"one", "two <b>"} and run_names(Folders.below(folders.data / "no")) == []
    one = look(folders, "one")
    assert one.losses == [(step, 1.0 / step) for step in range(1, 21)] and one.validation_losses == [(20, 0.025)]
    assert one.preview_step == 20 and {number: path.name for number, path in one.previews.items()} == {1: "step-000020-1.png", 2: "step-000020-2.png"}
    assert differences(one, look(folders, "two <b>")) == [
        ("blocks", ["input", "middle", "output"], ["middle"]), ("flip", False, True), ("learning_rate", "auto", "1e-3"),
    ]  # fmt: skip
    assert differences(one, one) == []


@pytest.mark.parametrize("name", ["nothing", "../runs/one", "", "one/previews/.."])
def test_only_runs_that_are_there_are_looked_at(folders, name):
    with pytest.raises(NotThere):
        look(folders, name)


def test_a_damaged_folder_is_one_sentence(folders):
    (folders.runs / "one" / "config.json").write_text("{")
    assert look(folders, "one").options == {}
    (folders.runs / "one" / "previews" / "step-x-1.png").touch()
    with pytest.raises(HypernetworkError, match="cannot be read"):
        look(folders, "one")


def test_the_page_shows_both_in_one_chart_with_pictures_and_differences(folders):
    pytest.importorskip("gradio", reason="the page needs gradio")
    from hypernetworks.ui.comparison_box import comparison
    from hypernetworks.ui.progress import LEFT, RIGHT, WIDTH

    html = comparison(look(folders, "one"), look(folders, "two <b>"))
    tree = ElementTree.fromstring(re.sub("<(img[^>]*|br)>", r"<\1/>", html))
    lines = {line.get("class"): line.get("points").split() for line in tree.iter("polyline")}
    assert {kind: len(points) for kind, points in lines.items()} == {
        "hypernetworks-first": 20, "hypernetworks-second": 10, "hypernetworks-first hypernetworks-held-out": 1,
        "hypernetworks-second hypernetworks-held-out": 1,
    }  # fmt: skip
    assert float(lines["hypernetworks-second"][-1].split(",")[0]) == pytest.approx(LEFT + (WIDTH - LEFT - RIGHT) / 2, abs=0.1)  # step 10 of 20
    assert len(list(tree.iter("img"))) == 3 and "<b>" not in html
    words = " ".join(tree.itertext())
    assert "20 steps · finished · 2 minutes · lowest validation loss 0.0250" in words and "10 steps · not ended" in words
    rows = [[cell.text for cell in row] for table in tree.iter("table") if "data-differences" in table.keys() for row in table.iter("tr")]
    assert rows[1:] == [["Blocks", "input, middle, output", "middle"], ["Mirror pictures", "off", "on"], ["Learning rate", "auto", "1e-3"]]
    (folders.runs / "one" / "loss.csv").write_text("step\n")
    (folders.runs / "two <b>" / "loss.csv").write_text("step\n")
    assert "Neither run" in comparison(look(folders, "one"), look(folders, "two <b>"))
