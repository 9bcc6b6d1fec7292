"""Made-up requests by the ten thousand: every body is answered, and nothing but the folders of this installation is touched."""
import asyncio
import json

import pytest

pytest.importorskip("fastapi", reason="the routes need FastAPI, which comes with gradio")

from fuzzing import Fuzz, Mutator
from rest_service import Service, Trainer, encoded, pictures

from hypernetworks.api import OPTIONS, PREFIX, SDAPI
from hypernetworks.hosts.diffusers import DiffusersHost

pytestmark = pytest.mark.faults
CASES = 10_000
TRAIN = {"name": "a", "dataset": "striped", "max_steps": 3, "learning_rate": "1e-3:10, 1e-4", "layer_structure": [1, 2, 1], "preset": "style", "resume": False, "overwrite": True}
ROUTES = {
    f"{PREFIX}/train": TRAIN, f"{PREFIX}/refine": {"generator": "maker", "dataset": "striped", "text": "a star", "max_steps": 2, "name": "b"},
    f"{PREFIX}/convert": {"name": "new", "format": "pt", "overwrite": True}, f"{PREFIX}/export": {"generator": "maker", "reference": "0123456789", "blend": 0.5, "snapshot": True},
    f"{PREFIX}/references": {"reference": pictures(1)[0]["data"]}, f"{PREFIX}/pictures": {"files": [encoded("a.png", b"x"), *pictures(1)]},
    f"{PREFIX}/create": {"name": "../x", "layer_structure": [1, 2, 1], "activation": "relu", "overwrite": True}, f"{PREFIX}/jobs/1/stop": {}, f"{PREFIX}/jobs/1/cancel": {},
    SDAPI[1]: {"name": "x/y", "enable_sizes": ["48", "96"], "layer_structure": [1, 2, 1], "activation_func": "relu", "overwrite_old": False},
    SDAPI[2]: {"hypernetwork_name": "new", "learn_rate": "1e-4", "batch_size": 1, "data_root": "/etc", "steps": 2, "training_width": 64},
}  # fmt: skip
QUERIES = ("/network", "/jobs/1", "/jobs/1/previews/0", "/jobs", "/networks", "/pictures", "/options")


class Client:
    """Calls an app without a server, within one loop."""

    def __init__(self, app):
        self.app, self.loop = app, asyncio.new_event_loop()

    def call(self, method, path, body=b"", kind="application/json"):
        """(status, the answer's text)"""
        return self.loop.run_until_complete(self._call(method, path, body, kind))

    async def _call(self, method, path, body, kind):
        path, _, query = path.partition("?")
        sent = []
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode("utf-8", "replace"), "query_string": query.encode("utf-8", "replace"), "root_path": "",
            "scheme": "http", "headers": [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())], "client": ("192.0.2.1", 1),
            "server": ("localhost", 80), "http_version": "1.1", "asgi": {"version": "3.0"}, "extensions": {}, "state": {},
        }  # fmt: skip

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        await self.app(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    from hypernetworks.host import Folders

    return DiffusersHost(None, Folders.below(tmp_path_factory.mktemp("home")), device="cpu")


def mostly_small(body):
    """No network of gigabytes is asked for: making one is what the route is for, and takes as long as it takes."""
    structure = body.get("layer_structure") if isinstance(body, dict) else None
    return not (isinstance(structure, list) and any(isinstance(part, (int, float)) and part > 4 for part in structure))


def test_bodies(host, tmp_path, fault_counts):
    service = Service(host, tmp_path / "home", make_trainer=Trainer)
    assert service.upload().status_code == service.post("/create", {"name": "new", "per_layer": False}).status_code == 200
    client, mutator, fuzz = Client(service.app), Mutator(8), Fuzz(fault_counts, tmp_path / "home")
    paths, names = list(ROUTES), [*OPTIONS, "resume", "overwrite", "preset", "files", "name"]
    for path in paths:
        client.call("POST", path, json.dumps(ROUTES[path]).encode())
        service.end()
    for number in range(CASES):
        path = paths[number % len(paths)]
        body = mutator.changed(ROUTES[path], names) if number % 3 else {mutator.random.choice(names): mutator.value() for _ in range(3)}
        content = json.dumps(body).encode() if number % 5 and mostly_small(body) else mutator.data([json.dumps(ROUTES[path]).encode()], [b"null", b"1e999", b"NaN", b"[" * 2000, b"\xff"])
        what = (path, number, content[:300])
        status, answer = fuzz.case(what, client.call, "POST", path, content, refusals=()) or (0, b"{}")
        service.end()
        fuzz.check(what, status in (200, 400, 403, 404, 409, 413, 422), (status, answer[:300]))
        fuzz.check(what, str(tmp_path).encode() not in answer and b"/site-packages/" not in answer, answer[:300])
        fuzz.check(what, status == 200 or set(json.loads(answer)) == {"error", "detail"}, answer[:300])
        if number % 50 == 0:
            query = f"{PREFIX}{mutator.random.choice(QUERIES)}?name={mutator.text(['new', '../new'])}"
            status, answer = fuzz.case(query, client.call, "GET", query, refusals=()) or (0, b"")
            fuzz.check(query, status in (200, 404, 422), (status, answer[:300]))
    inside = {folder.name for folder in (tmp_path / "home").iterdir()}
    assert inside <= {"networks", "data", "loras"} and {path.name for path in tmp_path.iterdir()} == {"home"}
    fuzz.end()
