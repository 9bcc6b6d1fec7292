"""The script's file as a web UI loads it: by its path, beside extensions with modules of the same names, anew with "Reload UI", and away again."""
import sys
from types import ModuleType

import pytest

pytest.importorskip("gradio", reason="a web UI is made of it")

import web_ui
from web_ui.shelf import fill

NAMES = ("extension", "hypernetworks")
KINDS = ("app_started", "ui_tabs", "ui_settings", "cfg_denoiser", "script_unloaded", "before_ui")
OWN_AXES = ["Nothing", "Seed", "Denoising"]


@pytest.fixture(params=web_ui.TREES)
def kind(request):
    return request.param


@pytest.fixture
def ui(kind, tmp_path):
    with web_ui.started(kind, tmp_path) as ui:
        fill(ui)
        yield ui


@pytest.fixture
def forgotten(monkeypatch):
    """As in a web UI, nobody has imported the package by its name."""
    for name in list(sys.modules):
        if name.partition(".")[0] in NAMES:
            monkeypatch.delitem(sys.modules, name)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        del sys.modules[name]


def draw(ui):
    """The latent of a picture with a network, which acts."""
    result = ui.txt2img("a star<hypernet:oil:1>", steps=2)
    assert result.comments == "" and not result.latents[0].equal(ui.txt2img("a star", steps=2).latents[0])
    return result.latents[0]


def lists(ui):
    """All that is registered in the web UI's own lists, by name."""
    callbacks = ui.part("script_callbacks").callback_map
    networks, pages = ui.part("extra_networks").extra_network_registry, ui.part("ui_extra_networks").extra_pages
    return {
        "callbacks": {kind: len(callbacks[f"callbacks_{kind}"]) for kind in KINDS},
        "networks": {name: type(network).__name__ for name, network in networks.items()},
        "cards": [(page.name, type(page).__name__) for page in pages],
        "axes": axes(ui),
        "scripts": [data.script_class.__name__ for data in ui.part("scripts").scripts_data],
    }


def axes(ui):
    """Labels of the plot's."""
    (plot,) = [data.module for data in ui.part("scripts").scripts_data if data.path.endswith("xyz_grid.py")]
    return [option.label for option in plot.axis_options]


def page(ui):
    """What is on the page: tabs, settings, scripts below the prompt."""
    ui.open_page()
    tabs = [(title, elem_id) for _, title, elem_id in ui.part("script_callbacks").ui_tabs_callback()]
    settings = [name for name in ui.opts.data_labels if name.startswith("hypernetworks_")]
    return tabs, settings, [script.title() for script in ui.runner.alwayson_scripts]


def assert_ours(ui):
    """The extension is that of this folder, and its package is, too."""
    for thing in (ui.extension, ui.host, ui.extension.session):
        assert sys.modules[type(thing).__module__].__file__.startswith(str(web_ui.EXTENSION / "hypernetworks"))
        assert type(thing).__module__.partition(".")[0] not in NAMES


def test_other_modules_of_these_names_are_let_alone(kind, tmp_path, forgotten, monkeypatch):
    others = {name: ModuleType(name) for name in NAMES}
    for name, module in others.items():
        monkeypatch.setitem(sys.modules, name, module)
    with web_ui.started(kind, tmp_path) as ui:
        fill(ui)
        assert_ours(ui)
        page(ui)
        draw(ui)
        for name, module in others.items():
            assert sys.modules[name] is module and not [other for other in vars(module) if not other.startswith("__")]


def test_other_modules_of_these_names_are_not_imported(kind, tmp_path, forgotten, monkeypatch):
    """They stand first on the path, and each is an error for whoever asks for it."""
    folder = tmp_path / "other"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise AssertionError(__name__)")
    monkeypatch.syspath_prepend(str(folder))
    with web_ui.started(kind, tmp_path) as ui:
        fill(ui)
        assert_ours(ui)
        page(ui)
        draw(ui)
        assert not set(NAMES) & set(sys.modules)


def test_reload_ui_registers_nothing_twice(ui):
    extension, before, shown, drawn = ui.extension, lists(ui), page(ui), draw(ui)
    assert before["networks"]["hypernet"] == "HypernetExtraNetwork" and ("hypernetworks", "HypernetworkCards") in before["cards"]
    assert before["axes"][:3] == OWN_AXES and len(set(before["axes"])) == len(before["axes"]) > 3
    assert before["callbacks"] == dict.fromkeys(KINDS, 1)
    for _ in range(2):
        ui.reload()
        assert lists(ui) == before and page(ui) == shown
        assert ui.extension is extension  # a run goes on
        assert draw(ui).equal(drawn)


def test_after_unloading_nothing_of_ours_is_left(ui):
    draw(ui)
    ui.unload()
    found = lists(ui)
    assert "hypernet" not in found["networks"] and found["cards"] == [("lora", "ExtraNetworksPage")] and found["axes"] == OWN_AXES
    assert ui.hooks() == 0 and ui.host.rows == ()


class Failure(Exception):
    """Of another extension, within the UNet."""


def test_unloading_takes_off_what_a_failed_job_has_left(ui):
    def fail(part, inputs):
        raise Failure

    draw(ui)  # Forge has a model from then on
    handle = ui.unet.middle_block[2].register_forward_pre_hook(fail)
    try:
        with pytest.raises(Failure):
            ui.txt2img("a star<hypernet:oil:1>", steps=2)
    finally:
        handle.remove()
    assert ui.extension.generation._job is not None
    ui.unload()
    assert ui.extension.generation._job is None and ui.hooks() == 0
