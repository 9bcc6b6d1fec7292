"""Single-file checkpoints: recognised or refused from their header, and read without any network."""
import json
import socket

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_models import FAMILIES, make_pipeline, to_single_file, write_vocabulary

from hypernetworks.errors import ModelUnfit
from hypernetworks.host import GenerationRequest, PictureSize
from hypernetworks.hosts import vocabulary
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.hosts.single_file import recognise


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    write_vocabulary(folder)
    for family in FAMILIES:
        to_single_file(make_pipeline(family, tokens=vocabulary.SIZE), family, folder / f"{family}.safetensors")
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("something was to be downloaded")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_computes_what_its_parts_compute(checkpoints, family):
    pipeline = make_pipeline(family, tokens=vocabulary.SIZE)
    host = DiffusersHost(checkpoints / f"{family}.safetensors")
    assert (host.model.family, host.model.name) == (family, family)
    ours, theirs = host.unet.state_dict(), pipeline.unet.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    prompts = ["a red star", "a (red:1.2) star " * 60]
    conditioning = host.encode_prompts(prompts)
    contexts = []
    for tokenizer, encoder in zip(host._encoders.tokenizers, [pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)], strict=False):
        ids = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        assert ids.shape == (2, 77) and ids[0, 0] == vocabulary.SIZE - 2 and int(ids[1, -1]) == vocabulary.SIZE - 1
        output = encoder.eval()(ids, output_hidden_states=True)
        contexts.append(output.hidden_states[-2] if family == "sdxl" else output.last_hidden_state)
    torch.testing.assert_close(conditioning.context, torch.cat(contexts, -1))

    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 700])
    added = None
    if family == "sdxl":
        torch.testing.assert_close(conditioning.pooled, output.text_embeds)
        added = {"text_embeds": conditioning.pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
    expected = pipeline.unet.eval()(x, t, conditioning.context, added_cond_kwargs=added).sample
    sizes = [PictureSize((64, 64), (0, 0), (64, 64))] * 2
    torch.testing.assert_close(host.predict(x, t, conditioning, sizes), expected)

    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = pipeline.vae.eval().encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(host.encode_pictures(pixels)[0], expected)
    assert host.generate(GenerationRequest("a", steps=2, width=32, height=32))[0].size == (32, 32)


@pytest.mark.parametrize(("offset", "expected"), [(0.0, ("epsilon", 64)), (-5.0, ("v_prediction", 96))])
def test_an_sd2_file_that_does_not_say_is_asked_what_it_predicts(checkpoints, tmp_path, offset, expected):
    (tmp_path / "tokenizer").symlink_to(checkpoints / "tokenizer")
    pipeline = make_pipeline("sd2", tokens=vocabulary.SIZE)
    torch.nn.init.constant_(pipeline.unet.conv_out.bias, offset)
    torch.nn.init.zeros_(pipeline.unet.conv_out.weight)
    to_single_file(pipeline, "sd2", tmp_path / "model.safetensors")
    facts = DiffusersHost(tmp_path / "model.safetensors").model
    assert (facts.prediction_type, facts.resolution // facts.latent_factor) == expected


def test_a_yaml_beside_the_file_and_marks_within_it_say_what_it_predicts(tmp_path):
    pipeline = make_pipeline("sd2")
    to_single_file(pipeline, "sd2", tmp_path / "stated.safetensors", metadata={"modelspec.prediction_type": "v"})
    assert recognise(tmp_path / "stated.safetensors").prediction_type == "v_prediction"
    yaml = tmp_path / "stated.yaml"
    yaml.write_text("model: {params: {parameterization: eps, unet_config: {params: {num_heads: 4, num_head_channels: -1}}}}")
    recognised = recognise(tmp_path / "stated.safetensors")
    assert recognised.prediction_type == "epsilon" and recognised.heads == {"num_heads": 4}
    yaml.write_text("- nothing: [")
    with pytest.raises(ModelUnfit, match="stated.yaml"):
        recognise(tmp_path / "stated.safetensors")
    to_single_file(
        make_pipeline("sdxl"), "sdxl", tmp_path / "noob.safetensors",
        extra={"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])})
    recognised = recognise(tmp_path / "noob.safetensors")
    assert (recognised.prediction_type, recognised.zero_terminal_snr) == ("v_prediction", True)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"lora_unet_down_blocks_0.lora_down.weight": (4, 8)}, "is a LoRA"),
        ({"unet.down_blocks.0.attn1.to_k.lora_A.weight": (4, 8)}, "is a LoRA"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (8,)}, "is a Flux model"),
        ({"model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": (8, 8)}, "is a Stable Diffusion 3 model"),
        ({"control_model.input_blocks.0.0.weight": (8, 4, 3, 3)}, "is a ControlNet"),
        ({"emb_params": (1, 8)}, "is a textual inversion"),
        ({"conditioner.embedders.0.model.positional_embedding": (77, 8)}, "is the SDXL refiner"),
        ({"down_blocks.0.attentions.0.norm.weight": (8,)}, "model_index.json"),
        ({"something.else": (2, 2)}, "holds no Stable Diffusion UNet"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (8, 9, 3, 3), "x.attn2.to_k.weight": (2, 2)}, "is an inpainting model"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3), "x.attn2.to_k.weight": (2, 2)}, "has no autoencoder"),
    ],
)
def test_other_kinds_are_refused_by_name_before_anything_is_loaded(tmp_path, names, reason):
    path = tmp_path / "file.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, path)
    with pytest.raises(ModelUnfit, match=reason) as raised:
        DiffusersHost(path)
    assert "file.safetensors" in str(raised.value)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("cond_stage_model", "no text encoder"),
        ("first_stage_model.decoder", "no autoencoder"),
        ("model.diffusion_model.middle_block.1", "unusual layout"),
        ("model.diffusion_model.out.2", "weights are missing"),
    ],
)
def test_a_checkpoint_without_one_of_its_parts_is_refused(checkpoints, tmp_path, part, reason):
    from safetensors.torch import load_file

    weights = load_file(checkpoints / "sd1.safetensors")
    (tmp_path / "tokenizer").symlink_to(checkpoints / "tokenizer")
    save_file({name: weight for name, weight in weights.items() if not name.startswith(part)}, tmp_path / "part.safetensors")
    with pytest.raises(ModelUnfit, match=reason):
        DiffusersHost(tmp_path / "part.safetensors").unet  # noqa: B018


def test_without_clips_vocabulary_the_user_is_told_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "_places", lambda beside: iter([beside / "tokenizer" / "merges.txt"]))
    to_single_file(make_pipeline("sd1", tokens=vocabulary.SIZE), "sd1", tmp_path / "model.safetensors")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "merges.txt").write_text("#version: 0.2\ni n\n")  # another tokenizer's
    with pytest.raises(ModelUnfit, match="Put the folder 'tokenizer'"):
        DiffusersHost(tmp_path / "model.safetensors").unet  # noqa: B018


def test_the_vocabulary_of_an_installed_clip_gives_clips_token_numbers(tmp_path):
    try:
        merges = vocabulary.find_merges(tmp_path / "model.safetensors")
    except ModelUnfit:
        pytest.skip("CLIP's vocabulary is not on this machine")
    from transformers import CLIPTokenizer

    vocabulary.write_tokenizer(tmp_path / "tokenizer", merges, vocabulary.END)
    ids = CLIPTokenizer.from_pretrained(str(tmp_path / "tokenizer"))("a photo of a cat").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]  # OpenAI CLIP's


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200) | st.dictionaries(st.text(max_size=8), st.integers(), max_size=3).map(lambda d: json.dumps(d).encode()))
def test_damaged_files_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "file.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    with pytest.raises(ModelUnfit, match="file.safetensors"):
        recognise(path)
    path.write_bytes(data)
    with pytest.raises(ModelUnfit, match="file.safetensors"):
        recognise(path)


def test_a_pickle_is_refused_without_being_opened(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02")
    with pytest.raises(ModelUnfit, match="can run code"):
        DiffusersHost(tmp_path / "model.ckpt")
