"""What is active while pictures are made: from names and strengths to edits on the host's UNet, and off again."""
from __future__ import annotations

import copy
import dataclasses
import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from PIL import Image

from .attention import Attachment, Edit, LowRankEdit, ResidualEdit, Strength, find_projections
from .catalog import Catalog
from .errors import HypernetworkError, ModelUnfit
from .generating import Conditions, GeneratedWeights, Recipe, recipe_of, stack
from .generator import Hypernetwork, check_fit
from .host import GenerationRequest, Host, Row, StepCallback
from .lora import Weights, select_rows
from .networks import acts_on_uncond
from .prompt import ActiveNetwork, extract
from .residual import ResidualHypernetwork, flattened
from .schedule import strength_at

Network = ResidualHypernetwork | Hypernetwork


@dataclass
class Link:
    """One network of a chain. `active` says for each picture of a batch how it acts there, None: not at all."""

    network: Network
    edit: Edit
    active: Sequence[ActiveNetwork | None]

    def strength(self, picture: int, uncond: bool, step: int, steps: int) -> float:
        """The overall strength on a row at sampling step `step` (from 0) of `steps`."""
        active = self.active[picture % len(self.active)]
        if active is None:
            return 0.0
        if uncond and not (acts_on_uncond(self.network) if active.uncond is None else active.uncond):
            return 0.0
        return active.strength * strength_at(active.start, active.end, step, steps)

    def at(self, rows: Sequence[Row], step: int, steps: int) -> None:
        """Sets the edit for an evaluation of these rows. One number wherever all have the same strength, so that they can share what is
        evaluated."""
        strengths = [self.strength(row.picture, row.uncond, step, steps) for row in rows]
        one = next(active for active in self.active if active is not None)
        overall = strengths[0] if len(set(strengths)) == 1 else strengths
        self.edit.strength = Strength(overall, one.k, one.v, one.input, one.middle, one.output)


class GeneratedLink(Link):
    """A generator's weights: one set for all rows, or for each row the set of its picture."""

    def __init__(self, network: Hypernetwork, active: Sequence[ActiveNetwork | None], weights: Sequence[Weights | None]) -> None:
        """`weights`: one row for each picture, the same object where pictures share it, None where the generator does not act."""
        sets = {id(one): one for one in weights if one is not None}
        self._all = stack(list(sets.values())) if len(sets) > 1 else next(iter(sets.values()))
        self._set_of_picture = [list(sets).index(id(one)) if one is not None else 0 for one in weights]
        self._selected: tuple[int, ...] = ()
        super().__init__(network, LowRankEdit(self._all), active)

    def at(self, rows: Sequence[Row], step: int, steps: int) -> None:
        """As `Link.at`; rows come in any order."""
        super().at(rows, step, steps)
        sets = tuple(self._set_of_picture[row.picture % len(self._set_of_picture)] for row in rows)
        if len(set(self._set_of_picture)) > 1 and sets != self._selected:
            self.edit.weights, self._selected = select_rows(self._all, sets), sets


class Applied:
    """Networks for a host's UNet, on it between `put_on` and `remove`. `notes` are sentences for the user about what is left unused."""

    def __init__(self, host: Host, links: Sequence[Link], notes: Sequence[str]) -> None:
        self.notes = list(notes)
        self.links = list(links)
        self._host = host
        self._attachment = Attachment(host.unet, [link.edit for link in links], frozen=True) if links else None
        self.at_step(0, 1)

    def at_step(self, step: int, steps: int) -> None:
        """Sets every strength for sampling step `step` (from 0) of `steps`; call it before each evaluation of the UNet."""
        for link in self.links:
            link.at(self._host.rows or [Row(0, False)], step, steps)

    def put_on(self) -> None:
        """Puts the networks on the UNet, if they are not there."""
        if self._attachment is not None:
            self._attachment.put_on()

    def remove(self) -> None:
        """Takes them off. May be called again."""
        if self._attachment is not None:
            self._attachment.remove()


class Session:
    """Puts networks of a catalog on a host's UNet by their names."""

    def __init__(self, catalog: Catalog, layer_by_layer: Callable[[], bool] = lambda: False) -> None:
        """`layer_by_layer` says whether linear networks are evaluated as their files have them, not as one matrix: slower, and bit for bit what others
        draw who do so."""
        self.catalog, self.layer_by_layer = catalog, layer_by_layer
        self._placed: WeakKeyDictionary[ResidualHypernetwork, ResidualHypernetwork] = WeakKeyDictionary()
        self._generated = GeneratedWeights()

    def prepare(
        self, host: Host, pictures: Sequence[Sequence[ActiveNetwork]], leave_out: bool = False, prompts: Sequence[str] = ("",),
        conditions: Conditions | None = None,
    ) -> Applied:  # fmt: skip
        """Networks for the pictures of a batch, each picture's chained in its own order; one list alone counts for all pictures.

        `prompts` are the pictures' own, or one for all; `conditions` are those of a job that was prepared before. Raises what
        `Catalog.load` and `Conditions.of` raise, and `ModelUnfit` for a network that fits nowhere. With `leave_out` such a network is left
        out instead, and `notes` names it with the reason.
        """
        notes: list[str] = []
        refused, prompts = notes if leave_out else None, prompts or ("",)
        networks = self._networks(host, dict.fromkeys(active.name for tags in pictures for active in tags), notes, refused)
        usable, generated = self._generate(host, networks, pictures, prompts, conditions, refused)
        notes += _without_condition(networks, usable)
        links = []
        for name, active in _chain(usable):
            if isinstance(network := networks[name], Hypernetwork):
                weights = [one and generated[name, recipe_of(one, prompt)] for one, prompt in zip(active, itertools.cycle(prompts))]
                links.append(GeneratedLink(network, active, weights))
            else:
                links.append(Link(network, ResidualEdit(network), active))
        return Applied(host, links, notes)

    @contextmanager
    def applied(
        self, host: Host, active: Sequence[ActiveNetwork], *more: Sequence[ActiveNetwork], prompts: Sequence[str] = ("",)
    ) -> Iterator[Applied]:
        """Within it the networks are on the UNet; afterwards nothing is left, also after an exception. `more` are other pictures'.

        Hold `host.exclusive()` around it. Raises as `prepare` does.
        """
        applied = self.prepare(host, [active, *more], prompts=prompts)
        try:
            applied.put_on()
            yield applied
        finally:
            applied.remove()

    def generate(
        self, host: Host, request: GenerationRequest, active: Sequence[ActiveNetwork] = (), on_step: StepCallback | None = None
    ) -> list[Image.Image]:
        """Pictures with `active` and then the networks whose tags stand in a picture's prompt; the tags are not part of what is drawn.

        Raises what `prepare` and `prompt.extract` raise.
        """
        texts, tags = zip(*map(extract, request.prompts or [request.prompt]), strict=True)
        bare = dataclasses.replace(request, prompts=texts) if request.prompts else dataclasses.replace(request, prompt=texts[0])
        with self.applied(host, *([*active, *tagged] for tagged in tags), prompts=texts) as applied:

            def before_step(step: int, steps: int) -> None:
                applied.at_step(step, steps)
                if on_step:
                    on_step(step, steps)

            return host.generate(bare, before_step)

    def _networks(self, host: Host, names: Iterable[str], notes: list[str], refused: list[str] | None) -> dict[str, Network]:
        """Those that can be used. What else is to be said of them goes to `notes`."""
        networks: dict[str, Network] = {}
        for name in names:
            with _noted(refused):
                network = self._load(name, host)
                notes += [*_unused(name, network, host), *_differences(name, network, host)]
                networks[name] = network
        return networks

    def _generate(
        self, host: Host, networks: Mapping[str, Network], pictures: Sequence[Sequence[ActiveNetwork]], prompts: Sequence[str],
        conditions: Conditions | None, refused: list[str] | None,
    ) -> tuple[list[list[ActiveNetwork]], dict[tuple[str, Recipe], Weights]]:  # fmt: skip
        """What is left of the pictures' networks, and the generators' weights on the host's device and in its dtype."""
        usable: list[list[ActiveNetwork]] = []
        generated: dict[tuple[str, Recipe], Weights] = {}
        for tags, prompt in zip(pictures, itertools.cycle(prompts)):
            usable.append([])
            for active in tags:
                network, key = networks.get(active.name), (active.name, recipe_of(active, prompt))
                if network is None:
                    continue
                with _noted(refused):
                    if isinstance(network, Hypernetwork) and key not in generated:
                        conditions = conditions or Conditions(host)
                        generated[key] = _on_host(self._made(active.name, network, key[1], conditions), host)
                    usable[-1].append(active)
        return usable, generated

    def _made(self, name: str, network: Hypernetwork, recipe: Recipe, conditions: Conditions) -> Weights:
        try:
            return self._generated.get(network, recipe, conditions)
        except HypernetworkError as error:
            raise HypernetworkError(f"The hypernetwork {name!r} cannot be used. {error}") from error

    def _load(self, name: str, host: Host) -> Network:
        """A residual network on the host's device, in its dtype and in as few layers as it may take; the catalog's own stays as it was read.
        A generator stays on the CPU."""
        with torch.inference_mode(False):
            network = self.catalog.load(name)
            if isinstance(network, Hypernetwork):
                return network.eval()
            flattens = network.structure.flattens and not self.layer_by_layer()
            if _is_placed(network, host) and not flattens:
                return network.eval()
            placed = self._placed.get(network)
            in_fewer_layers = placed is not None and placed.structure != network.structure
            if placed is None or in_fewer_layers != flattens or not _is_placed(placed, host):  # or the setting has changed since
                copied = copy.deepcopy(network).to(host.device)
                placed = self._placed[network] = (flattened(copied) if flattens else copied).to(host.dtype).eval()
            return placed


@contextmanager
def _noted(refused: list[str] | None) -> Iterator[None]:
    """What a user can cause becomes a sentence in `refused`, once, and what is within is left out; None: it is raised."""
    try:
        yield
    except HypernetworkError as error:
        if refused is None:
            raise
        if str(error) not in refused:
            refused.append(str(error))


def _on_host(weights: Weights, host: Host) -> Weights:
    return {name: (down.to(host.device, host.dtype), up.to(host.device, host.dtype)) for name, (down, up) in weights.items()}


def _is_placed(network: ResidualHypernetwork, host: Host) -> bool:
    weight = next(network.parameters())
    return (weight.device, weight.dtype) == (host.device, host.dtype)


def _chain(pictures: Sequence[Sequence[ActiveNetwork]]) -> list[tuple[str, list[ActiveNetwork | None]]]:
    """One chain in which every picture finds its own in its own order: a name, and for each picture what acts there.

    What a picture does not use acts on it with strength 0, which changes no bit. A link has one strength for K, V and each block.
    """
    chain: list[tuple] = []
    for tags in pictures:
        chain = _merged(chain, [_kind(active) for active in tags])
    links: list[tuple[str, list[ActiveNetwork | None]]] = [(kind[0], [None] * len(pictures)) for kind in chain]
    for picture, tags in enumerate(pictures):
        place = 0
        for active in tags:
            place = chain.index(_kind(active), place)
            links[place][1][picture] = active
            place += 1
    return links


def _kind(active: ActiveNetwork) -> tuple:
    return active.name, active.k, active.v, active.input, active.middle, active.output


def _merged(first: list[tuple], second: list[tuple]) -> list[tuple]:
    """A list that holds both in their orders, what they share once."""
    merged: list[tuple] = []
    for kind, start, end, other_start, other_end in difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        merged += first[start:end]
        if kind != "equal":
            merged += second[other_start:other_end]
    return merged


def _without_condition(networks: Mapping[str, Network], pictures: Sequence[Sequence[ActiveNetwork]]) -> list[str]:
    """A sentence about every residual network that was told a condition."""
    told = [active.name for tags in pictures for active in tags if active.condition or active.second or active.blend]
    return [
        f"The hypernetwork {name!r} generates no weights; what its tag or row says of a condition is left unused."
        for name in dict.fromkeys(told) if isinstance(networks[name], ResidualHypernetwork)
    ]  # fmt: skip


def _unused(name: str, network: Network, host: Host) -> list[str]:
    """A sentence about the pairs that the model has no place for. Raises `ModelUnfit` where that is all of them, or a generator's layers
    are not this model's."""
    if isinstance(network, Hypernetwork):
        try:
            check_fit({layer.name: layer for layer in network.layers}, host.unet, "generator")
        except ModelUnfit as error:
            raise ModelUnfit(f"The hypernetwork {name!r} cannot be used. {error}") from error
        return []
    places = [p for p in find_projections(host.unet) if p.part in "kv"]
    missing = [key for key in network.keys if not any(key == (p.layer if network.per_layer else p.in_width) for p in places)]
    if not missing:
        return []
    kind, kinds = ("layer", "layers") if network.per_layer else ("width", "widths")
    listed = ", ".join(map(str, missing[:4])) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
    lacks = f"the model {host.model.name} has no {kind if len(missing) == 1 else kinds} {listed}"
    if len(missing) == len(network.keys):
        widths = ", ".join(str(width) for width in sorted({p.in_width for p in places}))
        raise ModelUnfit(f"The hypernetwork {name!r} is for another model: {lacks}. The model's widths are {widths}.")
    return [f"Of the hypernetwork {name!r} {len(missing)} of {len(network.keys)} {kinds} are left unused: {lacks}."]


def _differences(name: str, network: Network, host: Host) -> list[str]:
    """A sentence where the network was trained with other settings of the host than those that are on now, which changes what it does."""
    now, then = host.model, network.metadata
    found = []
    for key, label in (("clip_skip", "clip skip"), ("vae", "VAE"), ("prediction_type", "prediction type")):
        trained, loaded = then.get(key), str(getattr(now, key))
        if trained is not None and trained != loaded:
            found.append(f"{label} {trained or 'of the checkpoint'}, now {loaded or 'that of the checkpoint'}")
    return [f"The hypernetwork {name!r} was trained with another setting: {'; '.join(found)}."] if found else []
