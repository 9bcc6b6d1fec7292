"""What is active while pictures are made: from names and strengths to edits on the host's UNet, and off again."""
from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from PIL import Image

from .attention import Attachment, ResidualEdit, Strength, find_projections
from .catalog import Catalog
from .errors import HypernetworkError, ModelUnfit
from .host import GenerationRequest, Host, Row, StepCallback
from .networks import acts_on_uncond
from .prompt import ActiveNetwork, extract
from .residual import ResidualHypernetwork
from .schedule import strength_at


@dataclass
class Link:
    """One network of a chain. `active` says for each picture of a batch how it acts there, None: not at all."""

    edit: ResidualEdit
    active: Sequence[ActiveNetwork | None]

    def strength(self, picture: int, uncond: bool, step: int, steps: int) -> float:
        """The overall strength on a row at sampling step `step` (from 0) of `steps`."""
        active = self.active[picture % len(self.active)]
        if active is None:
            return 0.0
        if uncond and not (acts_on_uncond(self.edit.network) if active.uncond is None else active.uncond):
            return 0.0
        return active.strength * strength_at(active.start, active.end, step, steps)

    def set_strength(self, rows: Sequence[Row], step: int, steps: int) -> None:
        """One number wherever all rows have the same, so that they can share what is evaluated."""
        strengths = [self.strength(row.picture, row.uncond, step, steps) for row in rows or [Row(0, False)]]
        one = next(active for active in self.active if active is not None)
        overall = strengths[0] if len(set(strengths)) == 1 else strengths
        self.edit.strength = Strength(overall, one.k, one.v, one.input, one.middle, one.output)


class Applied:
    """Networks for a host's UNet, on it between `put_on` and `remove`. `notes` are sentences for the user about what is left unused."""

    def __init__(self, host: Host, links: Sequence[Link], notes: Sequence[str]) -> None:
        self.notes = list(notes)
        self.links = list(links)
        self._host = host
        self._attachment = Attachment(host.unet, [link.edit for link in links]) if links else None
        self.at_step(0, 1)

    def at_step(self, step: int, steps: int) -> None:
        """Sets every strength for sampling step `step` (from 0) of `steps`; call it before each evaluation of the UNet."""
        for link in self.links:
            link.set_strength(self._host.rows, step, steps)

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

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._placed: WeakKeyDictionary[ResidualHypernetwork, ResidualHypernetwork] = WeakKeyDictionary()

    def prepare(self, host: Host, pictures: Sequence[Sequence[ActiveNetwork]], leave_out: bool = False) -> Applied:
        """Networks for the pictures of a batch, each picture's chained in its own order; one list alone counts for all pictures.

        Raises what `Catalog.load` raises, and `ModelUnfit` for a network that fits nowhere. With `leave_out` such a network is left
        out instead, and `notes` names it with the reason.
        """
        networks: dict[str, ResidualHypernetwork] = {}
        notes: list[str] = []
        for name in dict.fromkeys(active.name for tags in pictures for active in tags):
            try:
                network = self._load(name, host)
                notes += [*_unused(name, network, host), *_differences(name, network, host)]
                networks[name] = network
            except HypernetworkError as error:
                if not leave_out:
                    raise
                notes.append(str(error))
        usable = [[active for active in tags if active.name in networks] for tags in pictures]
        return Applied(host, [Link(ResidualEdit(networks[name]), active) for name, active in _chain(usable)], notes)

    @contextmanager
    def applied(self, host: Host, active: Sequence[ActiveNetwork], *more: Sequence[ActiveNetwork]) -> Iterator[Applied]:
        """Within it the networks are on the UNet; afterwards nothing is left, also after an exception. `more` are other pictures'.

        Hold `host.exclusive()` around it. Raises as `prepare` does.
        """
        applied = self.prepare(host, [active, *more])
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
        with self.applied(host, *([*active, *tagged] for tagged in tags)) as applied:

            def before_step(step: int, steps: int) -> None:
                applied.at_step(step, steps)
                if on_step:
                    on_step(step, steps)

            return host.generate(bare, before_step)

    def _load(self, name: str, host: Host) -> ResidualHypernetwork:
        """The network on the host's device and in its dtype; the catalog's own stays as it was read."""
        with torch.inference_mode(False):
            network = self.catalog.load(name)
            if _is_placed(network, host):
                return network.eval()
            if network not in self._placed or not _is_placed(self._placed[network], host):
                self._placed[network] = copy.deepcopy(network).to(host.device, host.dtype).eval()
            return self._placed[network]


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


def _unused(name: str, network: ResidualHypernetwork, host: Host) -> list[str]:
    """A sentence about the pairs that the model has no place for. Raises `ModelUnfit` where that is all of them."""
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


def _differences(name: str, network: ResidualHypernetwork, host: Host) -> list[str]:
    """A sentence where the network was trained with other settings of the host than those that are on now, which changes what it does."""
    now, then = host.model, network.metadata
    found = []
    for key, label in (("clip_skip", "clip skip"), ("vae", "VAE"), ("prediction_type", "prediction type")):
        trained, loaded = then.get(key), str(getattr(now, key))
        if trained is not None and trained != loaded:
            found.append(f"{label} {trained or 'of the checkpoint'}, now {loaded or 'that of the checkpoint'}")
    return [f"The hypernetwork {name!r} was trained with another setting: {'; '.join(found)}."] if found else []
