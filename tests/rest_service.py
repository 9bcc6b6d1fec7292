"""The REST routes on the embedded model, with a client, for tests."""
import base64
import threading

from fastapi import FastAPI
from fastapi.testclient import TestClient

from hypernetworks.api import PREFIX, ApiParts, router, sdapi_router
from hypernetworks.catalog import Catalog
from hypernetworks.embedded import PICTURES
from hypernetworks.host import Folders
from hypernetworks.jobs import Jobs

QUICK = {"max_steps": 3, "batch_size": 1, "preview_every": 0, "validation_every": 0, "checkpoint_every": 0}
JSON = {"Content-Type": "application/json"}


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
