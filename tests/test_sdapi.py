"""A1111's routes: its clients get what they ask for, or a sentence."""
import pytest

pytest.importorskip("fastapi", reason="the routes need FastAPI, which comes with gradio")

from hypernetworks.api import SDAPI
from hypernetworks.config import TrainingConfig, read
from hypernetworks.errors import ConfigError
from hypernetworks.files import load
from hypernetworks.preview_lines import PreviewLine, read_lines
from hypernetworks.sdapi import target_layers, training


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
    ({"clip_grad_mode": "both"}, "clip_grad_mode"),
    ({"clip_grad_mode": "value", "clip_grad_value": "often"}, "clip_grad_value"),
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


@pytest.mark.parametrize("mode, value, wanted", [
    ("disabled", "0.1", (0, 0, "1")), ("norm", "0.1", (0.1, 0, "1")), ("value", 0.5, (0, 0.5, "1")), ("value", "1:100, 0.1", (0, 1, "1:100, 0.1")),
    ("norm", "10:5, 1", (1, 0, "10:5, 1")),
])
def test_a1111s_clipping_is_ours(mode, value, wanted):
    config = read(TrainingConfig, training({"clip_grad_mode": mode, "clip_grad_value": value}))
    assert (config.clip_norm, config.clip_value, config.clip_schedule) == wanted


def test_a1111s_transparency_as_weight_is_a_balanced_mask():
    values = training({"use_weight": True})
    assert values["masks"] == "alpha" and values["normalize_masks"] and "masks" not in training({"use_weight": False})


def test_a1111s_sides_become_a_square_of_as_many_pixels():
    assert training({"training_width": 512, "training_height": 768})["resolution"] == 627  # sqrt(393216) = 627.07
    assert training({"training_width": 640})["resolution"] == 572  # the other side is 512; sqrt(327680) = 572.4


def test_a1111s_preview_is_a_line_with_all_that_it_said():
    given = {
        "preview_from_txt2img": True, "preview_prompt": "a fox,\nin the snow", "preview_negative_prompt": "blurry", "preview_steps": 30, "preview_sampler_name": "Euler a",
        "preview_cfg_scale": 4.5, "preview_seed": 7, "preview_width": 512, "preview_height": 768,
    }  # fmt: skip
    (line,) = read_lines(training(given)["preview_prompts"])
    assert line == PreviewLine("a fox, in the snow", "blurry", 512, 768, 7, 4.5, 30, "Euler a")
    (line,) = read_lines(training({"preview_from_txt2img": True, "preview_prompt": "a fox", "preview_seed": -1, "preview_negative_prompt": ""})["preview_prompts"])
    assert line == PreviewLine("a fox")
    assert "preview_prompts" not in training(given | {"preview_from_txt2img": False})
    with pytest.raises(ConfigError, match="--w"):
        read_lines(training(given | {"preview_width": "wide"})["preview_prompts"])
