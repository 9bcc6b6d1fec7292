"""REST: what a generator makes, exported as a LoRA file. The model is the embedded one."""
import base64
import io
import json

import pytest

pytest.importorskip("fastapi", reason="the routes need FastAPI, which comes with gradio")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import generator
from PIL import Image
from rest_service import JSON, Service, encoded
from safetensors.torch import load_file
from test_api_refusals import NAMES, VALUES

from hypernetworks import received, rest
from hypernetworks.api import PREFIX
from hypernetworks.config import ExportConfig, options
from hypernetworks.embedded import PICTURES
from hypernetworks.exporting import asked, export
from hypernetworks.generator_files import save_generator
from hypernetworks.host import Folders
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.prompt import extract
from hypernetworks.references import References, reference_hash

PICTURE = PICTURES / "striped" / "01.png"
SENT = encoded("", PICTURE.read_bytes())["data"]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return DiffusersHost(None, Folders.below(tmp_path_factory.mktemp("home")), device="cpu")


@pytest.fixture
def service(host, tmp_path):
    found = Service(host, tmp_path)
    save_generator(generator(host.unet), found.folders.networks / "maker.safetensors")
    found.post("/create", {"name": "residual"})
    return found


def files(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_picture_is_sent_and_a_lora_file_is_there(service):
    answer = service.post("/export", {"generator": "maker", "name": "fox", "reference": SENT, "strength": 0.8})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    path = service.folders.loras / told["file"]
    assert told["file"] == f"fox-{told['hash']}.safetensors" and told["tag"] == f"<lora:fox-{told['hash']}:1>" and told["notes"] == []
    assert (told["rank"], told["projections"], told["size"]) == (2, len(load_file(path)) // 3, path.stat().st_size)
    hash = reference_hash(Image.open(PICTURE).convert("RGB"))
    assert told["made_of"] == f"<hypernet:maker:0.8:ref={hash}>"
    assert files(service.folders.references) == [f"{hash}.png"]
    (active,) = extract(told["made_of"])[1]
    assert export(service.host, service.catalog, active, "fox").path == path
    assert str(service.folders.networks.parent) not in answer.text


@pytest.mark.parametrize("body", [
    {"text": "a red star"}, {"task": "etching"}, {"task": "etching", "text2": "a red star", "blend": 0.25}, {"generator": "<hypernet:maker:0.5:task=fresco>"},
])  # fmt: skip
def test_the_same_is_exported_as_without_rest(service, body):
    body = {"generator": "maker", **body}
    told = service.post("/export", body).json()
    assert told["hash"] == export(service.host, service.catalog, asked(ExportConfig(**body)), "other").hash
    assert told["rank"] == (4 if "blend" in body else 2)


def test_a_picture_that_was_sent_before_is_named_by_its_hash(service):
    kept = service.post("/references", {"reference": f"data:image/png;base64,{SENT}"}).json()
    assert kept == {"reference": reference_hash(Image.open(PICTURE).convert("RGB"))}
    by_hash = service.post("/export", {"generator": "maker", "reference": kept["reference"].upper()})
    assert by_hash.json()["file"] == service.post("/export", {"generator": "maker", "reference": SENT}).json()["file"]
    assert service.post("/references", {"reference": kept["reference"]}).json() == kept
    assert service.post("/export", {"generator": "maker", "reference": "0" * 10}).status_code == 404


def test_references_may_be_larger_than_other_bodies(service, monkeypatch):
    monkeypatch.setattr(rest, "LARGEST_JSON", 1000)
    assert service.post("/references", {"reference": SENT}).status_code == 200
    assert service.client.post(f"{PREFIX}/train", content=b" " * 1001, headers=JSON).status_code == 413
    assert service.client.post(f"{PREFIX}/export", content=b" " * (received.LARGEST_REFERENCE + 1), headers=JSON).status_code == 413
    assert service.client.post(f"{PREFIX}/train?largest=100000", content=b" " * 1001, headers=JSON).status_code == 413


@pytest.mark.parametrize("body, status, words", [
    ({}, 422, "which generator"),
    ({"generator": "makr", "text": "a"}, 404, "Did you mean maker"),
    ({"generator": "<hypernet:makr>", "text": "a"}, 404, "Did you mean maker"),
    ({"generator": "../maker", "text": "a"}, 404, "There is no hypernetwork"),
    ({"generator": "residual", "text": "a"}, 422, "is no generator"),
    ({"generator": "maker"}, 422, "change with every prompt"),
    ({"generator": "maker", "text": "a", "task": "etching"}, 422, "One condition"),
    ({"generator": "maker", "task": "fresko"}, 422, "it knows etching, fresco"),
    ({"generator": "maker", "text": "a", "name": "../a"}, 422, "/"),
    ({"generator": "maker", "text": "a", "blend": 2}, 422, "from 0 to 1"),
    ({"generator": "maker", "text": "a", "strength": [1]}, 422, "a number"),
    ({"generator": "maker", "text": "a", "preset": "Style"}, 422, "preset"),
    ({"generator": "maker", "text": {}}, 422, "text"),
    ({"generator": "maker", "reference": 3}, 422, "takes text"),
    ({"generator": "maker", "reference": "/etc/passwd"}, 400, "base64"),
    ({"generator": "maker", "reference": "picture.png"}, 400, "base64"),
    ({"generator": "maker", "reference": base64.b64encode(b"no picture").decode()}, 400, "reference picture cannot be used"),
    ({"generator": "<hypernet:maker:start=0.2>", "text": "a"}, 422, "every sampling step"),
    ({"generator": "<hypernet:maker:uncond=0>", "text": "a"}, 422, "negative prompt"),
    ({"generator": "<hypernet:maker:x=1>", "text": "a"}, 400, "cannot be read"),
])  # fmt: skip
def test_what_cannot_be_exported_is_refused_with_a_sentence(service, body, status, words):
    answer = service.post("/export", body)
    assert answer.status_code == status and words in answer.json()["detail"], answer.text
    assert files(service.folders.loras) == [] and files(service.folders.references) == []
    assert str(service.folders.networks.parent) not in answer.text


def test_a_snapshot_says_what_it_leaves_out(service):
    told = service.post("/export", {"generator": "<hypernet:maker:end=0.5:task=etching>", "snapshot": True}).json()
    assert told["notes"] == ["A LoRA file acts at every sampling step, and not only from 0% to 50% of the way."]


def test_while_the_model_is_in_use_nothing_is_exported(service):
    with service.host.exclusive():
        assert service.post("/export", {"generator": "maker", "text": "a"}).json()["error"] == "HostBusy"


def test_a_generator_is_described_and_is_neither_converted_nor_merged(service):
    told = service.get("/network", name="maker").json()
    assert (told["kind"], told["structure"]["rank"], told["structure"]["tasks"]) == ("generator", 2, ["etching", "fresco"])
    assert told["layers"] == [layer.name for layer in service.catalog.load("maker").layers] and "widths" not in told
    refused = service.post("/convert", {"name": "maker"})
    assert refused.status_code == 422 and "is a generator" in refused.json()["detail"]


def test_a_picture_is_kept_upright_and_without_what_its_file_says_of_somebody(service):
    image, buffer = Image.new("RGB", (40, 20), "red"), io.BytesIO()
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = 6, "somebody's garden"  # turned by 90 degrees; a description
    image.save(buffer, "JPEG", exif=exif)
    hash = service.post("/references", {"reference": base64.b64encode(buffer.getvalue()).decode()}).json()["reference"]
    assert References(service.folders.references).open(hash).size == (20, 40)
    assert b"garden" not in (service.folders.references / f"{hash}.png").read_bytes()


@given(st.dictionaries(st.sampled_from([*options(ExportConfig)]) | NAMES, VALUES | st.sampled_from(["etching", SENT, "<hypernet:maker>"]), max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_makes_the_program_fail(service, body):
    answer = service.client.post(f"{PREFIX}/export", content=json.dumps({"generator": "maker", **body}).encode(), headers=JSON)
    assert answer.status_code in (200, 400, 404, 422), answer.text
    assert str(service.folders.data) not in answer.text
    for file in files(service.folders.loras):
        assert file.endswith(".safetensors")


def test_the_schema_is_that_of_the_options(service):
    schema = service.client.get("/openapi.json").json()["paths"][f"{PREFIX}/export"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(options(ExportConfig))
    assert schema["properties"]["blend"] == {
        "type": "number", "minimum": 0, "maximum": 1, "title": "Blend", "description": options(ExportConfig)["blend"].help,
    }  # fmt: skip
    json.dumps(schema)


# Refining


def test_a_refined_file_is_a_job_of_its_own(service):
    dataset = service.upload().json()["dataset"]
    started = service.post("/refine", {"generator": "maker", "name": "fox", "reference": SENT, "dataset": dataset, "max_steps": 3, "batch_size": 1})
    assert started.status_code == 200 and (started.json()["name"], started.json()["steps"]) == ("fox refined", 3), started.text
    assert service.jobs.current.wait(120)
    job = service.get("/jobs/1").json()
    assert (job["state"], job["step"], job["error"]) == ("finished", 3, None) and len(job["curve"]) == 3
    assert files(service.folders.loras) == [job["file"]] and job["file"].startswith("fox refined-")
    assert [one["name"] for one in service.get("/networks").json()] == ["maker", "residual"]


@pytest.mark.parametrize("body, status, words", [
    ({}, 422, "which pictures"),
    ({"dataset": "/etc"}, 403, "send the pictures first"),
    ({"max_steps": 41}, 422, "from 1 to 40"),
    ({"rank": 3}, 422, "rank"),
    ({"generator": "makr"}, 404, "Did you mean maker"),
    ({"dataset": "striped", "name": "../a"}, 422, "contains /"),
])  # fmt: skip
def test_what_cannot_be_refined_is_refused_with_a_sentence(service, body, status, words):
    service.upload()
    answer = service.post("/refine", {"generator": "maker", "task": "etching", **body})
    assert answer.status_code == status and words in answer.json()["detail"], answer.text
    assert service.jobs.current is None
