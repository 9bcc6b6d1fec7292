"""Exporting in A1111, Forge and reForge in miniature: the file is in the web UI's own folder of LoRA files, from its encoders and for its model."""
import pytest

pytest.importorskip("gradio", reason="a web UI is made of it")

import web_ui
from fastapi import FastAPI
from fastapi.testclient import TestClient
from models import generator
from PIL import Image
from safetensors.torch import load_file
from test_exporting import OTHER, TASK, TEXT

from hypernetworks.attention import find_projections
from hypernetworks.catalog import Catalog
from hypernetworks.exporting import export
from hypernetworks.generator_files import save_generator
from hypernetworks.lora import lora_name
from hypernetworks.prompt import ActiveNetwork, ConditionSource
from hypernetworks.references import References


@pytest.fixture(params=web_ui.TREES)
def ui(request, tmp_path):
    with web_ui.started(request.param, tmp_path, api=True) as ui:
        ui.choose("base")
        save_generator(generator(ui.host.unet), ui.networks / "maker.safetensors")
        yield ui


def test_the_file_is_among_the_web_uis_loras_and_has_a_module_for_each_projection(ui, tmp_path):
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "picture.png")
    reference = ConditionSource("reference", References(ui.host.folders.references).keep(tmp_path / "picture.png"))
    with ui.host.exclusive():
        made = [
            export(ui.host, Catalog(ui.networks), ActiveNetwork("maker", **active))
            for active in (dict(condition=reference), dict(condition=TEXT), dict(condition=OTHER), dict(condition=TASK, second=TEXT, blend=0.5))
        ]
    assert len({one.path for one in made}) == 4 and {one.path.parent for one in made} == {ui.networks.parent / "Lora"}
    names = {lora_name(p.name, ui.host.model.family) for p in find_projections(ui.host.unet)}
    assert {key.split(".")[0] for key in load_file(made[0].path)} == names


def test_its_own_folder_of_loras_counts(tmp_path):
    with web_ui.started("a1111", tmp_path, lora_dir=str(tmp_path / "mine")) as ui:
        assert ui.host.folders.loras == (tmp_path / "mine").resolve()


def test_a_client_exports_and_is_told_no_folder(ui):
    app = FastAPI()
    ui.part("script_callbacks").app_started_callback(None, app)
    answer = TestClient(app).post("/hypernetworks/api/export", json={"generator": "maker", "text": "a star", "name": "fox"})
    assert answer.status_code == 200 and (ui.networks.parent / "Lora" / answer.json()["file"]).is_file(), answer.text
    assert str(ui.networks.parent) not in answer.text
