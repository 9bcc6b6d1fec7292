"""Generators in a web UI's own jobs: each picture its own condition, told by the infotext, brought back by pasting it."""
import sys

import pytest
import torch

pytest.importorskip("gradio", reason="a web UI is made of it")

import web_ui
from hypothesis import given, settings
from PIL import Image
from test_prompt import networks
from web_ui.recording import NO, recorded

from hypernetworks.attention import LowRankEdit, Strength, attached
from hypernetworks.conditioning import condition_of_picture, condition_of_text
from hypernetworks.generator import Hypernetwork
from hypernetworks.generator_files import save_generator
from hypernetworks.hosts.generation import read_panel, write_panel
from hypernetworks.prompt import ConditionSource
from hypernetworks.references import References

REFERENCE, TASK = "A reference picture", "A task"


@pytest.fixture(scope="module", params=["a1111", "forge"])
def running(request, tmp_path_factory):
    with web_ui.started(request.param, tmp_path_factory.mktemp(request.param), scripts=[web_ui.LORA]) as ui:
        ui.choose("base")
        added = torch.randn(8, 16, generator=torch.Generator().manual_seed(2))
        layer = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
        sys.modules["networks"].available_networks["vivid"] = {"unet": {layer: added}, "text": {}}
        network = Hypernetwork(embedding_dim=32, hidden_dim=48, basis_size=4, tasks=("day", "night")).bind(ui.unet)
        noise = torch.Generator().manual_seed(1)
        for parameter in network.decoder.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=noise)
        save_generator(network, ui.networks / "any.safetensors")
        Image.effect_noise((48, 32), 90).convert("RGB").save(ui.networks.parent / "noise.png")
        ui.reference = References(ui.host.folders.references).keep(ui.networks.parent / "noise.png")
        yield ui


@pytest.fixture
def ui(running):
    with running.one_test():
        yield running


def edits(ui, *sources):
    """What plain hooks take, by the formula: (strength, condition)."""
    network, made = ui.extension.session.catalog.load("any"), []
    for strength, source in sources:
        if isinstance(source, str):
            condition = condition_of_text(ui.host, source)
        else:
            condition = condition_of_picture(ui.host, References(ui.host.folders.references).open(source.value))
        made.append(LowRankEdit(network.generate_weights(condition), Strength(strength)))
    return made


def answers(ui, recording, texts, wanted):
    """Every row has the answer of plain hooks with the edits of `wanted`, by the text that it sees."""
    for call, place, row in recording.rows(ui, texts):
        part = slice(place, place + 1)
        with torch.no_grad(), attached(call.unet, wanted[row.text]):
            y = None if call.y is None else call.y[part]
            alone = call.unet(call.x[part], call.timesteps[part], context=call.context[part], y=y)
        torch.testing.assert_close(call.output[part], alone, atol=1e-5, rtol=1e-5)
        if wanted[row.text]:
            assert (alone - call.again(place, [])).abs().max() > 1e-3


def test_every_picture_of_a_batch_has_the_weights_of_its_own_condition(ui):
    prompts = ["a star<hypernet:any:0.6>", "a ring", f"a moon<hypernet:any:ref={ui.reference}>"]
    with recorded() as recording:
        result = ui.txt2img(prompts, negative_prompt=NO, batch_size=3, steps=2)
    assert not result.comments
    with torch.no_grad():
        star, moon = edits(ui, (0.6, "a star")), edits(ui, (1.0, ConditionSource("reference", ui.reference)))
    wanted = {"a star": star, "a ring": [], "a moon": moon, NO[0]: star, NO[1]: [], NO[2]: moon}
    answers(ui, recording, list(wanted), wanted)


def draw(ui, *conditions, prompt="a star"):
    """With the generator in the first row of the panel, and these conditions of the rows."""
    values, start = ui.values([("any", 0.7, 0.0, 1.0)]), ui.script.args_from
    values[start + 16 : start + 16 + len(conditions)] = conditions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ui, "values", lambda *_: values)
        return ui.txt2img(prompt, steps=2)


def test_a_picture_with_a_reference_can_be_made_again_from_its_infotext(ui):
    about, asked = f"ref={ui.reference}:task2=night:blend=0.25", [REFERENCE, "", ui.reference, "", TASK, "", "", "night", 0.25]
    first = draw(ui, about)
    infotext = first.infotexts[0]
    assert f"<hypernet:any:0.7:{about}>" in infotext and first.comments == ""
    pasted = ui.part("infotext_utils").paste(infotext, ui.script.infotext_fields)
    assert pasted[:4] == ["any", 0.7, 0.0, 1.0] and pasted[16:20] == [about, "", "", ""] and pasted[20:30] == ["Hypernetwork 1", *asked]
    assert not torch.equal(draw(ui, "").latents[0], first.latents[0])
    assert torch.equal(draw(ui, *pasted[16:20]).latents[0], first.latents[0])


def test_a_pasted_condition_of_a_later_row_is_asked_about_there(ui):
    text = "a star\nSteps: 20, Sampler: Euler, CFG scale: 7, Hypernetworks: \"<hypernet:ink><hypernet:any:task=night>\", Hypernetworks hires: both passes"
    pasted = ui.part("infotext_utils").paste(text, ui.script.infotext_fields)
    assert pasted[16:20] == ["", "task=night", "", ""] and pasted[20:25] == ["Hypernetwork 2", TASK, "", "", "night"]


def test_a_picture_keeps_its_lora_while_its_condition_is_encoded(ui):
    generator, lora = "<hypernet:any:text=a ring>", "<lora:vivid:1>"
    drawn = {tags: ui.txt2img(f"a star{tags}", steps=2).latents[0] for tags in (lora + generator, generator + lora, generator, lora)}
    assert torch.equal(drawn[lora + generator], drawn[generator + lora])
    assert all((drawn[lora + generator] - drawn[alone]).abs().max() > 1e-3 for alone in (generator, lora))


@given(networks().filter(lambda one: one.name.lower() != "none"))
@settings(max_examples=60, deadline=None)
def test_what_a_network_is_made_for_comes_back_from_the_infotexts_text(active):
    found, _ = read_panel({"Steps": "4", "Hypernetworks": write_panel([active])})
    assert found == [active]


@pytest.mark.parametrize("tag, sentence", [
    ("<hypernet:any:ref=0123456789>", "0123456789 is not on this computer"), ("<hypernet:any:task=dusk>", "it knows day, night"),
    ("<hypernet:any:ref=noise.png>", "told by the ten digits"),
])  # fmt: skip
def test_a_condition_that_cannot_be_is_told_below_the_picture_and_the_picture_is_drawn(ui, tag, sentence):
    result = ui.txt2img(f"a star{tag}", steps=1)
    assert sentence in result.comments and torch.equal(result.latents[0], ui.txt2img("a star", steps=1).latents[0])


def test_a_reference_picture_that_is_still_to_be_dropped_in_is_asked_for(ui):
    assert "Drop in a reference picture first" in draw(ui, "ref=").comments
