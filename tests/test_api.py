"""REST: what a client gets, what it is refused, and that nobody gets past the guards. The model is the embedded one."""
import asyncio
import base64
import io
import json
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager

import pytest

pytest.importorskip("fastapi", reason="the routes need FastAPI, which comes with gradio")

from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hypernetworks import rest
from hypernetworks.access import client_folder, picture_folders
from hypernetworks.api import OPTIONS, PREFIX, SDAPI, ApiParts, router, sdapi_router
from hypernetworks.catalog import Catalog
from hypernetworks.checkpoint import RunFolder
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import AccessRefused, ConfigError, TrainingFailed
from hypernetworks.files import load, short_hash
from hypernetworks.host import Folders
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.jobs import Jobs
from hypernetworks.sdapi import target_layers, training
from hypernetworks.trainer import Progress

USERS = {"ada": "swörd", "bob": "fish"}
QUICK = {"max_steps": 3, "batch_size": 1, "preview_every": 0, "validation_every": 0, "checkpoint_every": 0}
JSON = {"Content-Type": "application/json"}
EMPTY = {"properties": {}}
NAMES = st.one_of(
    st.text(max_size=20),
    st.lists(st.sampled_from(["..", "/", "\\", "C:", ".", "~", "\0", "etc", "passwd", "CON", "∕", "․․", "％2e", "striped", " "]), max_size=6).map("".join),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


class Trainer:
    """Stands in where only the start of a run matters: its run goes on until it is stopped."""

    def __init__(self, config):
        self.config, self.end = config, threading.Event()

    def run(self, host, resume, overwrite):
        assert self.end.wait(60)
        return iter(())

    def stop(self):
        self.end.set()

    cancel = stop


class Service:
    """The routes on the embedded model, with folders of the test's own, and a client."""

    def __init__(self, host, folder, guards=(), client_paths=False, make_trainer=None):
        host.folders = self.folders = Folders.below(folder)
        self.host, self.jobs, self.catalog = host, Jobs(host, make_trainer), Catalog(self.folders.networks)
        self.allowed = client_paths
        self.parts = ApiParts(host, self.jobs, self.catalog, guards, lambda: self.allowed)
        self.app = FastAPI()
        self.app.include_router(router(self.parts))
        self.app.include_router(sdapi_router(self.parts))
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def get(self, path, **query):
        return self.client.get(PREFIX + path, params=query)

    def post(self, path, body=None, **query):
        return self.client.post(PREFIX + path, json=body or {}, params=query)

    def upload(self, name="striped", files=None):
        return self.post("/pictures", {"files": files or pictures()}, name=name)

    def end(self):
        job = self.jobs.current
        if job is not None and job.running:
            job.cancel()
            assert job.wait(60)


def pictures(count=4):
    return [encoded(path.name, path.read_bytes()) for path in sorted((PICTURES / "striped").iterdir())[: 2 * count]]


def encoded(name, data):
    return {"name": name, "data": base64.b64encode(data).decode()}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return DiffusersHost(None, Folders.below(tmp_path_factory.mktemp("home")), device="cpu")


@pytest.fixture
def service(host, tmp_path):
    found = Service(host, tmp_path)
    yield found
    found.end()


@pytest.fixture
def waiting(host, tmp_path):
    """With runs that go on until they are stopped."""
    found = Service(host, tmp_path, make_trainer=Trainer)
    assert found.upload().status_code == 200
    yield found
    found.end()


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
    assert shown["layer_structure"]["items"]["type"] == "number" and shown["loss"]["enum"] == ["mse", "huber", "l1"]
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


# What is refused


def test_two_runs_at_once_are_one_too_many(waiting):
    answers, together = [], threading.Barrier(2)

    def start(name):
        together.wait()
        answers.append(waiting.post("/train", {"name": name, "dataset": "striped"}))

    threads = [threading.Thread(target=start, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    assert [answer.json()["error"] for answer in answers if answer.status_code == 409] == ["HostBusy"]


def test_a_busy_model_is_not_waited_for_by_many(waiting):
    waiting.post("/train", {"name": "a", "dataset": "striped"})
    assert waiting.post("/create", {"name": "b"}).status_code == 409
    waiting.end()
    with waiting.host.exclusive():
        assert waiting.post("/create", {"name": "b"}).json()["error"] == "HostBusy"
    assert waiting.post("/create", {"name": "b"}).status_code == 200


def test_where_a_host_makes_requests_wait_only_one_does(service, monkeypatch):
    waits, gate, answers = threading.Event(), threading.Event(), []

    @contextmanager
    def exclusive():
        waits.set()
        assert gate.wait(60)
        yield

    monkeypatch.setattr(service.host, "exclusive", exclusive)
    first = threading.Thread(target=lambda: answers.append(service.post("/create", {"name": "a"})))
    first.start()
    assert waits.wait(60)
    threading.Timer(5, gate.set).start()  # a second one that waits too would get its network then
    assert service.post("/create", {"name": "b"}).json()["error"] == "HostBusy"
    gate.set()
    first.join()
    assert answers[0].status_code == 200


def test_the_model_is_held_while_a_network_is_made_for_it(service, monkeypatch):
    held = []
    monkeypatch.setattr(type(service.host), "unet", property(lambda host: held.append(host._job.locked()) or host._loaded().unet))
    assert service.post("/create", {"name": "b"}).status_code == 200
    assert held and all(held)


@pytest.mark.parametrize("body, status, words", [
    ({"name": "a", "dataset": "striped", "max_stps": 3}, 422, "max_steps"),
    ({"name": "a", "dataset": "striped", "max_steps": 0}, 422, "whole number from 1"),
    ({"name": "a", "dataset": "striped", "max_steps": float("1e400")}, 400, "JSON"),
    ({"name": "a", "dataset": "striped", "clip_norm": 10**400}, 422, "a number from 0"),
    ({"name": "a", "dataset": "striped", "max_steps": [3]}, 422, "whole number"),
    ({"name": "a", "dataset": "striped", "shared_caption": {"a": 1}}, 422, "text"),
    ({"name": "a", "dataset": "striped", "resume": "yes"}, 422, "true or false"),
    ({"name": "a"}, 422, "dataset"),
    ({"name": "", "dataset": "striped"}, 422, "name"),
    ({"name": "../a", "dataset": "striped"}, 422, "/"),
    ({"name": "con", "dataset": "striped"}, 422, "reserved"),
    ({"name": "a", "dataset": "../pictures/striped"}, 403, "send the pictures first"),
    ({"name": "a", "dataset": "/etc"}, 403, "send the pictures first"),
])  # fmt: skip
def test_a_run_that_cannot_be_is_refused_with_a_sentence(waiting, body, status, words):
    answer = waiting.client.post(f"{PREFIX}/train", content=json.dumps(body), headers=JSON)
    assert answer.status_code == status and words in answer.json()["detail"] and answer.json()["detail"].endswith((".", "?"))
    assert waiting.jobs.current is None


def test_a_number_too_large_for_python_is_no_error_inside(waiting):
    answer = waiting.client.post(f"{PREFIX}/train", content=b'{"name": "a", "dataset": "striped", "max_steps": 1e999}', headers=JSON)
    assert answer.status_code == 422 and "max_steps" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "..\\..\\secret", "/etc/passwd", "secret", "\0", "", "data/x", "ｎew", "x" * 5000])
def test_only_listed_names_lead_to_files(service, name):
    service.post("/create", {"name": "new", "per_layer": False})
    (service.folders.networks.parent / "secret.safetensors").write_bytes((service.folders.networks / "new.safetensors").read_bytes())
    for answer in (service.get("/network", name=name), service.post("/convert", {"name": name})):
        assert (answer.status_code, answer.json()["error"]) == (404, "NotThere")
        assert str(service.folders.networks.parent) not in answer.text


@pytest.mark.parametrize("path", ["/jobs/1", "/jobs/-1", "/jobs/1/previews/0", "/network?name=x"])
def test_what_is_not_there_is_404(service, path):
    assert service.client.get(PREFIX + path).status_code == 404


def test_only_the_pictures_that_a_run_lists_are_sent(service):
    service.upload()
    service.post("/train", QUICK | {"name": "a", "dataset": "striped", "preview_every": 3, "preview_steps": 1, "preview_prompts": "a star"})
    assert service.jobs.current.wait(60)
    assert [service.get(f"/jobs/1/previews/{index}").status_code for index in (0, 1, 2, -1, -2, 10**30)] == [200, 200, 404, 404, 404, 404]
    assert service.get("/jobs/1/previews/..%2f..%2fconfig.json").status_code in (404, 422)
    service.jobs.current.previews[0].path.unlink()
    assert service.get("/jobs/1/previews/0").status_code == 404


def test_another_sites_page_cannot_post(waiting):
    """A form of another site sends these types without asking the web UI; JSON it may not send without that."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None):
        for path in ("/train", "/create", "/convert", "/jobs/1/stop", "/jobs/1/cancel", "/pictures"):
            headers = {} if kind is None else {"Content-Type": kind}
            answer = waiting.client.post(PREFIX + path, content=b'{"name": "a", "dataset": "striped"}', headers=headers)
            assert (answer.status_code, answer.json()["error"]) == (400, "BodyRefused")
    assert waiting.jobs.current is None


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"name": NaN}', b"3", b'"a"', b"null"])
def test_what_is_no_json_object_is_refused(service, data):
    for path in ("/create", "/train", "/pictures"):
        answer = service.client.post(PREFIX + path, content=data, headers=JSON)
        assert (answer.status_code, answer.json()["error"]) == (400, "BodyRefused")


@pytest.mark.parametrize("files", [3, [3], [{}], [{"name": 3, "data": ""}], [{"name": "a.png", "data": "?"}], [{"name": "a.png", "data": 3}], {"a": "b"}])
def test_files_of_another_form_are_refused(service, files):
    assert service.post("/pictures", {"files": files}).json()["error"] == "BodyRefused"


def test_sent_names_lead_nowhere_else(service):
    picture = (PICTURES / "striped" / "01.png").read_bytes()
    hostile = ["../../a.png", "/etc/b.png", "C:\\c.png", "d\0.png", "..png", "nul.png", "e.png/", "f.sh", "g.p\0ng", "", "h.PNG", "i.png", "i.png"]
    answer = service.upload("../../x", [encoded(name, picture) for name in hostile])
    folder = service.folders.pictures / answer.json()["dataset"]
    assert folder.resolve().parent == service.folders.pictures.resolve()
    assert sorted(path.name for path in folder.iterdir()) == sorted(answer.json()["files"])
    assert sorted(answer.json()["files"]) == ["_.png", "_nul.png", "a.png", "b.png", "c.png", "d.png", "h.png", "i (2).png", "i.png"]
    assert {one["name"] for one in answer.json()["left_out"]} == {"e.png/", "f.sh", "g.p\0ng", ""}
    assert sorted(path.name for path in service.folders.data.rglob("*") if path.is_dir()) == sorted(["pictures", folder.name])


def test_nothing_stays_of_an_upload_without_pictures(service):
    for body in ({"files": []}, {"files": [encoded("a.sh", b"")]}):
        assert service.post("/pictures", body).json()["error"] == "DatasetError"
    broken = service.client.post(f"{PREFIX}/pictures", content=b"PK", headers={"Content-Type": "application/zip"})
    assert broken.status_code == 400 and list(service.folders.data.rglob("*")) == [service.folders.pictures]


def test_a_body_is_read_no_further_than_its_limit(service, monkeypatch):
    monkeypatch.setattr(rest, "LARGEST_JSON", 1000)
    sent = []

    def blocks():
        for _ in range(100):
            sent.append(1)
            yield b" " * 100

    announced = service.client.post(f"{PREFIX}/train", content=b" " * 1001, headers=JSON)
    unannounced = service.client.post(f"{PREFIX}/train", content=blocks(), headers=JSON)
    assert announced.status_code == unannounced.status_code == 413
    assert service.client.post(f"{PREFIX}/train", content=b" " * 1000, headers=JSON).status_code == 400


def test_an_upload_is_read_no_further_than_its_limit(host, tmp_path):
    routes = rest.Routes("", (), str)
    routes.upload("/up", lambda kind, body, name: {"size": body.stat().st_size}, {"application/zip": 1000}, lambda: tmp_path)
    app = FastAPI()
    app.include_router(routes.router)
    client = TestClient(app)
    codes = [client.post("/up", content=iter([b"x" * size]), headers={"Content-Type": "application/zip"}).status_code for size in (1000, 1001)]
    assert codes == [200, 413] and list(tmp_path.iterdir()) == []


# Who may call


def routes_of(parts):
    return [(method, route.path) for one in (router(parts), sdapi_router(parts)) for route in one.routes for method in route.methods]


def asgi(app, method, path, headers=(), size=2):
    """The status, with a body of so many bytes that must not be asked for."""
    sent = []

    async def call():
        async def receive():
            raise AssertionError("the body was read")

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(size).encode()), *headers], "client": ("192.0.2.1", 1),
            "server": ("localhost", 80), "http_version": "1.1", "asgi": {"version": "3.0"}, "extensions": {}, "state": {},
        }  # fmt: skip
        await app(scope, receive, send)

    asyncio.run(call())
    return sent[0]["status"]


def test_every_route_asks_the_guards_before_it_reads_anything(host, tmp_path):
    service = Service(host, tmp_path, [rest.basic_auth(USERS)])
    found = routes_of(service.parts)
    assert len(found) >= 17
    for method, path in found:
        path = path.replace("{number}", "1").replace("{index}", "0")
        assert asgi(service.app, method, path) == 401
        wrong = base64.b64encode(b"ada:fish")
        assert asgi(service.app, method, path, [(b"authorization", b"Basic " + wrong)]) == 401


def test_a_body_that_says_it_is_too_large_is_not_read_at_all(service):
    assert asgi(service.app, "POST", f"{PREFIX}/train", size=rest.LARGEST_JSON + 1) == 413
    assert asgi(service.app, "POST", f"{PREFIX}/pictures", size=10**30) == 413


def test_routes_moved_to_the_front_of_an_app_keep_their_guards(host, tmp_path):
    """As an extension has to do where the web UI has routes of its own there that no longer work."""
    service, app = Service(host, tmp_path, [rest.basic_auth(USERS)]), FastAPI()
    app.add_api_route(SDAPI[2], lambda: "the web UI's own", methods=["POST"])
    app.router.routes[:0] = sdapi_router(service.parts, SDAPI[2:]).routes
    assert asgi(app, "POST", SDAPI[2]) == 401


def test_all_guards_are_asked_and_who_knows_the_password_gets_in(host, tmp_path):
    asked = []
    service = Service(host, tmp_path, [rest.basic_auth(USERS), lambda: asked.append(1)])
    for user, password, status in (("bob", "fish", 200), ("bob", "Fish", 401), ("eve", "fish", 401), ("", "", 401), ("bob", "swörd", 401)):
        credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        assert service.client.get(f"{PREFIX}/version", headers={"Authorization": f"Basic {credentials}"}).status_code == status
    assert asked == [1]


def test_only_the_routes_that_a_web_ui_lost_are_added(service):
    assert [route.path for route in sdapi_router(service.parts, SDAPI[2:]).routes] == [SDAPI[2]]
    assert {route.path for route in sdapi_router(service.parts).routes} == set(SDAPI)


# Which folders


def test_a_folder_is_one_that_was_found_and_no_link(tmp_path):
    folders = Folders.below(tmp_path)
    assert picture_folders(folders) == []
    (folders.pictures / "mine" / "inner").mkdir(parents=True)
    (folders.pictures / "file").write_text("")
    (folders.pictures / "link").symlink_to(tmp_path)
    assert picture_folders(folders) == ["mine"]
    assert client_folder("mine", folders, False) == folders.pictures / "mine"
    refused = ["", ".", "..", "mine/", "mine/inner", "mine/../..", "./mine", "file", "link", "MINE", "mine ", "mine.", "ｍine", "mine\0", "~", "C:", str(tmp_path)]
    for text in refused:
        with pytest.raises(AccessRefused, match="send the pictures first"):
            client_folder(text, folders, False)
    assert client_folder(str(tmp_path), folders, True) == tmp_path
    assert client_folder("mine", folders, True) == folders.pictures / "mine"


def test_a_pictures_folder_that_is_a_link_itself_is_the_owners_choice(tmp_path):
    folders = Folders.below(tmp_path / "home")
    (tmp_path / "disk" / "mine").mkdir(parents=True)
    folders.data.mkdir(parents=True)
    folders.pictures.symlink_to(tmp_path / "disk")
    assert client_folder("mine", folders, False) == folders.pictures / "mine"


@given(NAMES)
def test_whatever_is_named_lies_directly_in_the_folder_of_pictures(tmp_path_factory, text):
    folders = Folders.below(tmp_path_factory.getbasetemp() / "named")
    (folders.pictures / "striped").mkdir(parents=True, exist_ok=True)
    try:
        found = client_folder(text, folders, False)
    except AccessRefused:
        assert text != "striped"
    else:
        assert found.resolve().parent == folders.pictures.resolve() and found.name == text == "striped"


def test_paths_of_the_machine_are_taken_only_where_that_is_allowed(waiting):
    body = {"name": "a", "dataset": str(PICTURES / "striped")}
    assert waiting.post("/train", body).status_code == 403
    waiting.allowed = True
    assert waiting.post("/train", body).status_code == 200
    assert waiting.jobs.current.config.dataset == body["dataset"]


# Never an error inside the program


@given(path=st.sampled_from(["/train", "/create", "/convert", "/pictures", "sdapi create", "sdapi train"]), known=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_makes_the_program_fail(waiting, path, known):
    names = st.sampled_from([*OPTIONS, "preset", "resume", "overwrite", "format", "files", "enable_sizes", "hypernetwork_name", "training_width", "clip_grad_value"])
    body = known.draw(st.dictionaries(names | NAMES, VALUES, max_size=5))
    url = {"sdapi create": SDAPI[1], "sdapi train": SDAPI[2]}.get(path, PREFIX + path)
    content = json.dumps(body).encode()
    answer = waiting.client.post(url, content=content, headers=JSON)
    waiting.end()
    assert answer.status_code in (200, 400, 403, 404, 409, 422), answer.text
    if answer.status_code != 200:
        assert set(answer.json()) == {"error", "detail"} and str(waiting.folders.data) not in answer.text


@given(st.sampled_from(["/network", "/jobs/1/previews/0", "/jobs/x", "/jobs"]), NAMES)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_query_makes_the_program_fail(service, path, text):
    assert service.get(path, name=text.encode("utf-8", "replace").decode()).status_code in (200, 404, 422)


def test_a_bug_is_told_without_a_word_of_its_own(service, monkeypatch, caplog):
    monkeypatch.setattr(service.catalog, "refresh", lambda: open(service.folders.data / "secret"))
    answer = service.get("/networks")
    assert answer.status_code == 500 and answer.json() == {"error": "InternalError", "detail": rest.INSIDE}
    assert "secret" in caplog.text


def test_a_runs_error_names_no_folder_of_the_machine(host, tmp_path):
    class Failing(Trainer):
        def run(self, host, resume, overwrite):
            raise TrainingFailed(f"{tmp_path / 'data' / 'runs'}/a/x.png was not saved: the disk of {tmp_path / 'networks'} is full.")
            yield

    class Broken(Trainer):
        def run(self, host, resume, overwrite):
            raise FileNotFoundError(2, "No such file", "/usr/lib/strange/file.txt")
            yield

    for trainer, words in ((Failing, "a/x.png was not saved: the disk of networks is full."), (Broken, "'file.txt'")):
        service = Service(host, tmp_path, make_trainer=trainer)
        dataset = service.upload().json()["dataset"]
        service.post("/train", {"name": "a", "dataset": dataset})
        assert service.jobs.current.wait(60)
        job = service.get("/jobs/1")
        assert job.json()["state"] == "failed" and words in job.json()["error"]
        assert str(tmp_path) not in job.text and "/usr" not in job.text


def test_a_loss_that_is_no_number_and_half_a_character_can_be_told(service):
    answer = rest.Answer({"loss": float("nan"), "curve": [(1, float("inf"))], "name": "\ud800"})
    assert json.loads(answer.body) == {"loss": None, "curve": [[1, None]], "name": "\ud800"}


# A1111's routes


def test_a1111s_client_makes_and_trains_a_network(service):
    service.upload()
    client = service.client
    made = {
        "name": "old style", "enable_sizes": ["768", "320", "640", "1280"], "overwrite_old": False, "layer_structure": "1, 2, 1", "activation_func": "relu",
        "weight_init": "XavierNormal", "add_layer_norm": True, "use_dropout": True, "dropout_structure": "0, 0.1, 0",
    }  # fmt: skip
    assert client.post(SDAPI[1], json=made).json() == {"info": "create hypernetwork filename: old style.safetensors"}
    before = load(service.folders.networks / "old style.safetensors")
    structure = before.structure
    assert list(before.widths) == [48, 96, 128]  # the embedded model's two of self-attention, and its context
    assert (structure.layer_structure, structure.activation, structure.layer_norm, structure.dropout_structure) == ((1, 2, 1), "relu", True, (0, 0.1, 0))
    assert client.post(SDAPI[1], json=made).json()["info"].startswith("create hypernetwork error: A hypernetwork named")
    assert client.get(SDAPI[0]).json() == [{"name": "old style", "path": "old style.safetensors"}]
    service.allowed = True
    assert client.get(SDAPI[0]).json()[0]["path"] == str(service.folders.networks / "old style.safetensors")
    service.allowed = False

    asked = {
        "id_task": "task(1)", "hypernetwork_name": "old style", "learn_rate": "0.001", "batch_size": 2, "gradient_step": 1, "data_root": "striped",
        "log_directory": "/somewhere", "training_width": 128, "training_height": 128, "varsize": False, "steps": 3, "clip_grad_mode": "norm",
        "clip_grad_value": "0.5", "shuffle_tags": False, "tag_drop_out": 0, "latent_sampling_method": "deterministic", "use_weight": False,
        "create_image_every": 0, "save_hypernetwork_every": 0, "template_filename": "hypernetwork.txt", "preview_from_txt2img": False,
        "preview_prompt": "", "preview_negative_prompt": "", "preview_steps": 20, "preview_sampler_name": "Euler", "preview_cfg_scale": 7,
        "preview_seed": -1, "preview_width": 512, "preview_height": 512,
    }  # fmt: skip
    answer = client.post(SDAPI[2], json=asked)
    assert answer.json() == {"info": "train hypernetwork complete: filename: old style.safetensors error: None"}
    config = service.jobs.current.config
    assert (config.learning_rate, config.clip_norm, config.sample_latents, config.resolution) == ("0.001", 0.5, False, 128)
    after = load(service.folders.networks / "old style.safetensors")
    assert after.structure == before.structure and after.step == 3
    again = client.post(SDAPI[2], json=asked | {"steps": 5})
    assert again.json()["info"].endswith("error: None") and load(service.folders.networks / "old style.safetensors").step == 5


@pytest.mark.parametrize("changes, words", [
    ({"hypernetwork_name": "nobody"}, "There is no hypernetwork 'nobody'"),
    ({"data_root": "/etc"}, "send the pictures first"),
    ({"use_weight": True}, "use_weight"),
    ({"clip_grad_mode": "value"}, "clip_grad_mode"),
    ({"template_filename": "/etc/passwd"}, "template_filename"),
    ({"learning_rate": 1}, "learn_rate"),
    ({"steps": 0}, "max_steps"),
])  # fmt: skip
def test_what_a1111s_client_cannot_have_it_is_told_in_a1111s_way(waiting, changes, words):
    waiting.post("/create", {"name": "a", "per_layer": False})
    answer = waiting.client.post(SDAPI[2], json={"hypernetwork_name": "a", "data_root": "striped", "steps": 3} | changes)
    assert answer.status_code == 200 and answer.json()["info"].startswith("train hypernetwork error: ") and words in answer.json()["info"]
    assert waiting.jobs.current is None


def test_a_pt_is_not_trained_on_unnoticed(waiting):
    waiting.post("/create", {"name": "a", "per_layer": False})
    waiting.post("/convert", {"name": "a"})
    (waiting.folders.networks / "a.safetensors").unlink()
    waiting.catalog.refresh()
    answer = waiting.client.post(SDAPI[2], json={"hypernetwork_name": "a", "data_root": "striped"})
    assert "a.pt cannot be trained on" in answer.json()["info"] and waiting.jobs.current is None


def test_sizes_say_which_attention_is_meant():
    assert target_layers(["768"]) == target_layers([2048]) == ("attn2",)
    assert target_layers(["320", "640", "1280"]) == ("attn1",)
    assert target_layers(["768", "320"]) == ("attn1", "attn2")
    for odd in ([], "768", ["a"], [None], 3, [float("inf")]):
        with pytest.raises(ConfigError, match="enable_sizes"):
            target_layers(odd)


def test_a1111s_sides_become_a_square_of_as_many_pixels():
    assert training({"training_width": 512, "training_height": 768})["resolution"] == 627  # sqrt(393216) = 627.07
    assert training({"training_width": 640})["resolution"] == 572  # the other side is 512; sqrt(327680) = 572.4


# What it costs


def test_importing_the_routes_loads_nothing_heavy():
    code = "import sys, hypernetworks.api, hypernetworks.access; print(sorted({'torch', 'fastapi', 'pydantic', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
