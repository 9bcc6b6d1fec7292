"""REST: what a client gets. The model is the embedded one."""
import base64
import io
import json
import subprocess
import sys
import zipfile

import pytest

pytest.importorskip("fastapi", reason="the routes need FastAPI, which comes with gradio")

from PIL import Image
from rest_service import QUICK, Service, Trainer

from hypernetworks.api import OPTIONS, PREFIX
from hypernetworks.checkpoint import RunFolder
from hypernetworks.embedded import PICTURES
from hypernetworks.files import load, short_hash
from hypernetworks.trainer import Progress

# What works


def test_pictures_are_sent_a_run_is_started_watched_and_its_file_described(service):
    sent = service.upload()
    assert sent.status_code == 200 and sent.json()["dataset"] == "striped" and len(sent.json()["files"]) == 8
    assert service.get("/pictures").json() == ["striped"]
    wanted = {"name": "quick", "dataset": "striped", "preview_every": 3, "preview_steps": 2, "preview_prompts": "a star\na heart", "validation_every": 3}
    started = service.post("/train", QUICK | wanted)
    assert started.status_code == 200 and started.json()["state"] == "running" and started.json()["options"]["dataset"] == "striped"
    assert service.jobs.current.wait(120)
    job = service.get("/jobs/1").json()
    assert (job["state"], job["step"], job["steps"], job["error"], job["file"]) == ("finished", 3, 3, None, "quick.safetensors")
    losses = [row.loss for row in RunFolder(service.folders.runs, "quick").rows() if row.loss is not None]
    assert job["curve"] == [[step, pytest.approx(loss)] for step, loss in enumerate(losses, 1)] and job["loss"] == pytest.approx(losses[-1])
    assert [(one["index"], one["step"], one["prompt"]) for one in job["previews"]] == [(0, 0, "a star"), (1, 0, "a heart"), (2, 3, "a star"), (3, 3, "a heart")]
    preview = service.get("/jobs/1/previews/3")
    assert preview.headers["content-type"] == "image/png"
    assert preview.content == RunFolder(service.folders.runs, "quick").preview_path(3, 2).read_bytes()
    assert service.get("/jobs").json()[0]["number"] == 1

    assert service.get("/networks").json() == [{"name": "quick", "file": "quick.safetensors"}]
    details = service.get("/network", name="quick").json()
    assert details["hash"] == short_hash(service.folders.networks / "quick.safetensors") and details["step"] == 3 and details["per_layer"]
    assert Image.open(io.BytesIO(base64.b64decode(details["preview"]))).format == "JPEG"
    assert json.loads(details["metadata"]["settings"])["dataset"] == "striped" and details["metadata"]["base_model"] == service.host.model.name
    assert str(service.folders.data) not in json.dumps([started.json(), job, details])


def test_runs_are_queued_moved_removed_and_held(waiting):
    assert waiting.get("/queue").json() == {"held": False, "running": None, "waiting": [], "ended": []}
    for name in ("one", "two", "three"):
        told = waiting.post("/queue", QUICK | {"name": name, "dataset": "striped", "regularization": "striped"})
        assert told.status_code == 200
    found = told.json()
    assert found["running"] == 1 and [one["name"] for one in found["waiting"]] == ["two", "three"]
    assert found["waiting"][0]["options"]["dataset"] == found["waiting"][0]["options"]["regularization"] == "striped"
    assert waiting.get("/jobs/1").json()["name"] == "one"
    assert [one["name"] for one in waiting.post("/queue/move", {"number": 3, "to": 0}).json()["waiting"]] == ["three", "two"]
    assert waiting.post("/queue/move", {"number": 9, "to": 0}).status_code == 404
    assert waiting.post("/queue/move", {"number": 3}).status_code == waiting.post("/queue/remove", {"number": "3"}).status_code == 422
    assert [one["name"] for one in waiting.post("/queue/remove", {"number": 2}).json()["waiting"]] == ["three"]
    assert waiting.post("/queue", QUICK | {"name": "three", "dataset": "striped"}).status_code == 409
    assert waiting.post("/queue", QUICK | {"name": "four", "dataset": "/etc"}).status_code == 403
    assert waiting.post("/queue/hold", {"held": True}).json()["held"]
    waiting.end()
    assert waiting.get("/queue").json()["ended"][0]["name"] == "one" and waiting.get("/queue").json()["running"] is None
    assert waiting.post("/queue/hold", {"held": False}).json()["running"] == 3


def test_a_sweep_is_queued_and_its_table_is_told(waiting):
    wanted = QUICK | {"name": "ink", "dataset": "striped", "sweep": {"learning_rate": ["auto*0.5", "auto"], "layer_structure": [[1, 2, 1]]}}
    told = waiting.post("/sweep", wanted)
    assert told.status_code == 200 and told.json() == waiting.get("/sweep", name="ink").json()
    assert [run["values"] for run in told.json()["runs"]] == [
        {"learning_rate": rate, "layer_structure": "1, 2, 1"} for rate in ("auto*0.5", "auto")
    ]  # fmt: skip
    queue = waiting.get("/queue").json()
    assert queue["running"] == 1 and [one["name"] for one in queue["waiting"]] == ["ink - learning_rate auto - layer_structure 1 2 1"]
    assert waiting.get("/sweep", name="../ink").status_code == 404
    for odd, status in (({"dataset": ["/etc"]}, 422), ({"max_steps": [{}]}, 422), ({"max_steps": 3}, 422), ([1], 422), ({"loss_function": ["os.system"]}, 403)):
        assert waiting.post("/sweep", wanted | {"name": "other", "sweep": odd}).status_code == status, odd
    waiting.jobs.queue.hold()


def test_presets_are_listed_saved_and_deleted(service):
    shipped = set(service.get("/presets").json())
    saved = service.post("/presets", {"name": "mine", "preset": "Subject", "max_steps": 33, "dataset": "striped"})
    assert saved.status_code == 200 and saved.json()["mine"]["options"]["max_steps"] == 33
    assert saved.json()["mine"]["options"]["target_layers"] == ["attn2"] and "dataset" not in saved.json()["mine"]["options"]
    assert set(service.get("/presets").json()) == shipped | {"mine"}
    assert service.post("/presets", {"name": "mine"}).status_code == 409
    assert service.post("/presets", {"name": "Style", "overwrite": True}).status_code == 409
    assert service.post("/create", {"name": "new", "preset": "mine"}).json()["metadata"]["settings"].count('"max_steps": 33') == 1
    assert set(service.post("/presets/delete", {"name": "mine"}).json()) == shipped
    assert service.post("/presets/delete", {"name": "mine"}).status_code == 422


def test_a_zip_is_taken_as_it_is(service):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted((PICTURES / "striped").iterdir())[:4]:
            archive.write(path, f"some/{path.name}")
    answers = [service.client.post(f"{PREFIX}/pictures?name=mine", content=buffer.getvalue(), headers={"Content-Type": "application/zip"}) for _ in "12"]
    assert [answer.json()["dataset"] for answer in answers] == ["mine", "mine-2"]
    assert sorted(path.name for path in (service.folders.pictures / "mine-2").iterdir()) == ["01.png", "01.txt", "02.png", "02.txt"]
    assert [path.name for path in service.folders.data.iterdir()] == ["pictures"]  # nothing temporary is left


def test_an_untrained_network_has_the_structure_that_was_asked_for_and_changes_nothing(service):
    made = service.post("/create", {"name": "new", "per_layer": False, "target_layers": ["attn2"], "layer_structure": [1, 2, 1], "seed": 5})
    assert made.status_code == 200 and made.json()["step"] == 0 and made.json()["structure"]["layer_structure"] == [1, 2, 1]
    network = load(service.folders.networks / "new.safetensors")
    assert list(network.widths) == [128]  # the embedded model's context
    assert not network.pair(128)[0].linear[1].weight.any()
    assert service.post("/create", {"name": "new"}).status_code == 409
    assert service.post("/create", {"name": "new", "overwrite": True, "per_layer": True}).json()["per_layer"]


def test_a_network_made_anew_is_not_trained_on_from_an_older_runs_state(service):
    service.upload()
    service.post("/train", QUICK | {"name": "one", "dataset": "striped"})
    assert service.jobs.current.wait(60)
    state = RunFolder(service.folders.runs, "one").state_path
    assert state.exists()
    (service.folders.networks / "one.safetensors").unlink()
    assert service.post("/create", {"name": "one"}).status_code == 409
    assert service.post("/train", QUICK | {"name": "one", "dataset": "striped"}).status_code == 409
    assert service.post("/create", {"name": "one", "overwrite": True}).status_code == 200 and not state.exists()


def test_converting_there_and_back_keeps_the_weights(service):
    service.post("/create", {"name": "new", "per_layer": False, "weight_initialization": "Normal"})
    assert service.post("/convert", {"name": "new"}).json()["file"] == "new.pt"
    assert service.post("/convert", {"name": "new"}).status_code == 409
    before = load(service.folders.networks / "new.safetensors").state_dict()
    (service.folders.networks / "new.safetensors").unlink()
    service.catalog.refresh()
    assert service.post("/convert", {"name": "new", "format": "safetensors"}).json()["file"] == "new.safetensors"
    after = load(service.folders.networks / "new.safetensors").state_dict()
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
    assert service.post("/convert", {"name": "new", "format": "safetensors"}).status_code == 422
    assert service.post("/convert", {"name": "new", "format": "exe"}).status_code == 422


def test_options_and_presets_are_those_of_the_configuration(service):
    shown = service.get("/options").json()
    assert list(shown) == list(OPTIONS)
    assert shown["max_steps"] == {
        "type": "integer", "minimum": 1, "maximum": 10_000_000, "title": "Steps", "description": OPTIONS["max_steps"].help, "default": 1000,
        "group": "Training",
    }  # fmt: skip
    assert shown["layer_structure"]["items"]["type"] == "number" and shown["loss"]["enum"] == ["mse", "huber", "l1", "log_cosh"]
    assert service.get("/presets").json()["Subject"]["options"]["target_layers"] == ["attn2"]
    schema = service.client.get("/openapi.json").json()["paths"][f"{PREFIX}/train"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {*OPTIONS, "preset", "resume", "overwrite"}


def test_a_preset_is_where_options_start_from(waiting):
    job = waiting.post("/train", {"name": "a", "dataset": "striped", "preset": "subject", "max_steps": 7}).json()
    assert (job["options"]["target_layers"], job["options"]["max_steps"]) == (["attn2"], 7)
    waiting.end()
    assert waiting.post("/train", {"name": "a", "dataset": "striped", "preset": "sbject"}).status_code == 422


def test_a_run_is_stopped_and_saved_and_one_that_has_ended_stays_as_it_is(service):
    service.upload()
    service.post("/train", QUICK | {"name": "long", "dataset": "striped", "max_steps": 100_000})
    while service.get("/jobs/1").json()["step"] < 2:
        assert service.jobs.current.running
    assert service.post("/jobs/1/stop").json()["ending"] in ("stop", None)
    assert service.jobs.current.wait(60)
    ended = service.post("/jobs/1/cancel").json()
    assert ended["state"] == "stopped" and ended["file"] == "long.safetensors"
    assert service.get("/network", name="long").json()["step"] == ended["step"]


def test_what_is_prepared_is_not_counted_as_steps(host, tmp_path):
    class Preparing(Trainer):
        def run(self, host, resume, overwrite):
            yield Progress("preparing", 5, 20, "pictures")
            assert self.end.wait(60)

    service = Service(host, tmp_path, make_trainer=Preparing)
    dataset = service.upload().json()["dataset"]
    service.post("/train", {"name": "a", "dataset": dataset, "max_steps": 7})
    while (job := service.get("/jobs/1").json())["preparing"] is None:
        assert job["state"] == "running"
    assert job["preparing"] == {"done": 5, "total": 20, "what": "pictures"} and (job["step"], job["steps"]) == (0, 7)
    service.end()



# What it costs


def test_importing_the_routes_loads_nothing_heavy():
    code = "import sys, hypernetworks.api, hypernetworks.access; print(sorted({'torch', 'fastapi', 'pydantic', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
