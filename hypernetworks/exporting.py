"""What a generator makes for one condition, written as an ordinary LoRA file into the host's folder of them.

A LoRA file acts alike on every picture, at every sampling step and on the negative prompt's rows. What is asked beyond that is refused,
or left out where a snapshot is wanted.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .attention import Strength
from .catalog import Catalog
from .config import ExportConfig
from .errors import ConfigError
from .files import check_name, short_hash
from .generating import Conditions, GeneratedWeights, Recipe, recipe_of
from .generator import Hypernetwork
from .host import Host
from .lora import Weights, export_lora, folded
from .networks import acts_on_uncond
from .prompt import HALF, ActiveNetwork, ConditionSource, extract, tag

SAID = {"text": "the text “{}”", "reference": "the reference picture {}", "task": "the task {}"}


@dataclass(frozen=True)
class Made:
    """Weights of one condition, with the strengths in them, and what a file is to say of them."""

    weights: Weights
    metadata: dict[str, str]
    notes: tuple[str, ...]  # sentences about what was left out


@dataclass(frozen=True)
class Exported:
    """A LoRA file that was written. The end of its name is the beginning of its `hash`."""

    path: Path
    rank: int
    projections: int
    notes: tuple[str, ...]

    @property
    def hash(self) -> str:
        """Ten hex digits of the content's hash."""
        return self.path.stem.rpartition("-")[2]

    @property
    def tag(self) -> str:
        """How web UIs call the file in a prompt."""
        return f"<lora:{self.path.stem}:1>"


def asked(config: ExportConfig) -> ActiveNetwork:
    """The network at work that a configuration describes. Conditions and a blend that it names take the place of its tag's, and strengths multiply.

    Raises `ConfigError` for two conditions in one place and for a blend with no second one, and what `prompt.extract` and `ActiveNetwork` raise.
    """
    active = _network(config.generator)
    first, second = _source(config) or active.condition, _source(config, "2") or active.second
    return replace(
        active, strength=config.strength * active.strength, condition=first, second=second, blend=_blend(config, active, second)
    )


def export(host: Host, catalog: Catalog, active: ActiveNetwork, name: str = "", *, snapshot: bool = False) -> Exported:
    """Writes `<loras>/<name>-<hash>.safetensors` with what the generator `active.name` makes; `name` is its own by default.

    Hold `host.exclusive()` around it: the condition goes through the host's encoders. Raises what `make` and `write` raise.
    """
    check_name(name := name.strip() or Path(active.name).name)
    return write(host, make(host, catalog, active, snapshot=snapshot), name)


def make(host: Host, catalog: Catalog, active: ActiveNetwork, *, snapshot: bool = False) -> Made:
    """The weights that a generator makes for the condition, blend and strengths of `active`.

    `snapshot` leaves out what no LoRA file holds. Raises `ConfigError` for that without it, for a condition that is not said or not
    one of the generator's, and for a network that is no generator; `ModelUnfit` for a generator of another model; what `Catalog.load`
    and `References.open` raise.
    """
    hypernetwork = catalog.load(active.name)
    if not isinstance(hypernetwork, Hypernetwork):
        raise ConfigError(f"{active.name} is no generator: what it does to a picture is no LoRA's, so it cannot be exported as one.")
    notes = _left_out(active, hypernetwork)
    if active.uncond is False or (active.start, active.end) != (0, 1):
        if not snapshot:
            raise ConfigError(f"{' '.join(notes)} Leave that out, or export a snapshot, in which it is left out.")
    recipe = _recipe(active)
    hypernetwork.bind(host.unet)  # checks that it is for the loaded model
    try:
        weights = GeneratedWeights().get(hypernetwork, recipe, Conditions(host))
    except ConfigError as error:
        raise ConfigError(f"The generator {active.name!r} cannot be exported. {error}") from error
    strength = Strength(active.strength, active.k, active.v, active.input, active.middle, active.output)
    about = {
        "ss_training_comment": f"Made by the hypernetwork {active.name} for {_said(recipe)}.",  # shown by web UIs, as is the next
        "ss_sd_model_name": hypernetwork.metadata.get("base_model", ""),
        "hypernetworks_generator": short_hash(catalog.path(active.name)),
        "hypernetworks_tag": tag(active),
    }
    return Made(folded(weights, strength), about, notes)


def write(host: Host, made: Made, name: str) -> Exported:
    """The LoRA file of such weights, under the names of the loaded model's family. Raises what `lora.export_lora` raises."""
    path = export_lora(made.weights, host.folders.loras / name, host.model.family, metadata=made.metadata)
    rank = max(down.shape[-2] for down, _ in made.weights.values())
    return Exported(path, rank, len(made.weights), made.notes)


def _network(generator: str) -> ActiveNetwork:
    """By its name, or by a tag."""
    if "<" not in generator:  # no name has it
        if not generator.strip():
            raise ConfigError("Say which generator: its name, or a tag.")
        return ActiveNetwork(generator)
    rest, tags = extract(generator)
    if rest.strip() or len(tags) != 1:
        raise ConfigError("A generator is said by its name or by one tag, with nothing before or after it.")
    return tags[0]


def _source(config: ExportConfig, number: str = "") -> ConditionSource | None:
    said = {kind: value for kind in SAID if (value := getattr(config, kind + number))}
    if len(said) > 1:
        raise ConfigError(f"One condition is a text, a picture or a task; here {' and '.join(kind + number for kind in said)} are given.")
    return next((ConditionSource(kind, value) for kind, value in said.items()), None)


def _blend(config: ExportConfig, active: ActiveNetwork, second: ConditionSource | None) -> float:
    """The second condition's share: as the configuration says it, else as the tag does, else half."""
    if config.blend is not None:
        if second is None:
            raise ConfigError(f"A blend of {config.blend:g} is the share of a second condition, and none is given: say text2, reference2 or task2.")
        return config.blend
    said = active.second is not None or active.blend
    return active.blend if said or second is None else HALF


def _left_out(active: ActiveNetwork, hypernetwork: Hypernetwork) -> tuple[str, ...]:
    notes = []
    if (active.start, active.end) != (0, 1):
        notes.append(f"A LoRA file acts at every sampling step, and not only from {active.start:.0%} to {active.end:.0%} of the way.")
    if not (acts_on_uncond(hypernetwork) if active.uncond is None else active.uncond):
        notes.append("A LoRA file changes what the negative prompt does, too, which this one leaves alone.")
    return tuple(notes)


def _recipe(active: ActiveNetwork) -> Recipe:
    needed = [source for source, share in ((active.condition, 1 - active.blend), (active.second, active.blend)) if share]
    if None in needed:
        raise ConfigError(
            "A LoRA file holds the weights for one condition, and those for the prompt change with every prompt: "
            "say a text, a reference picture or a task."
        )
    return recipe_of(active, "")


def _said(recipe: Recipe) -> str:
    words = [SAID[source.kind].format(source.value) for source in (recipe.first, recipe.second) if source is not None]
    return words[0] if recipe.second is None else f"{1 - recipe.share:.0%} of {words[0]} and {recipe.share:.0%} of {words[1]}"
