"""REST in a web UI: behind the web UI's own passwords, and A1111's routes only where the host has lost them."""
import base64

import pytest

pytest.importorskip("gradio", reason="a web UI is made of it")

import web_ui
from fastapi import FastAPI
from fastapi.testclient import TestClient
from web_ui.shelf import fill

from hypernetworks.files import load

OURS = "/hypernetworks/api/networks"
SDAPI = "/sdapi/v1/hypernetworks"
POSTS = ("/sdapi/v1/create/hypernetwork", "/sdapi/v1/train/hypernetwork")


def own_routes(kind, answers):
    """What the web UI's own API has of these (modules/api/api.py:209 and 230); on Forge two of them end in a NameError."""

    def get_hypernetworks():
        return [{"name": "the web UI's", "path": ""}]

    def lost():
        raise NameError(kind)

    post = (lambda: {"info": "the web UI's"}) if kind == "a1111" else lost
    answers.add_api_route(SDAPI, get_hypernetworks, methods=["GET"])
    for path in POSTS:
        answers.add_api_route(path, post, methods=["POST"])


def client(ui, **app_state):
    """Of the app as the web UI has it when the callbacks are called."""
    app = FastAPI()
    vars(app).update(app_state)
    own_routes(ui.kind, app)
    ui.part("script_callbacks").app_started_callback(None, app)
    return TestClient(app, raise_server_exceptions=False)


def basic(text):
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.fixture(params=["a1111", "forge"])
def kind(request):
    return request.param


@pytest.fixture
def ui(kind, tmp_path):
    with web_ui.started(kind, tmp_path, api=True) as ui:
        fill(ui)
        yield ui


def test_without_the_web_uis_api_there_is_none_of_ours(kind, tmp_path):
    with web_ui.started(kind, tmp_path) as ui:
        assert client(ui).get(OURS).status_code == 404
        assert client(ui).get(SDAPI).json()[0]["name"] == "the web UI's"


@pytest.mark.parametrize("flag", ["api", "nowebui"])
def test_with_it_there_is(kind, tmp_path, flag):
    with web_ui.started(kind, tmp_path, **{flag: True}) as ui:
        fill(ui)
        assert [one["name"] for one in client(ui).get(OURS).json()] == ["all", "foreign", "ink", "oil", "xl"]


def test_a1111_keeps_its_own_routes_and_forge_gets_ours(ui):
    answers = client(ui)
    listed, made = answers.get(SDAPI).json(), answers.post(POSTS[0], json={"name": "made"})
    if ui.kind == "a1111":
        assert listed == [{"name": "the web UI's", "path": ""}] and made.json() == {"info": "the web UI's"}
        return
    assert [one["name"] for one in listed] == ["all", "foreign", "ink", "oil", "xl"]
    assert made.json()["info"].startswith("create hypernetwork filename: ") and (ui.networks / "made.safetensors").exists()
    assert answers.post(POSTS[1], json={"hypernetwork_name": "nobody"}).json()["info"].startswith("train hypernetwork error: There is no")


def test_a_network_made_by_rest_fits_the_loaded_model(ui):
    answer = client(ui).post("/hypernetworks/api/create", json={"name": "made", "per_layer": False})
    assert answer.status_code == 200
    assert list(load(ui.networks / "made.safetensors").widths) == [8, 16]
    assert ui.txt2img("a star<hypernet:made>", steps=1).comments == ""


@pytest.mark.parametrize("headers, status", [
    (basic("anna:secret"), 200), (basic("bert:word"), 200), ({"Authorization": "basic " + basic("anna:secret")["Authorization"][6:]}, 200),
    ({}, 401), (basic("anna:wrong"), 401), (basic("nobody:secret"), 401), (basic("anna:"), 401), (basic("anna"), 401), (basic(":"), 401), (basic(""), 401),
    (basic("bert:secret"), 401), ({"Authorization": "Basic"}, 401), ({"Authorization": "Basic !!!"}, 401), ({"Authorization": "Basic /w=="}, 401),
    ({"Authorization": "Bearer anna:secret"}, 401), ({"Authorization": "Bearer " + basic("anna:secret")["Authorization"][6:]}, 401),
    ({"Authorization": "Basic é".encode()}, 401), ({"Authorization": b"Basic \xff\xfe"}, 401), ({"Cookie": "access-token=t"}, 401),
], ids=str)  # fmt: skip
def test_the_passwords_of_the_api_are_asked_for(kind, tmp_path, headers, status):
    with web_ui.started(kind, tmp_path, api=True, api_auth="anna:secret,bert:word") as ui:
        answers = client(ui, auth={"x": "y"}, tokens={"t": "x"})
        assert answers.get(OURS, headers=headers).status_code == status
        posted = answers.post("/hypernetworks/api/create", headers=headers, json={"name": "../out"})
        assert posted.status_code == (422 if status == 200 else status)
        if status == 401:
            assert answers.get(OURS, headers=headers).headers["WWW-Authenticate"] == "Basic"
        if kind == "forge":
            assert answers.get(SDAPI, headers=headers).status_code == status


@pytest.mark.parametrize("cookies, cookie_id, status", [
    ({"access-token": "t"}, None, 200), ({"access-token-unsecure": "t"}, None, 200),  # gradio 3, of A1111 and reForge
    ({"access-token-abc": "t"}, "abc", 200), ({"access-token-unsecure-abc": "t"}, "abc", 200),  # gradio 4, of Forge
    ({}, None, 401), ({"access-token": "other"}, None, 401), ({"access-token-xyz": "t"}, "abc", 401), ({"session": "t"}, None, 401),
], ids=str)  # fmt: skip
def test_where_only_the_page_has_passwords_who_is_logged_in_may_call(kind, tmp_path, cookies, cookie_id, status):
    with web_ui.started(kind, tmp_path, api=True) as ui:
        about = {"auth": {"anna": "secret"}, "tokens": {"t": "anna"}} | ({"cookie_id": cookie_id} if cookie_id else {})
        answers = client(ui, **about)
        answers.cookies.update(cookies)
        assert answers.get(OURS).status_code == status


def test_without_passwords_everybody_may_call(ui):
    assert client(ui, auth=None, tokens={}).get(OURS).status_code == 200


def test_a_stranger_hears_nothing_before_the_password(kind, tmp_path):
    """Neither what is there nor that a body was read."""
    with web_ui.started(kind, tmp_path, api=True, api_auth="anna:secret") as ui:
        fill(ui)
        answers = client(ui)
        for path in ("/hypernetworks/api/create", "/hypernetworks/api/train", "/hypernetworks/api/convert", "/hypernetworks/api/pictures"):
            answer = answers.post(path, content=b"x" * (2 << 20), headers={"Content-Type": "application/json"})
            assert answer.status_code == 401 and answer.json() == {"detail": "Incorrect username or password"}


@pytest.mark.parametrize("flags, setting, shown", [({}, False, True), ({"listen": True}, False, False), ({"listen": True}, True, True)], ids=str)
def test_paths_are_shown_and_taken_only_where_the_page_is_for_this_machine(tmp_path, flags, setting, shown):
    with web_ui.started("forge", tmp_path, api=True, **flags) as ui:
        fill(ui)
        answers = client(ui)
        ui.opts.hypernetworks_client_paths = setting
        path = next(one["path"] for one in answers.get(SDAPI).json() if one["name"] == "oil")
        assert path == (str(ui.networks / "oil.safetensors") if shown else "oil.safetensors")
        asked = answers.post("/hypernetworks/api/train", json={"name": "a", "dataset": str(ui.networks), "max_steps": 1})
        assert asked.status_code == (200 if shown else 403)
        if shown:
            job = ui.extension.jobs.current
            assert job.wait(30) and "picture" in job.error


def test_reload_ui_gives_the_new_app_its_routes(ui):
    answers = client(ui)
    ui.reload()
    assert len(ui.part("script_callbacks").callback_map["callbacks_app_started"]) == 1
    assert client(ui).get(OURS).status_code == answers.get(OURS).status_code == 200
