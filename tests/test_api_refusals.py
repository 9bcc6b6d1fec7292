"""REST: what a client is refused, that nobody gets past the guards, and that nothing a client sends makes the program fail."""
import asyncio
import base64
import json
import threading
from contextlib import contextmanager

import pytest

pytest.importorskip("fastapi", reason="the routes need FastAPI, which comes with gradio")

from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_service import JSON, QUICK, Service, Trainer, encoded

from hypernetworks import rest
from hypernetworks.access import client_folder, picture_folders
from hypernetworks.api import OPTIONS, PREFIX, SDAPI, router, sdapi_router
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import AccessRefused, TrainingFailed
from hypernetworks.host import Folders

USERS = {"ada": "swörd", "bob": "fish"}
NAMES = st.one_of(
    st.text(max_size=20),
    st.lists(st.sampled_from(["..", "/", "\\", "C:", ".", "~", "\0", "etc", "passwd", "CON", "∕", "․․", "％2e", "striped", " "]), max_size=6).map("".join),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


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
    ({"name": "a", "dataset": "striped", "regularization": "/etc"}, 403, "send the pictures first"),
    ({"name": "a", "dataset": "striped", "loss_function": "os.system"}, 403, "loss_function"),
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
        for path in ("/train", "/create", "/convert", "/export", "/refine", "/references", "/jobs/1/stop", "/jobs/1/cancel", "/pictures"):
            headers = {} if kind is None else {"Content-Type": kind}
            answer = waiting.client.post(PREFIX + path, content=b'{"name": "a", "dataset": "striped"}', headers=headers)
            assert (answer.status_code, answer.json()["error"]) == (400, "BodyRefused")
    assert waiting.jobs.current is None


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"name": NaN}', b"3", b'"a"', b"null"])
def test_what_is_no_json_object_is_refused(service, data):
    for path in ("/create", "/train", "/export", "/refine", "/references", "/pictures"):
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
    assert len(found) >= 20
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
