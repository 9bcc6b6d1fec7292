"""Exporting what a generator makes: the file does what the generator does at run time, says what it was made of, and is refused where it could not."""

import pytest
from models import generator
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from test_lora import predict
from tiny_models import make_pipeline

from hypernetworks.attention import PROJECTION, Strength
from hypernetworks.catalog import Catalog
from hypernetworks.config import ExportConfig, read
from hypernetworks.errors import ConfigError, HypernetworkError, ModelUnfit, NameRefused, NotThere
from hypernetworks.exporting import asked, export
from hypernetworks.files import save, short_hash
from hypernetworks.generator_files import save_generator
from hypernetworks.host import Folders
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.lora import lora_name
from hypernetworks.prompt import ActiveNetwork, ConditionSource, extract
from hypernetworks.references import References
from hypernetworks.residual import ResidualHypernetwork
from hypernetworks.session import Session

TEXT, OTHER, TASK = ConditionSource("text", "a red star"), ConditionSource("text", "a blue ring"), ConditionSource("task", "etching")


class Shop:
    """A host for a small model of a family, in folders of its own, with a generator called maker."""

    def __init__(self, family, home):
        self.family, self.pipeline = family, make_pipeline(family, layers_per_block=2)
        self.pipeline.save_pretrained(home / "model")
        self.pipeline.unet.eval()
        self.host = DiffusersHost(home / "model", Folders.below(home), device="cpu")
        self.catalog = Catalog(self.host.folders.networks)
        self.maker = generator(self.host.unet)
        self.maker.metadata["base_model"] = "small model"
        save_generator(self.maker, self.host.folders.networks / "maker.safetensors")

    def reference(self):
        path = self.host.folders.data / "picture.png"
        path.parent.mkdir(exist_ok=True)
        Image.radial_gradient("L").resize((90, 64)).convert("RGB").save(path)
        return ConditionSource("reference", References(self.host.folders.references).keep(path))

    def export(self, name="", snapshot=False, **active):
        return export(self.host, self.catalog, ActiveNetwork("maker", **active), name, snapshot=snapshot)

    def files(self):
        return sorted(self.host.folders.loras.iterdir()) if self.host.folders.loras.exists() else []


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def each(request, tmp_path_factory):
    return Shop(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Shop("sd1", tmp_path_factory.mktemp("sd1"))


@pytest.fixture
def shop(home):
    for file in home.files():
        file.unlink()
    return home


@pytest.mark.parametrize("how", ["text", "picture", "task", "blend"])
def test_diffusers_predicts_with_the_file_what_the_run_time_does(each, how):
    pytest.importorskip("peft")
    active = {
        "text": dict(condition=TEXT, strength=0.8, k=0.5, output=1.5),
        "picture": dict(condition=each.reference()),
        "task": dict(condition=TASK, strength=-0.7),
        "blend": dict(condition=each.reference(), second=TASK, blend=0.3),
    }[how]
    bare = predict(each.host, each.family)
    with Session(each.catalog).applied(each.host, [ActiveNetwork("maker", **active)]):
        run_time = predict(each.host, each.family)
    made = each.export(**active)
    each.pipeline.load_lora_weights(str(made.path))
    loaded = predict(each.pipeline, each.family)
    each.pipeline.unload_lora_weights()
    difference = (run_time - bare).norm()
    assert difference > 0.05 * bare.norm()
    assert (loaded - run_time).norm() < 1e-3 * difference
    assert made.rank == (4 if how == "blend" else 2) and made.projections == len(each.maker.layers)


def test_a_blend_is_the_sum_of_both_deltas_each_at_its_share(shop):
    def products(made):
        stored = load_file(made.path)
        names = {name.split(".")[0] for name in stored}
        return {name: stored[f"{name}.lora_up.weight"].float() @ stored[f"{name}.lora_down.weight"].float() for name in names}

    first, second = products(shop.export(condition=TEXT)), products(shop.export(condition=TASK))
    for name, delta in products(shop.export(condition=TEXT, second=TASK, blend=0.3)).items():
        expected = 0.7 * first[name] + 0.3 * second[name]
        assert (delta - expected).norm() < 1e-3 * expected.norm()
    whole, alone = shop.export(condition=TEXT, second=TASK, blend=1), shop.export(condition=TASK)
    assert whole.path == alone.path and whole.rank == 2


def test_strengths_are_a_part_of_the_weights(shop):
    strength = Strength(0.8, k=0.5, v=2, input=0.25, output=-1)
    plain = load_file(shop.export(condition=TEXT).path)
    with_strength = load_file(shop.export(condition=TEXT, strength=0.8, k=0.5, v=2, input=0.25, output=-1).path)
    blocks = {"down_blocks": "input", "mid_block": "middle", "up_blocks": "output"}
    for layer in shop.maker.layers:
        name = lora_name(layer.name, "sd1")
        delta, scaled = (one[f"{name}.lora_up.weight"].float() @ one[f"{name}.lora_down.weight"].float() for one in (plain, with_strength))
        factor = 0.8 * strength.factor(PROJECTION.match(layer.name)["part"], blocks[layer.name.split(".")[0]])
        assert (scaled - factor * delta).norm() < 1e-3 * abs(factor) * delta.norm()


def test_the_file_says_what_it_was_made_of(shop):
    made = shop.export(" my ink ", condition=shop.reference(), second=OTHER, blend=0.25, strength=0.8)
    assert made.path.parent == shop.host.folders.loras and made.path.name == f"my ink-{made.hash}.safetensors"
    assert made.tag == f"<lora:my ink-{made.hash}:1>" and made.notes == ()
    with safe_open(made.path, framework="pt") as file:
        about = file.metadata()
    hash = shop.reference().value
    assert about["sshs_model_hash"].startswith(made.hash) and about["ss_base_model_version"] == "sd_v1"
    assert about["ss_training_comment"] == f"Made by the hypernetwork maker for 75% of the reference picture {hash} and 25% of the text “a blue ring”."
    assert about["ss_sd_model_name"] == "small model"
    assert about["hypernetworks_generator"] == short_hash(shop.host.folders.networks / "maker.safetensors")
    text, (again,) = extract(about["hypernetworks_tag"])
    assert text == "" and export(shop.host, shop.catalog, again, "other").hash == made.hash


def test_the_same_weights_are_the_same_file_and_others_are_another(shop):
    first, again, other = shop.export(condition=TEXT), shop.export(condition=TEXT), shop.export(condition=OTHER)
    assert first.path == again.path != other.path
    assert first.path.name.startswith("maker-") and shop.files() == sorted([first.path, other.path])


def test_a_generator_in_a_folder_gives_its_file_its_own_name_only(shop):
    save_generator(shop.maker, shop.host.folders.networks / "mine" / "inner.safetensors")
    assert export(shop.host, shop.catalog, ActiveNetwork("mine/inner", condition=TEXT)).path.name.startswith("inner-")


@pytest.mark.parametrize("active, words", [
    (dict(start=0.2), "every sampling step, and not only from 20% to 100%"),
    (dict(end=0.5), "from 0% to 50%"),
    (dict(uncond=False), "negative prompt"),
    (dict(start=0.1, uncond=False), "negative prompt"),
])  # fmt: skip
def test_what_a_lora_does_not_do_is_refused_or_left_out_of_a_snapshot_that_says_so(shop, active, words):
    with pytest.raises(ConfigError, match=f"{words}.*export a snapshot"):
        shop.export(condition=TEXT, **active)
    assert shop.files() == []
    made = shop.export(condition=TEXT, snapshot=True, **active)
    assert words in " ".join(made.notes) and made.path == shop.export(condition=TEXT).path


def test_a_generator_that_leaves_the_negative_prompt_alone_is_exported_with_a_note(shop):
    shop.maker.metadata["uncond"] = "no"
    save_generator(shop.maker, shop.host.folders.networks / "shy.safetensors")
    del shop.maker.metadata["uncond"]
    shy = export(shop.host, shop.catalog, ActiveNetwork("shy", condition=TEXT))
    assert "negative prompt" in shy.notes[0]
    assert export(shop.host, shop.catalog, ActiveNetwork("shy", condition=TEXT, uncond=True)).notes == ()


@pytest.mark.parametrize("active", [{}, dict(strength=0.5), dict(second=TEXT, blend=0.5), dict(condition=TEXT, blend=0.5)])
def test_weights_that_follow_the_prompt_are_refused(shop, active):
    with pytest.raises(ConfigError, match="change with every prompt"):
        shop.export(**active)
    assert shop.files() == []


def test_what_cannot_be_exported_is_one_sentence(shop):
    networks = shop.host.folders.networks
    save(ResidualHypernetwork({32: 32}), networks / "residual.safetensors")
    save_generator(generator(make_pipeline("sd2").unet), networks / "foreign.safetensors")
    save_generator(generator(shop.host.unet, conditions=("task",)), networks / "tasks.safetensors")
    for name, active, error, words in (
        ("", dict(name="residual", condition=TEXT), ConfigError, "residual is no generator"),
        ("", dict(name="foreign", condition=TEXT), ModelUnfit, "for another model"),
        ("", dict(name="maker", condition=ConditionSource("task", "fresko")), ConfigError, "it knows etching, fresco"),
        ("", dict(name="tasks", condition=TEXT), ConfigError, "'tasks' cannot be exported. It was not made for a text"),
        ("", dict(name="maker", condition=ConditionSource("reference", "0" * 10)), NotThere, "is not on this computer"),
        ("", dict(name="makr", condition=TEXT), HypernetworkError, "Did you mean maker"),
        ("a/b", dict(name="maker", condition=TEXT), NameRefused, "/"),
        ("..", dict(name="maker", condition=TEXT), NameRefused, "dot"),
    ):
        with pytest.raises(error, match=words):
            export(shop.host, shop.catalog, ActiveNetwork(**active), name)
    assert shop.files() == []


# What a configuration asks for


def test_a_configuration_is_a_network_at_work():
    for values, active in (
        (dict(generator="a", text="b"), ActiveNetwork("a", condition=ConditionSource("text", "b"))),
        (dict(generator="a", reference="0123456789", strength=0.5), ActiveNetwork("a", 0.5, condition=ConditionSource("reference", "0123456789"))),
        (dict(generator="a", task="b", text2="c"), ActiveNetwork("a", condition=ConditionSource("task", "b"), second=ConditionSource("text", "c"), blend=0.5)),
        (dict(generator="<hypernet:a:0.8:k=0.5:task=b>", strength=0.5), ActiveNetwork("a", 0.4, 0.5, condition=ConditionSource("task", "b"))),
        (dict(generator="<hypernet:a:start=0.2>", text="c"), ActiveNetwork("a", start=0.2, condition=ConditionSource("text", "c"))),
        (
            dict(generator="<hypernet:a:task=b:text2=d:blend=0.9>", task="c"),
            ActiveNetwork("a", condition=ConditionSource("task", "c"), second=ConditionSource("text", "d"), blend=0.9),
        ),
        *(
            (values | dict(text="a"), ActiveNetwork("g", condition=ConditionSource("text", "a"), second=ConditionSource("text", "b"), blend=blend))
            for values, blend in (
                (dict(generator="<hypernet:g:text2=b>", blend=0.8), 0.8), (dict(generator="<hypernet:g:text2=b:blend=0.2>", blend=0), 0),
                (dict(generator="<hypernet:g:text2=c:blend=0.2>", text2="b"), 0.2), (dict(generator="<hypernet:g:blend=0.2>", text2="b"), 0.2),
                (dict(generator="<hypernet:g:text2=c:blend=0.2>", text2="b", blend=0.5), 0.5), (dict(generator="g", text2="b", blend="0.3"), 0.3),
            )
        ),
    ):
        assert asked(read(ExportConfig, values)) == active


@pytest.mark.parametrize("values, words", [
    (dict(text="a", task="b"), "text and task are given"),
    (dict(text="a", text2="a", reference2="0123456789"), "text2 and reference2 are given"),
    (dict(text="a", blend=0.3), "A blend of 0.3 is the share of a second condition, and none is given"),
    (dict(generator="", text="a"), "Say which generator"),
    (dict(generator="a cat <hypernet:a>"), "one tag"),
    (dict(generator="<hypernet:a> <hypernet:b>"), "one tag"),
    (dict(generator="<hypernet:a:strong>"), "cannot be read"),
    (dict(reference="picture.png"), "ten digits"),
])  # fmt: skip
def test_a_configuration_that_says_too_much_or_too_little_is_refused(values, words):
    with pytest.raises(HypernetworkError, match=words):
        asked(read(ExportConfig, {"generator": "a", **values}))
