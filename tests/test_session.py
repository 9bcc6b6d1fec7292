"""From names to changed pictures and back: what a session puts on a host's UNet, when, on which rows, and that it comes off."""
import numpy as np
import pytest
import torch
from models import hooks

from hypernetworks.attention import ResidualEdit, Strength, attached
from hypernetworks.errors import HypernetworkError, ModelUnfit
from hypernetworks.host import GenerationRequest, PictureSize
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.prompt import ActiveNetwork
from hypernetworks.residual import ResidualHypernetwork, ResidualStructure
from hypernetworks.session import Session

STAR = GenerationRequest("a large red star", steps=4, cfg_scale=3.0, width=64, height=64, seed=7)
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"


def network(name, widths, seed):
    made = ResidualHypernetwork(widths, ResidualStructure(activation="relu"), initialization="KaimingNormal", seed=seed)
    made.name = name
    return made.eval()


def linear(name, widths, seed):
    made = ResidualHypernetwork(widths, ResidualStructure((1, 2, 1)), initialization="KaimingNormal", seed=seed)
    for weight in made.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    made.name = name
    return made.eval()


class StandInCatalog:
    """Networks by name."""

    def __init__(self, *networks):
        self.networks = {one.name: one for one in networks}

    def load(self, name):
        if name not in self.networks:
            raise HypernetworkError(f"There is no hypernetwork {name!r}.")
        return self.networks[name]


@pytest.fixture(scope="module")
def host():
    return DiffusersHost(device="cpu")


@pytest.fixture(scope="module")
def session():
    return Session(StandInCatalog(
        network("oil", {48: 48, 96: 96, 128: 128}, seed=1),
        network("ink", {128: 128}, seed=2),
        network("sd1", {320: 320, 640: 640, 768: 768, 1280: 1280}, seed=3),
        network("part", {96: 96, 768: 768}, seed=4),
        network("layer", {LAYER: 96}, seed=5),
        linear("straight", {48: 48, 96: 96, 128: 128}, seed=7),
        network("foreign", {f"down_blocks.{i}.attentions.7.transformer_blocks.0.attn1": 96 for i in range(6)}, seed=6),
    ))


@pytest.fixture(scope="module")
def bare(host):
    return pixels(host.generate(STAR))


@pytest.fixture(autouse=True)
def nothing_is_left(host):
    before = hooks(host.unet)
    yield
    assert hooks(host.unet) == before


def pixels(pictures):
    return [picture.tobytes() for picture in pictures]


@torch.no_grad()
def predict(host, rows=1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=generator).expand(rows, -1, -1, -1)
    conditioning = host.encode_prompts(["a star"]).rows([0] * rows)
    return host.predict(x, torch.full((rows,), 500), conditioning, [PictureSize((64, 64), (0, 0), (64, 64))] * rows)


def predict_with(host, *edits):
    with attached(host.unet, [ResidualEdit(*edit) for edit in edits]):
        return predict(host)


def test_strength_zero_gives_the_pixels_of_no_network_and_strength_one_others(host, session, bare):
    assert pixels(session.generate(host, STAR, [ActiveNetwork("oil", 0.0), ActiveNetwork("ink", 0.0)])) == bare
    assert pixels(session.generate(host, STAR, [ActiveNetwork("oil", 1.0)])) != bare
    assert pixels(session.generate(host, STAR)) == bare


def test_a_schedule_of_no_steps_gives_the_pixels_of_no_network(host, session, bare):
    assert pixels(session.generate(host, STAR, [ActiveNetwork("oil", end=0.0)])) == bare


def test_a_tag_in_the_prompt_does_what_the_panel_does_and_is_not_drawn(host, session):
    import dataclasses

    tagged = dataclasses.replace(STAR, prompt="a large red star<hypernet:oil:0.5:k=0.3>")
    by_panel = session.generate(host, STAR, [ActiveNetwork("ink", 0.7), ActiveNetwork("oil", 0.5, k=0.3)])
    assert pixels(session.generate(host, tagged, [ActiveNetwork("ink", 0.7)])) == pixels(by_panel)


def test_networks_are_chained_in_their_order_with_their_strengths(host, session):
    load = session.catalog.load
    with session.applied(host, [ActiveNetwork("oil", 0.5, k=0.2, v=0.9, input=0.1, middle=0.6, output=0.8), ActiveNetwork("ink", -0.7)]):
        found = predict(host)
    strength = Strength(0.5, 0.2, 0.9, 0.1, 0.6, 0.8)
    assert torch.equal(found, predict_with(host, (load("oil"), strength), (load("ink"), Strength(-0.7))))
    assert not torch.equal(found, predict_with(host, (load("ink"), Strength(-0.7)), (load("oil"), strength)))


def test_each_picture_of_a_batch_follows_the_tags_of_its_own_prompt_in_their_order(host, session):
    import dataclasses

    prompts = (
        "a large red star<hypernet:oil:0.6><hypernet:ink:-0.7>", "a small blue disc", "a green ring<hypernet:ink:0.4><hypernet:oil:0.6>",
        "a red ring<hypernet:oil:0.6:k=0.5:end=0.5:uncond=0>",
    )
    together = session.generate(host, dataclasses.replace(STAR, count=4, prompts=prompts))
    for number, prompt in enumerate(prompts):
        (alone,) = session.generate(host, dataclasses.replace(STAR, prompt=prompt, seed=STAR.seed + number))
        apart = np.abs(np.asarray(together[number], int) - np.asarray(alone, int)).max()
        assert apart <= 2, (prompt, apart)


def test_a_chain_holds_every_pictures_networks_in_that_pictures_order(host, session):
    oil, ink, weak = ActiveNetwork("oil"), ActiveNetwork("ink", 0.5), ActiveNetwork("oil", 0.3)
    pictures = [[oil, ink], [], [ink, weak], [ink, ink, oil]]
    links = session.prepare(host, pictures).links
    for number, wanted in enumerate(pictures):
        assert [link.active[number] for link in links if link.active[number] is not None] == wanted
    assert len(links) == 4  # oil ink ink oil: no network stands there more often than some picture needs it


def test_what_cannot_be_used_can_be_left_out_and_is_named(host, session):
    applied = session.prepare(host, [[ActiveNetwork("gone"), ActiveNetwork("oil")], [ActiveNetwork("sd1")]], leave_out=True)
    assert len(applied.links) == 1 and len(applied.notes) == 2
    assert "'gone'" in applied.notes[0] and "'sd1'" in applied.notes[1]


def test_other_settings_than_those_of_the_training_are_told(host, session):
    network = session.catalog.load("oil")
    network.metadata.update(clip_skip="2", vae="", prediction_type="epsilon")
    try:
        (note,) = session.prepare(host, [[ActiveNetwork("oil")]]).notes
        assert note == "The hypernetwork 'oil' was trained with another setting: clip skip 2, now 1."
        network.metadata.update(clip_skip="1", vae="blue.safetensors")
        (note,) = session.prepare(host, [[ActiveNetwork("oil")]]).notes
        assert "VAE blue.safetensors, now that of the checkpoint" in note
        network.metadata.update(vae="")
        assert session.prepare(host, [[ActiveNetwork("oil")]]).notes == []
    finally:
        network.metadata.clear()


def test_networks_can_be_taken_off_and_put_on_again(host, session):
    bare = predict(host)
    applied = session.prepare(host, [[ActiveNetwork("oil", 0.5)]])
    assert torch.equal(predict(host), bare)
    applied.put_on()
    applied.put_on()
    changed = predict(host)
    applied.remove()
    assert torch.equal(predict(host), bare) and not torch.equal(changed, bare)
    applied.put_on()
    assert torch.equal(predict(host), changed)
    applied.remove()


def test_a_network_works_from_its_start_to_its_end(host, session):
    bare, full = predict(host), predict_with(host, (session.catalog.load("oil"), Strength(0.8)))
    with session.applied(host, [ActiveNetwork("oil", 0.8, start=0.2, end=0.6)]) as applied:
        found = []
        for step in range(10):
            applied.at_step(step, 10)
            found.append(predict(host))
    assert not torch.equal(bare, full)
    assert [torch.equal(one, full) for one in found] == [False, False, True, True, True, True, False, False, False, False]
    assert all(torch.equal(one, bare) for one in found[:2] + found[6:])


def test_without_uncond_only_the_rows_of_the_prompt_are_changed(host, session):
    outputs = []
    handle = host.unet.register_forward_hook(lambda module, inputs, output: outputs.append(output.sample.clone()))
    try:
        for active in ([], [ActiveNetwork("oil", uncond=False)], [ActiveNetwork("oil")]):
            session.generate(host, STAR, active)
    finally:
        handle.remove()
    none, cond_only, both = (outputs[i * STAR.steps] for i in range(3))  # the first step's, from the same noise
    torch.testing.assert_close(cond_only[0], none[0])
    torch.testing.assert_close(cond_only[1], both[1])
    assert not torch.allclose(none[1], both[1], atol=1e-3) and not torch.allclose(none[0], both[0], atol=1e-3)


def test_a_file_may_ask_to_leave_the_negative_rows_alone_and_the_user_may_overrule_it(host, session):
    network = session.catalog.load("oil")
    expected = {said: pixels(session.generate(host, STAR, [ActiveNetwork("oil", uncond=said)])) for said in (True, False)}
    assert pixels(session.generate(host, STAR, [ActiveNetwork("oil")])) == expected[True]
    network.metadata["uncond"] = "no"
    try:
        assert pixels(session.generate(host, STAR, [ActiveNetwork("oil")])) == expected[False]
        assert pixels(session.generate(host, STAR, [ActiveNetwork("oil", uncond=True)])) == expected[True]
    finally:
        del network.metadata["uncond"]


def test_without_guidance_there_is_no_row_to_leave_alone(host, session):
    import dataclasses

    request = dataclasses.replace(STAR, cfg_scale=1.0)
    assert pixels(session.generate(host, request, [ActiveNetwork("oil", uncond=False)])) == pixels(
        session.generate(host, request, [ActiveNetwork("oil")]))


def test_a_network_for_another_model_is_refused_with_what_the_model_lacks_and_has(host, session):
    with pytest.raises(ModelUnfit) as raised, session.applied(host, [ActiveNetwork("sd1")]):
        pass
    assert "'sd1'" in str(raised.value) and "320, 640, 768, 1280" in str(raised.value) and "48, 96, 128" in str(raised.value)
    with pytest.raises(ModelUnfit, match="layers .* and 2 more"), session.applied(host, [ActiveNetwork("foreign")]):
        pass


def test_a_network_that_fits_in_part_works_and_says_what_is_left_unused(host, session):
    bare = predict(host)
    with session.applied(host, [ActiveNetwork("part"), ActiveNetwork("oil", 0.0)]) as applied:
        changed = predict(host)
    assert applied.notes == ["Of the hypernetwork 'part' 1 of 2 widths are left unused: the model embedded has no width 768."]
    assert not torch.equal(bare, changed)


def test_a_linear_network_works_as_it_stands_in_its_file_in_one_layer(host, session):
    with session.applied(host, [ActiveNetwork("straight", 0.8)]) as applied:
        assert applied.links[0].edit.network.structure.layer_structure == (1, 1)
        found = predict(host)
    network = session.catalog.load("straight")
    assert network.structure.layer_structure == (1, 2, 1)
    torch.testing.assert_close(found, predict_with(host, (network, Strength(0.8))), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, predict(host), atol=1e-2)


def test_a_linear_network_is_evaluated_layer_by_layer_where_that_is_asked_for(host, session):
    """Bit for bit, and from the next picture on."""
    asked = []
    exact = Session(session.catalog, lambda: bool(asked))
    network, active = session.catalog.load("straight"), [ActiveNetwork("straight", 0.8)]
    for layers in ((1, 1), (1, 2, 1), (1, 1)):
        with exact.applied(host, active) as applied:
            assert applied.links[0].edit.network.structure.layer_structure == layers
            found = predict(host)
        assert torch.equal(found, predict_with(host, (network, Strength(0.8)))) is (len(layers) == 3)
        asked[:] = [] if asked else [True]


def test_over_the_steps_of_a_picture_the_context_is_evaluated_once(host, session):
    with session.applied(host, [ActiveNetwork("ink", 0.7)]) as applied:
        for step in range(4):
            applied.at_step(step, 4)
            found = predict(host)
        assert applied._attachment.evaluations == 2  # K and V
    assert torch.equal(found, predict_with(host, (session.catalog.load("ink"), Strength(0.7))))


def test_a_network_per_layer_changes_its_layer(host, session):
    with session.applied(host, [ActiveNetwork("layer")]) as applied:
        assert applied.notes == []
        found = predict(host)
    assert torch.equal(found, predict_with(host, (session.catalog.load("layer"), Strength())))
    assert not torch.equal(found, predict(host))


def test_a_missing_network_is_named_and_nothing_is_put_on(host, session):
    before = predict(host)
    with pytest.raises(HypernetworkError, match="'gone'"), session.applied(host, [ActiveNetwork("oil"), ActiveNetwork("gone")]):
        pass
    assert torch.equal(predict(host), before)


def test_after_an_exception_the_unet_is_bare(host, session, bare):
    def interrupt(step, steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.generate(host, STAR, [ActiveNetwork("oil")], interrupt)
    assert pixels(host.generate(STAR)) == bare


def test_the_callers_own_step_callback_is_called_too(host, session):
    steps = []
    session.generate(host, STAR, [ActiveNetwork("oil")], lambda *step: steps.append(step))
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_networks_follow_the_hosts_dtype_and_the_catalogs_stay_as_they_were(session):
    host = DiffusersHost(device="cpu", dtype=torch.bfloat16)
    with session.applied(host, [ActiveNetwork("oil", 0.5)]):
        assert predict(host).dtype == torch.bfloat16
    assert {p.dtype for p in session.catalog.load("oil").parameters()} == {torch.float32}
