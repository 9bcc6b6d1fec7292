"""What is active while a picture is made: from names and strengths to edits on the host's UNet, and off again."""
from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image

from .attention import ResidualEdit, Strength, attached, find_projections
from .catalog import Catalog
from .errors import ModelUnfit
from .host import GenerationRequest, Host, StepCallback
from .networks import acts_on_uncond
from .prompt import ActiveNetwork, extract
from .residual import ResidualHypernetwork
from .schedule import strength_at, strength_per_row


class Applied:
    """Networks at work on a host's UNet. `notes` are sentences for the user about what of them is left unused."""

    def __init__(self, host: Host, edits: Sequence[tuple[ActiveNetwork, ResidualEdit]], notes: Sequence[str]) -> None:
        self.notes = list(notes)
        self._host, self._edits = host, list(edits)
        self.at_step(0, 1)

    def at_step(self, step: int, steps: int) -> None:
        """Sets every strength for sampling step `step` (from 0) of `steps`; call it before each evaluation of the UNet."""
        for active, edit in self._edits:
            strength = active.strength * strength_at(active.start, active.end, step, steps)
            uncond = acts_on_uncond(edit.network) if active.uncond is None else active.uncond
            rows = strength if uncond else strength_per_row(strength, self._host.uncond_rows)
            edit.strength = Strength(rows, active.k, active.v, active.input, active.middle, active.output)


class Session:
    """Puts networks of a catalog on a host's UNet by their names."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    @contextmanager
    def applied(self, host: Host, active: Sequence[ActiveNetwork]) -> Iterator[Applied]:
        """Within it the networks are on the UNet, chained in their order; afterwards nothing is left, also after an exception.

        Hold `host.exclusive()` around it. Raises what `Catalog.load` raises, and `ModelUnfit` for a network that fits nowhere.
        """
        edits, notes = [], []
        for one in active:
            network = self._load(one.name, host)
            notes += _unused(one.name, network, host)
            edits.append((one, ResidualEdit(network)))
        if not edits:
            yield Applied(host, [], [])
            return
        with attached(host.unet, [edit for _, edit in edits]):
            yield Applied(host, edits, notes)

    def generate(
        self, host: Host, request: GenerationRequest, active: Sequence[ActiveNetwork] = (), on_step: StepCallback | None = None
    ) -> list[Image.Image]:
        """Pictures with `active` and then the networks whose tags stand in the prompt; the tags are not part of what is drawn.

        Raises what `applied` and `prompt.extract` raise.
        """
        prompt, tagged = extract(request.prompt)
        with self.applied(host, [*active, *tagged]) as applied:

            def before_step(step: int, steps: int) -> None:
                applied.at_step(step, steps)
                if on_step:
                    on_step(step, steps)

            return host.generate(dataclasses.replace(request, prompt=prompt), before_step)

    def _load(self, name: str, host: Host) -> ResidualHypernetwork:
        """The network on the host's device and in its dtype; the catalog's own stays as it was read."""
        with torch.inference_mode(False):
            network = self.catalog.load(name)
            weight = next(network.parameters())
            if (weight.device, weight.dtype) != (host.device, host.dtype):
                network = copy.deepcopy(network).to(host.device, host.dtype)
        return network.eval()


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
