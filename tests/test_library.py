"""The library: what it lists and tells, and what it does to files."""
import io
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from models import diffusers_unet
from PIL import Image

from hypernetworks import library as library_module
from hypernetworks.catalog import Catalog
from hypernetworks.checkpoint import Row, RunFolder
from hypernetworks.config import TrainingConfig, read
from hypernetworks.errors import ConfigError, FileRefused, HypernetworkError, NameRefused, NameTaken
from hypernetworks.files import describe, load, preview_text, save, short_hash
from hypernetworks.generator import Hypernetwork
from hypernetworks.generator_files import save_generator
from hypernetworks.host import Folders
from hypernetworks.library import Library
from hypernetworks.residual import ResidualHypernetwork, ResidualStructure
from hypernetworks.resuming import options_to_resume

GOLDEN = Path(__file__).parent / "golden"
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def network(widths=None, structure=None, seed=1, step=0, description="", **metadata):
    made = ResidualHypernetwork(widths or {8: 8}, structure or ResidualStructure((1, 0.5, 1)), "Normal", seed)
    made.step, made.description = step, description
    made.metadata.update(metadata)
    return made


def picture(colour, suffix="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(buffer, suffix)
    return buffer.getvalue()


@pytest.fixture
def folders(tmp_path):
    made = Folders.below(tmp_path)
    made.networks.mkdir()
    return made


@pytest.fixture
def library(folders):
    return Library(Catalog(folders.networks), folders)


@pytest.fixture
def ink(folders):
    """A network with everything around it: sidecars, a run, and a neighbour whose name begins alike."""
    path = save(network(step=120, description="black", base_model="small", date="2025-02-03T04:05:06+00:00"), folders.networks / "ink.safetensors")
    save(network(seed=2), folders.networks / "ink.pt")
    for ending in ("pt.optim", "png", "preview.png", "json", "txt", "description.txt"):
        (folders.networks / f"ink.{ending}").write_bytes(ending.encode())
    save(network(seed=3), folders.networks / "ink2.safetensors")
    (folders.networks / "ink.doc").write_bytes(b"somebody's")
    run = RunFolder(folders.runs, "ink")
    run.begin({"options": {"dataset": "pictures of ink"}}, 0)
    for step in range(1, 4):
        run.add_row(Row(step, 1 / step, None, 1e-3))
    return path


BELONGING = {"ink.safetensors", "ink.pt", "ink.pt.optim", "ink.png", "ink.preview.png", "ink.json", "ink.txt", "ink.description.txt"}


def names(folder):
    return {path.name for path in folder.iterdir()}


def by_name(library):
    return {entry.name: entry for entry in library.entries()}


# --- the table


def test_a_line_says_what_the_header_says(library, folders, ink):
    entry = by_name(library)["ink"]
    assert (entry.kind, entry.widths, entry.step, entry.base_model, entry.problem) == ("per width", (8,), 120, "small", "")
    assert entry.size == ink.stat().st_size and entry.path == ink
    assert time.gmtime(entry.date)[:6] == (2025, 2, 3, 4, 5, 6)


def test_kinds_are_told_apart(library, folders):
    save(network({LAYER: 8, LAYER[:-1] + "2": 4}), folders.networks / "layers.safetensors")
    save(network({320: 320, 768: 768}, ResidualStructure((1, 0.01, 1))), folders.networks / "widths.safetensors")
    generator = Hypernetwork(target_layers=["attn2"], embedding_dim=8, hidden_dim=8, rank=2, text_width=16).bind(diffusers_unet())
    save_generator(generator, folders.networks / "maker.safetensors")
    entries = by_name(library)
    assert {name: (entry.kind, entry.widths) for name, entry in entries.items()} == {
        "layers": ("per layer", (4, 8)), "widths": ("per width", (320, 768)), "maker": ("generator", ()),
    }  # fmt: skip
    assert library.details("maker").facts.layers == generator.layers


def test_a_pt_is_told_of_after_its_details_were_opened(library, folders):
    shutil.copy(GOLDEN / "kohya.pt", folders.networks / "old.pt")
    before = by_name(library)["old"]
    assert (before.kind, before.step, before.problem) == ("", None, "") and before.size > 0
    facts = describe(folders.networks / "old.pt")
    assert library.details("old").entry.widths == tuple(sorted(set(facts.widths.values())))
    assert by_name(library)["old"].kind == "per width"


def test_a_damaged_file_is_a_line_with_a_sentence(library, folders, ink):
    data = ink.read_bytes()
    for name, content in {
        "short": data[:-1], "long": data + b"x", "text": b"hello", "empty": b"", "header": data[:50],
        "kind": data.replace(b'"residual"', b'"resiNual"'),
    }.items():  # fmt: skip
        (folders.networks / f"{name}.safetensors").write_bytes(content)
    (folders.networks / "nothing.pt").write_bytes(b"")
    (folders.networks / "words.pt").write_bytes(b"hello")
    entries = by_name(library)
    for name in ("short", "long", "text", "empty", "header", "kind", "nothing"):
        assert entries[name].problem.endswith(".") and name in entries[name].problem, name
    for name in ("short", "words"):
        details = library.details(name)
        assert details.facts is None and details.entry.problem and details.hash == short_hash(details.entry.path)
    assert by_name(library)["words"].problem  # known since it was opened


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_a_link_that_leads_nowhere_is_a_line_too(library, folders):
    (folders.networks / "gone.safetensors").symlink_to(folders.networks / "nowhere")
    (folders.networks / "lost.pt").symlink_to(folders.networks / "nowhere")
    assert all("no file" in entry.problem for entry in library.entries())
    assert library.delete("gone").is_dir() and names(folders.networks) == {"lost.pt"}


def test_a_date_that_is_none_is_the_files(library, folders):
    for number, date in enumerate(["yesterday", "", "0001-01-01", "9999-12-31T00:00:00+00:00", "2025-13-01"]):
        path = save(network(date=date), folders.networks / f"{number}.safetensors")
        os.utime(path, (1e9, 1e9))
    assert {entry.date for entry in library.entries()} == {1e9}
    save(network(date="2001-09-09T01:46:41Z"), folders.networks / "zulu.safetensors")
    assert by_name(library)["zulu"].date == 1e9 + 1


def test_what_was_read_is_kept_until_the_file_changes(library, folders, ink, monkeypatch):
    first, opened, read_metadata = by_name(library), [], library_module.read_metadata
    monkeypatch.setattr(library_module, "read_metadata", lambda path, size: opened.append(path) or read_metadata(path, size))
    assert by_name(library) == first and opened == []
    save(network(step=121), ink, overwrite=True)
    assert by_name(library)["ink"].step == 121 and opened == [ink]


def test_five_thousand_files_are_listed_at_once(library, folders):
    data = save(network({LAYER.replace("0", str(n)): 8 for n in range(32)}), folders.networks / "0.safetensors").read_bytes()
    for number in range(1, 5000):
        (folders.networks / f"{number}.safetensors").write_bytes(data)
    spent = []
    for _ in range(3):
        start = time.process_time()  # other programs do not count
        assert len(library.entries()) == 5000
        spent.append(time.process_time() - start)
    assert spent[0] < 1.5 and min(spent[1:]) < 0.15  # three times what it took on a slow machine


def test_threads_may_list_and_open_at_once(library, ink):
    failed = []

    def work():
        try:
            for _ in range(20):
                library.entries(), library.details("ink")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# --- details


def test_details_tell_all_there_is(library, folders, ink):
    details = library.details("ink")
    assert details.hash == short_hash(ink) and details.notes == "black" and details.run == folders.runs / "ink"
    assert [(row.step, row.loss) for row in details.losses] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert {path.name for path in details.files} == BELONGING


def test_settings_are_those_of_the_file(library, folders):
    save(network(settings=json.dumps({"max_steps": 7})), folders.networks / "a.safetensors")
    save(network(settings="[1"), folders.networks / "b.safetensors")
    save(network(settings="[1]"), folders.networks / "c.safetensors")
    save(network(settings="[" * 100_000), folders.networks / "d.safetensors")
    assert [library.details(name).settings for name in "abcd"] == [{"max_steps": 7}, {}, {}, {}]


def test_the_preview_is_the_cards_picture_else_the_files_own(library, folders):
    path = save(network(preview=preview_text(Image.new("RGB", (9, 9), "red"))), folders.networks / "ink.safetensors")
    assert Image.open(io.BytesIO(library.details("ink").preview)).size == (9, 9)
    (folders.networks / "ink.preview.png").write_bytes(picture("blue"))
    assert library.preview(path) == picture("blue")
    (folders.networks / "ink.png").write_bytes(picture("green"))
    assert library.preview(path) == picture("green")
    save(network(preview="!"), folders.networks / "odd.safetensors")
    assert library.details("odd").preview is None


def test_a_damaged_loss_table_is_no_loss_table(library, folders, ink):
    (folders.runs / "ink" / "loss.csv").write_bytes(b"\xff\xfe\0,\0")
    assert library.details("ink").losses == ()


def test_a_run_belongs_to_the_file_that_its_name_leads_to(library, folders, ink):
    other = folders.networks / "styles" / "ink.safetensors"
    save(network(seed=9), other)
    assert library.details("styles/ink").run is None and library.details("ink").run is not None
    library.delete("styles/ink")
    assert (folders.runs / "ink").is_dir()


def test_an_unknown_name_is_told_with_similar_ones(library, ink):
    with pytest.raises(HypernetworkError, match="Did you mean ink"):
        library.details("inc")


# --- renaming


def test_everything_of_that_name_is_renamed(library, folders, ink):
    before, loose = short_hash(ink), names(folders.networks) - BELONGING
    assert library.rename("ink", " black ") == "black"
    assert names(folders.networks) == {name.replace("ink", "black") for name in BELONGING} | loose
    assert short_hash(folders.networks / "black.safetensors") == before
    assert (folders.networks / "black.preview.png").read_bytes() == b"preview.png"
    details = library.details("black")
    assert len(details.losses) == 3 and not (folders.runs / "ink").exists()
    with pytest.raises(HypernetworkError):
        library.details("ink")


@pytest.mark.parametrize(
    "taken", ["networks/black.safetensors", "networks/black.pt", "networks/black.png", "networks/Black.json", "data/runs/black/x"]
)
def test_a_taken_name_is_refused_and_nothing_moves(library, folders, ink, tmp_path, taken):
    (tmp_path / taken).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / taken).write_bytes(b"taken")
    before = names(folders.networks)
    with pytest.raises(NameTaken):
        library.rename("ink", "black")
    with pytest.raises(NameTaken):
        library.merge([("ink", 1), ("ink2", 1)], "black")
    assert names(folders.networks) == before and (tmp_path / taken).read_bytes() == b"taken"


def test_a_name_that_another_folder_has_is_taken(library, folders, ink):
    save(network(), folders.networks / "styles" / "black.safetensors")
    with pytest.raises(NameTaken):
        library.rename("ink", "black")
    assert library.rename("black", "white") == "white" and (folders.networks / "styles" / "white.safetensors").is_file()


@pytest.mark.parametrize("bad", ["", "a/b", "../b", "CON", "a:b", ".b"])
def test_a_bad_name_is_refused(library, ink, bad):
    with pytest.raises(NameRefused):
        library.rename("ink", bad)
    assert ink.is_file()


def test_the_same_name_again_changes_nothing_and_another_spelling_is_one(library, folders, ink):
    assert library.rename("ink", "ink") == "ink"
    assert library.rename("ink", "INK") == "INK"
    assert "INK.safetensors" in names(folders.networks)


def test_a_renaming_that_fails_halfway_is_taken_back(library, folders, ink, monkeypatch):
    before, real, moved = names(folders.networks), shutil.move, []

    def move(source, target):
        if len(moved) == 3:
            moved.append(source)
            raise PermissionError(13, "Permission denied")
        moved.append(source)
        return real(source, target)

    monkeypatch.setattr(shutil, "move", move)
    with pytest.raises(HypernetworkError, match="ink was not renamed: Permission denied."):
        library.rename("ink", "black")
    assert names(folders.networks) == before and (folders.runs / "ink").is_dir()


# --- deleting


def test_what_is_deleted_lies_in_the_trash_with_all_its_files(library, folders, ink):
    data, loose = ink.read_bytes(), names(folders.networks) - BELONGING
    into = library.delete("ink")
    assert into.parent == folders.data / "trash" and into.name.endswith(" ink")
    assert names(into) == BELONGING | {"run"} and (into / "ink.safetensors").read_bytes() == data
    assert names(folders.networks) == loose and "ink" not in by_name(library)
    for file in into.iterdir():
        shutil.move(file, folders.runs / "ink" if file.name == "run" else folders.networks)
    assert len(library.details("ink").losses) == 3


def test_two_of_a_name_do_not_meet_in_the_trash(library, folders):
    found = []
    for seed in range(3):
        path = save(network(seed=seed), folders.networks / "ink.safetensors")
        found.append((path.read_bytes(), library.delete("ink")))
    assert all((into / "ink.safetensors").read_bytes() == data for data, into in found)


def test_a_trash_that_cannot_be_written_is_told(library, folders, ink):
    (folders.data / "trash").write_bytes(b"a file")
    with pytest.raises(HypernetworkError, match="trash .* cannot be written"):
        library.delete("ink")
    assert ink.is_file()


# --- converting


@pytest.mark.parametrize(("first", "second"), [(".safetensors", ".pt"), (".pt", ".safetensors")])
def test_the_other_format_has_the_same_weights_and_notes(library, folders, first, second):
    made = network(step=40, description="by hand", base_model="small")
    path = save(made, folders.networks / f"ink{first}")
    converted = library.convert("ink", second)
    assert converted == path.with_suffix(second) and path.is_file()
    found = load(converted)
    assert all(map(torch.equal, made.parameters(), found.parameters()))
    assert (found.step, found.description, found.metadata["base_model"], found.name) == (40, "by hand", "small", "ink")


def test_the_notes_beside_a_pt_come_along(library, folders):
    save(network(description="inside"), folders.networks / "ink.pt")
    library.set_notes("ink", "beside")
    assert describe(library.convert("ink", ".safetensors")).description == "beside"


def test_what_cannot_be_converted_is_told(library, folders, ink):
    save(network({LAYER: 8}), folders.networks / "layers.safetensors")
    with pytest.raises(ConfigError, match="one per attention layer"):
        library.convert("layers", ".pt")
    with pytest.raises(NameTaken):
        library.convert("ink", ".pt")
    for suffix in (".safetensors", ".zip", "/../x.pt"):
        with pytest.raises(ConfigError, match="can be converted to .pt"):
            library.convert("ink", suffix)


# --- merging


def test_a_merged_file_names_its_parts(library, folders, ink):
    merged = library.merge([("ink", 1), ("ink2", 3)], "mix")
    assert merged == folders.networks / "mix.safetensors"
    expected = [0.25 * a + 0.75 * b for a, b in zip(load(ink).parameters(), load(folders.networks / "ink2.safetensors").parameters(), strict=True)]
    assert all(torch.allclose(*pair, atol=1e-7) for pair in zip(load(merged).parameters(), expected, strict=True))
    parts = json.loads(describe(merged).metadata["merged_from"])
    assert parts == [
        {"name": "ink", "hash": short_hash(ink), "weight": 1}, {"name": "ink2", "hash": short_hash(folders.networks / "ink2.safetensors"), "weight": 3},
    ]  # fmt: skip
    assert by_name(library)["mix"].kind == "per width" and describe(merged).name == "mix"


def test_different_structures_are_chained(library, folders, ink):
    save(network(structure=ResidualStructure((1, 2, 1))), folders.networks / "wide.safetensors")
    with pytest.raises(ConfigError, match="one after the other instead"):
        library.merge([("ink", 1), ("wide", 1)], "mix")
    chained = load(library.chain([("ink", 0.5), ("wide", 2)], "mix"))
    x = torch.randn(4, 8)
    one, two = (load(folders.networks / f"{name}.safetensors").pair(8)[1] for name in ("ink", "wide"))
    between = x + 0.5 * one(x)
    assert torch.allclose(x + chained.pair(8)[1](x), between + 2 * two(between), atol=1e-5)


# --- notes


def test_notes_stand_in_the_header_and_the_weights_stay(library, folders, ink):
    before = describe(ink)
    library.set_notes("ink", "wider lines\nat 0.7 ☂")
    after = describe(ink)
    assert library.notes("ink") == after.description == "wider lines\nat 0.7 ☂"
    assert after.metadata == before.metadata and after.step == before.step
    assert all(map(torch.equal, load(ink).parameters(), network().parameters()))


def test_notes_of_a_pt_stand_in_the_cards_file_beside_what_else_is_there(library, folders):
    path = save(network(description="inside"), folders.networks / "ink.pt")
    data = path.read_bytes()
    assert library.notes("ink") == "inside"
    card = folders.networks / "ink.json"
    card.write_text(json.dumps({"activation text": "ink", "notes": "ä", "preferred weight": 0.5}), encoding="utf-8")
    assert library.notes("ink") == library.details("ink").notes == "ä"
    library.set_notes("ink", "ö")
    assert json.loads(card.read_text(encoding="utf-8")) == {"activation text": "ink", "notes": "ö", "preferred weight": 0.5}
    assert path.read_bytes() == data


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_cards_file_that_cannot_be_read_is_not_written_over(library, folders, content):
    save(network(description="inside"), folders.networks / "ink.pt")
    (folders.networks / "ink.json").write_bytes(content)
    with pytest.raises(FileRefused, match="ink.json"):
        library.set_notes("ink", "x")
    assert (folders.networks / "ink.json").read_bytes() == content and library.notes("ink") == "inside"


def test_notes_are_not_written_into_other_files(library, folders):
    (folders.networks / "lora.safetensors").write_bytes(save(network(), folders.data / "x.safetensors").read_bytes().replace(b'"hypernetworks"', b'"hypernetworkz"'))
    data = (folders.networks / "lora.safetensors").read_bytes()
    with pytest.raises(FileRefused):
        library.set_notes("lora", "x")
    assert (folders.networks / "lora.safetensors").read_bytes() == data
    with pytest.raises(ConfigError, match="20,000"):
        library.set_notes("lora", "x" * 20_001)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "ink/../../secret", ""])
def test_nothing_outside_the_folder_can_be_named(library, folders, ink, name):
    secret = save(network(), folders.networks.parent / "secret.safetensors")
    for act in (
        library.details, library.notes, library.delete, lambda name: library.rename(name, "x"), lambda name: library.convert(name, ".pt"),
        lambda name: library.set_notes(name, "x"), lambda name: library.merge([(name, 1), ("ink", 1)], "mix"),
    ):  # fmt: skip
        with pytest.raises(HypernetworkError):
            act(name)
    assert secret.is_file() and not (folders.networks / "mix.safetensors").exists()


# --- going on with the training


def trained(folders, step=100, run=True, **asked):
    values = {"name": "ink", "dataset": "/pictures/ink", "max_steps": 100, **asked}
    made = network({LAYER: 8}, step=step, settings=json.dumps(values), description="notes")
    save(made, folders.networks / "ink.safetensors")
    if run:
        folder = RunFolder(folders.runs, "ink")
        folder.begin({"options": values}, 0)
        folder.state_path.touch()
    return options_to_resume(folders, "ink")


def test_going_on_takes_the_files_settings_and_more_steps(folders):
    values, told = trained(folders, learning_rate="1e-4", caption_dropout=0)
    config = read(TrainingConfig, values)
    assert (config.name, config.dataset, config.learning_rate, config.caption_dropout) == ("ink", "/pictures/ink", "1e-4", 0)
    assert (config.layer_structure, config.per_layer, config.target_layers, config.description) == ((1, 0.5, 1), True, ("attn1",), "notes")
    assert config.max_steps == 200 and any("100 steps" in text for text in told)


def test_a_run_that_was_stopped_early_keeps_its_steps(folders):
    assert trained(folders, step=30)[0]["max_steps"] == 100


def test_the_structure_is_the_files_whatever_its_settings_say(folders):
    values, _ = trained(folders, layer_structure=[1, 9, 1], per_layer=False)
    assert values["layer_structure"] == (1, 0.5, 1) and values["per_layer"] is True


def test_a_file_from_elsewhere_brings_no_folder_of_pictures(folders):
    values, told = trained(folders, run=False)
    assert values["dataset"] == "" and values["max_steps"] == 100
    assert any("choose them" in text for text in told) and any("new optimizer" in text for text in told)


def test_a_file_from_elsewhere_brings_neither_other_folders_nor_code_to_run(folders):
    asked = dict(regularization="/pictures/dogs", loss_function="somebody.loss")
    values, _ = trained(folders, **asked)
    assert (values["regularization"], values["loss_function"]) == ("/pictures/dogs", "somebody.loss")
    (folders.runs / "ink" / "config.json").unlink()
    values, _ = options_to_resume(folders, "ink")
    assert values["regularization"] == values["loss_function"] == ""


def test_settings_that_are_not_understood_are_left_out_and_told(folders):
    values, told = trained(folders, from_the_future=1, batch_size="many", warmup_steps=float("inf"), seed=-1, loss=["mse"])
    assert not {"from_the_future", "batch_size", "warmup_steps", "seed", "loss"} & values.keys()
    assert any("from_the_future, batch_size, warmup_steps, seed, loss" in text for text in told)
    read(TrainingConfig, values)


def test_going_on_with_a_generator_takes_its_shape_from_the_file(folders):
    made = Hypernetwork(target_layers=["attn2"], embedding_dim=8, hidden_dim=8, rank=2, text_width=16, conditions=["text"]).bind(diffusers_unet())
    made.step, made.description = 100, "notes"
    made.metadata["settings"] = json.dumps({"kind": "generator", "max_steps": 100, "rank": 64, "encoder_steps": 7})
    save_generator(made, folders.networks / "maker.safetensors")
    run = RunFolder(folders.runs, "maker")
    run.begin({"options": {"dataset": "/pictures/styles"}}, 0)
    run.state_path.touch()
    values, told = options_to_resume(folders, "maker")
    config = read(TrainingConfig, values)
    assert (config.kind, config.name, config.dataset, config.description) == ("generator", "maker", "/pictures/styles", "notes")
    assert (config.target_layers, config.conditions, config.embedding_dim, config.rank, config.encoder_steps) == (("attn2",), ("text",), 8, 2, 7)
    assert config.max_steps == 200 and not any("Not understood" in text for text in told)


def test_a_residual_network_goes_on_as_one_whatever_its_settings_say(folders):
    assert trained(folders, kind="generator")[0]["kind"] == "residual"


@pytest.mark.parametrize("name", ["old", "styles/dotted", "../ink", "nothing"])
def test_what_training_cannot_go_on_with_is_told(folders, name):
    save(network(), folders.networks / "old.pt")
    save(network(), folders.networks / "styles" / "dotted.safetensors")
    with pytest.raises(HypernetworkError, match="convert a .pt first, or move the file"):
        options_to_resume(folders, name)
