"""Generators while pictures are drawn: from text, reference or task to weights on the UNet, for each picture its own, made once."""
import copy
import dataclasses
import statistics
import time

import numpy as np
import pytest
import torch
from models import diffusers_unet, hooks
from PIL import Image

from hypernetworks import files
from hypernetworks.attention import LowRankEdit, ResidualEdit, Strength, attached
from hypernetworks.catalog import Catalog
from hypernetworks.conditioning import condition_of_picture, condition_of_task, condition_of_text
from hypernetworks.errors import HypernetworkError, ModelUnfit
from hypernetworks.generating import Conditions, GeneratedWeights, Recipe, stack
from hypernetworks.generator import Hypernetwork, apply_weights
from hypernetworks.generator_files import save_generator
from hypernetworks.host import Folders, GenerationRequest, PictureSize, Row
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.prompt import ActiveNetwork, ConditionSource
from hypernetworks.references import References
from hypernetworks.residual import ResidualHypernetwork, ResidualStructure
from hypernetworks.session import Session

STAR = GenerationRequest("a large red star", steps=4, cfg_scale=3.0, width=64, height=64, seed=7)
INK, DAY, NIGHT = ConditionSource("text", "ink on paper"), ConditionSource("task", "day"), ConditionSource("task", "night")


def generator(unet, seed=1, **changes):
    """One whose deltas change a picture by more than rounding."""
    about = dict(embedding_dim=32, hidden_dim=48, basis_size=4, tasks=("day", "night"), seed=seed)
    made = Hypernetwork(**about | changes).bind(unet)
    noise = torch.Generator().manual_seed(seed)
    for parameter in made.decoder.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=noise)
    return made.eval()


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return DiffusersHost(folders=Folders.below(tmp_path_factory.mktemp("home")), device="cpu")


@pytest.fixture(scope="module")
def session(host):
    """A catalog with generators `any`, `other` (rank 2), `pictures` (images only) and `foreign`, and the residual `oil`."""
    residual = ResidualHypernetwork({48: 48, 96: 96, 128: 128}, ResidualStructure(activation="relu"), initialization="KaimingNormal", seed=1)
    files.save(residual, host.folders.networks / "oil.safetensors")
    for name, network in {
        "any": generator(host.unet), "other": generator(host.unet, 2, rank=2, target_layers=("attn2",)),
        "pictures": generator(host.unet, 3, conditions=("image",), tasks=()), "foreign": generator(diffusers_unet(), 4),
    }.items():  # fmt: skip
        save_generator(network, host.folders.networks / f"{name}.safetensors")
    return Session(Catalog(host.folders.networks))


@pytest.fixture(scope="module")
def reference(host, tmp_path_factory):
    """A reference picture that was dropped in."""
    path = tmp_path_factory.mktemp("reference") / "noise.png"
    Image.effect_noise((160, 128), 90).convert("RGB").save(path)
    return ConditionSource("reference", References(host.folders.references).keep(path))


@pytest.fixture(autouse=True)
def nothing_is_left(host):
    before = hooks(host.unet)
    yield
    assert hooks(host.unet) == before


def pixels(pictures):
    return [picture.tobytes() for picture in pictures]


@torch.no_grad()
def predict(host, rows=1, unet=None):
    """Every row sees its own noise and the same words."""
    x = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditioning = host.encode_prompts(["a star"]).rows([0] * rows)
    if unet is not None:
        return unet(x, torch.full((rows,), 500), encoder_hidden_states=conditioning.context).sample
    return host.predict(x, torch.full((rows,), 500), conditioning, [PictureSize((64, 64), (0, 0), (64, 64))] * rows)


@torch.no_grad()
def weights_for(session, host, name, source):
    """By the formula: the encoder's features of the source through the generator."""
    network = session.catalog.load(name)
    if source.kind == "reference":
        return network.generate_weights(condition_of_picture(host, References(host.folders.references).open(source.value)))
    made = condition_of_text(host, source.value) if source.kind == "text" else condition_of_task(network, source.value)
    return network.generate_weights(made)


def test_each_kind_of_condition_acts_as_its_features_do(host, session, reference):
    bare, seen = predict(host), []
    for source in (INK, reference, DAY):
        with session.applied(host, [ActiveNetwork("any", 0.8, condition=source)]) as applied:
            seen.append(predict(host))
        with apply_weights(host.unet, weights_for(session, host, "any", source), 0.8):
            assert torch.equal(predict(host), seen[-1])
        assert applied.notes == []
    for one, another in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(seen[one], seen[another], atol=1e-3) and not torch.allclose(seen[one], bare, atol=1e-3)


def test_where_nothing_is_said_the_condition_is_the_pictures_prompt_without_its_tags(host, session):
    said = ActiveNetwork("any", condition=ConditionSource("text", "a large red star"))
    by_panel = pixels(session.generate(host, STAR, [ActiveNetwork("any")]))
    assert by_panel == pixels(session.generate(host, STAR, [said]))
    assert by_panel == pixels(session.generate(host, dataclasses.replace(STAR, prompt="<hypernet:any> a large red star ")))
    assert by_panel != pixels(session.generate(host, STAR, [ActiveNetwork("any", condition=INK)]))


def test_strength_zero_and_a_schedule_of_no_steps_change_no_bit(host, session):
    bare = pixels(host.generate(STAR))
    for active in (ActiveNetwork("any", 0.0), ActiveNetwork("any", end=0.0, condition=DAY), ActiveNetwork("any", k=0, v=0, input=0, middle=0, output=0)):
        assert pixels(session.generate(host, STAR, [active])) == bare
    assert pixels(session.generate(host, STAR, [ActiveNetwork("any")])) != bare


def test_strengths_of_parts_and_blocks_reach_the_edit(host, session):
    with session.applied(host, [ActiveNetwork("any", 0.5, k=0.2, v=0.9, input=0.1, middle=0.6, output=0.8, condition=DAY)]):
        found = predict(host)
    with apply_weights(host.unet, weights_for(session, host, "any", DAY), Strength(0.5, 0.2, 0.9, 0.1, 0.6, 0.8)):
        assert torch.equal(predict(host), found)


def test_a_residual_network_and_two_generators_act_together(host, session):
    active = [ActiveNetwork("any", 0.6, condition=DAY), ActiveNetwork("oil", 0.5), ActiveNetwork("other", -0.7, condition=INK)]
    with session.applied(host, active):
        found = predict(host)
    edits = [
        LowRankEdit(weights_for(session, host, "any", DAY), Strength(0.6)), ResidualEdit(session.catalog.load("oil"), Strength(0.5)),
        LowRankEdit(weights_for(session, host, "other", INK), Strength(-0.7)),
    ]  # fmt: skip
    with attached(host.unet, edits):
        assert torch.equal(predict(host), found)
    for left_out in range(3):
        with attached(host.unet, edits[:left_out] + edits[left_out + 1 :]):
            assert not torch.allclose(predict(host), found, atol=1e-3)


def test_a_blend_is_the_sum_of_both_deltas_at_their_shares(host, session, reference):
    first, second = weights_for(session, host, "any", reference), weights_for(session, host, "any", NIGHT)
    with session.applied(host, [ActiveNetwork("any", condition=reference, second=NIGHT, blend=0.3)]):
        found = predict(host)
    with attached(host.unet, [LowRankEdit(first, Strength(0.7)), LowRankEdit(second, Strength(0.3))]):
        torch.testing.assert_close(predict(host), found, atol=1e-5, rtol=1e-5)
    for blend, alone in ((0, first), (1, second)):
        with session.applied(host, [ActiveNetwork("any", condition=reference, second=NIGHT, blend=blend)]):
            found = predict(host)
        with apply_weights(host.unet, alone):
            assert torch.equal(predict(host), found)


def merged(host, *parts):
    """A copy of the UNet with strength · B A in its weights."""
    unet = copy.deepcopy(host.unet)
    modules = dict(unet.named_modules())
    with torch.no_grad():
        for strength, weights in parts:
            for name, (down, up) in weights.items():
                modules[name].weight += strength * up[0] @ down[0]
    return unet


def test_every_row_of_a_batch_has_the_weights_of_its_picture_in_whatever_order_rows_come(host, session, reference):
    pictures = [
        [ActiveNetwork("any", 0.8, condition=INK)], [], [ActiveNetwork("any", condition=DAY, second=reference, blend=0.25)],
        [ActiveNetwork("other", 0.5), ActiveNetwork("any", -0.5, condition=INK)],
    ]  # fmt: skip
    prompts = ["a star", "a ring", "a cross", "a blue heart"]
    ink, day, of_reference = (weights_for(session, host, "any", source) for source in (INK, DAY, reference))
    heart = weights_for(session, host, "other", ConditionSource("text", "a blue heart"))
    wanted = {0: [(0.8, ink)], 1: [], 2: [(0.75, day), (0.25, of_reference)], 3: [(0.5, heart), (-0.5, ink)]}
    applied = session.prepare(host, pictures, prompts=prompts)
    applied.put_on()
    try:
        for order in ((0, 1, 2, 3), (3, 2, 2, 0, 1), (2,), (1, 0)):
            host._rows = tuple(Row(picture, uncond) for uncond in (False, True) for picture in order)
            applied.at_step(0, 4)
            together = predict(host, 2 * len(order))
            applied.remove()
            bare = predict(host, 2 * len(order))
            for row, picture in enumerate(order * 2):
                alone = predict(host, 2 * len(order), merged(host, *wanted[picture]))[row]
                torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)
                assert torch.equal(together[row], bare[row]) if picture == 1 else not torch.allclose(together[row], bare[row], atol=1e-3)
            applied.put_on()
    finally:
        host._rows = ()
        applied.remove()


def test_each_picture_of_a_batch_is_drawn_as_it_is_alone(host, session, reference):
    prompts = (
        "a large red star<hypernet:any>", "a small blue disc", f"a green ring<hypernet:any:0.7:ref={reference.value}:task2=day:blend=0.4>",
        "a red ring<hypernet:oil:0.5><hypernet:any:task=day:end=0.5:uncond=0>",
    )  # fmt: skip
    together = session.generate(host, dataclasses.replace(STAR, count=4, prompts=prompts))
    for number, prompt in enumerate(prompts):
        (alone,) = session.generate(host, dataclasses.replace(STAR, prompt=prompt, seed=STAR.seed + number))
        apart = np.abs(np.asarray(together[number], int) - np.asarray(alone, int)).max()
        assert apart <= 2, (prompt, apart)


def test_without_uncond_only_the_rows_of_the_prompt_are_changed(host, session):
    outputs = []
    handle = host.unet.register_forward_hook(lambda module, inputs, output: outputs.append(output.sample.clone()))
    try:
        for active in ([], [ActiveNetwork("any", uncond=False)], [ActiveNetwork("any")]):
            session.generate(host, STAR, active)
    finally:
        handle.remove()
    none, cond_only, both = (outputs[i * STAR.steps] for i in range(3))  # the first step's, from the same noise
    torch.testing.assert_close(cond_only[0], none[0])
    torch.testing.assert_close(cond_only[1], both[1])
    assert not torch.allclose(none[1], both[1], atol=1e-3) and not torch.allclose(none[0], both[0], atol=1e-3)


@pytest.fixture
def generations(monkeypatch):
    """The conditions that weights were generated for."""
    seen, generate = [], Hypernetwork.generate_weights
    monkeypatch.setattr(Hypernetwork, "generate_weights", lambda network, condition: seen.append(condition) or generate(network, condition))
    return seen


def test_weights_are_generated_once_for_a_job_and_not_again_for_the_next_one(host, session, generations):
    fresh = Session(session.catalog)
    batch = dataclasses.replace(STAR, count=3, prompts=("a star<hypernet:any:0.5>", "a star<hypernet:any>", "a ring<hypernet:any:task=day>"))
    fresh.generate(host, batch)
    assert len(generations) == 2  # "a star" and the task
    fresh.generate(host, batch)
    fresh.generate(host, STAR, [ActiveNetwork("any", -0.3, start=0.2, k=0.5, condition=DAY)])
    assert len(generations) == 2
    fresh.generate(host, STAR, [ActiveNetwork("any", condition=NIGHT)])
    fresh.generate(host, STAR, [ActiveNetwork("other", condition=DAY)])
    assert len(generations) == 4


def test_a_file_that_was_replaced_makes_its_weights_anew(host, generations, tmp_path):
    session, path = Session(Catalog(tmp_path)), tmp_path / "any.safetensors"
    save_generator(generator(host.unet, seed=5), path)
    first = pixels(session.generate(host, STAR, [ActiveNetwork("any", condition=DAY)]))
    save_generator(generator(host.unet, seed=6), path, overwrite=True)
    assert pixels(session.generate(host, STAR, [ActiveNetwork("any", condition=DAY)])) != first and len(generations) == 2


def test_another_model_or_setting_of_the_encoder_makes_them_anew(host, session, generations):
    weights, network = GeneratedWeights(), session.catalog.load("any")
    weights.get(network, Recipe(INK), Conditions(host))
    weights.get(network, Recipe(INK), Conditions(host))
    assert len(generations) == 1
    for change in (dict(hash="other"), dict(vae="blue"), dict(clip_skip=2)):
        facts = dataclasses.replace(host.model, **change)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DiffusersHost, "model", property(lambda host, facts=facts: facts))
            weights.get(network, Recipe(INK), Conditions(host))
    assert len(generations) == 4


def test_only_the_last_weights_are_kept(host, session):
    weights, network, conditions = GeneratedWeights(most=2), session.catalog.load("any"), Conditions(host)
    first = [weights.get(network, Recipe(source), conditions) for source in (INK, DAY)]
    assert weights.get(network, Recipe(INK), conditions) is first[0]
    weights.get(network, Recipe(NIGHT), conditions)  # DAY was used longest ago
    assert weights.get(network, Recipe(INK), conditions) is first[0]
    assert weights.get(network, Recipe(DAY), conditions) is not first[1]


def test_kept_weights_are_found_within_a_millisecond(host, session, reference):
    weights, network, recipe = GeneratedWeights(), session.catalog.load("any"), Recipe(reference, INK, 0.3)
    weights.get(network, recipe, Conditions(host))
    times = []
    for _ in range(50):
        started = time.process_time()  # other programs do not count
        weights.get(network, recipe, Conditions(host))
        times.append(time.process_time() - started)
    assert statistics.median(times) < 1e-3


def test_a_model_that_takes_over_within_a_job_gets_the_weights_that_the_job_began_with(host, session):
    conditions, first, heirs = Conditions(host), Session(session.catalog), DiffusersHost(folders=host.folders, device="cpu")
    first.prepare(host, [[ActiveNetwork("any")]], prompts=["a star"], conditions=conditions)

    def fail(*arguments):
        raise AssertionError("nothing is encoded within a job")

    heirs.encode_prompts = heirs.encode_pictures = fail
    applied = first.prepare(heirs, [[ActiveNetwork("any")]], prompts=["a star"], conditions=conditions)
    assert applied.notes == [] and len(applied.links) == 1


def test_sets_of_different_rank_are_stacked_with_zeros(host, session):
    day, ink = (weights_for(session, host, name, source) for name, source in (("other", DAY), ("other", INK)))
    blend = session.catalog.load("other").generate_weights(condition_of_task(session.catalog.load("other"), "day").blended(
        condition_of_text(host, "ink on paper"), 0.5))
    for name, (down, up) in stack([day, blend, ink]).items():
        assert down.shape[:2] == (3, 4) and up.shape[0] == 3 and up.shape[2] == 4
        for row, one in enumerate((day, blend, ink)):
            torch.testing.assert_close(up[row] @ down[row], one[name][1][0] @ one[name][0][0])


@pytest.mark.parametrize(
    "active, sentence",
    [
        (ActiveNetwork("pictures"), "It was not made for a text: give it a reference picture."),
        (ActiveNetwork("pictures", condition=DAY), "It was not made for a task: give it a reference picture."),
        (ActiveNetwork("any", condition=ConditionSource("task", "dusk")), "knows no task 'dusk'; it knows day, night."),
        (ActiveNetwork("any", condition=ConditionSource("reference", "0123456789")), "0123456789 is not on this computer: drop it in again."),
        (ActiveNetwork("any", second=ConditionSource("task", "dusk"), blend=0.2), "knows no task 'dusk'"),
        (ActiveNetwork("foreign"), "This generator is for another model"),
    ],
)
def test_what_cannot_be_is_one_sentence_that_names_the_network_and_the_rest_still_works(host, session, active, sentence):
    bare = predict(host)
    with pytest.raises(HypernetworkError) as raised, session.applied(host, [active]):
        pass
    assert f"'{active.name}'" in str(raised.value) and sentence in str(raised.value)
    applied = session.prepare(host, [[active], [ActiveNetwork("any", condition=INK)], [active]], leave_out=True)
    assert applied.notes == [str(raised.value)] and len(applied.links) == 1
    assert [one is None for one in applied.links[0].active] == [True, False, True]
    assert torch.equal(predict(host), bare)


def test_a_damaged_reference_is_told(host, session, tmp_path):
    references = References(host.folders.references)
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "teal.png")
    name = references.keep(tmp_path / "teal.png")
    references.path(name).write_bytes(b"no picture")
    with pytest.raises(HypernetworkError, match=f"'any' cannot be used. The reference picture {name} was changed or damaged"):
        session.prepare(host, [[ActiveNetwork("any", condition=ConditionSource("reference", name))]])


def test_a_residual_network_that_is_told_a_condition_works_and_says_that_it_takes_none(host, session):
    applied = session.prepare(host, [[ActiveNetwork("oil", condition=INK)]])
    assert len(applied.links) == 1
    assert applied.notes == ["The hypernetwork 'oil' generates no weights; what its tag or row says of a condition is left unused."]


def test_a_generator_that_was_trained_for_another_vae_says_so(host, tmp_path):
    network = generator(host.unet)
    network.metadata["vae"] = "blue.safetensors"
    save_generator(network, tmp_path / "blue.safetensors")
    (note,) = Session(Catalog(tmp_path)).prepare(host, [[ActiveNetwork("blue", condition=DAY)]]).notes
    assert "VAE blue.safetensors, now that of the checkpoint" in note


def test_weights_follow_the_hosts_dtype_and_the_generator_stays_in_float32(session):
    host = DiffusersHost(device="cpu", dtype=torch.bfloat16)
    with session.applied(host, [ActiveNetwork("any", 0.5, condition=DAY)]) as applied:
        assert predict(host).dtype == torch.bfloat16
        assert {factor.dtype for pair in applied.links[0].edit.weights.values() for factor in pair} == {torch.bfloat16}
    assert {parameter.dtype for parameter in session.catalog.load("any").parameters()} == {torch.float32}


def test_weights_made_in_inference_mode_can_be_used_outside_of_it(host, session):
    weights, network = GeneratedWeights(), session.catalog.load("any")
    with torch.inference_mode():
        made = weights.get(network, Recipe(DAY), Conditions(host))
    assert not any(factor.is_inference() or factor.requires_grad for pair in made.values() for factor in pair)


def test_a_generator_for_another_model_is_refused_as_such(host, session):
    with pytest.raises(ModelUnfit):
        session.prepare(host, [[ActiveNetwork("foreign")]])
