"""Hypernetworks in a web UI's own jobs: from the panel and the tags of each prompt to networks on the UNet, notes under the picture, infotext.

A job is the web UI's `StableDiffusionProcessing` (modules/processing.py), called `p` as everywhere there.
"""
from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import HypernetworkError
from ..files import short_hash
from ..generating import Conditions
from ..prompt import ActiveNetwork, ConditionSource, extract, tag
from ..session import Applied, Session

PANEL_LABEL = "Hypernetworks"  # of the infotext: the panel's rows as tags
PASSES_LABEL = "Hypernetworks hires"
HASHES_LABEL = "Hypernetwork hashes"
AXES_LABEL = "Hypernetwork axes"  # what an XYZ plot has changed
BOTH, FIRST, HIRES = "both passes", "first pass only", "hires pass only"
PASSES = (BOTH, FIRST, HIRES)
WEB_UI_TAG = re.compile(r"<hypernet:([^>]+)>")
ANY_TAG = re.compile(r"<\w+:[^>]+>")  # modules/extra_networks.py:177
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Panel:
    """What is chosen in the panel: networks, and in which pass of hires fix they act. `changes` are an XYZ plot's, by field of
    `ActiveNetwork`; they reach every network of a job, but for a name, which takes the first row's place."""

    active: Sequence[ActiveNetwork] = ()
    passes: str = BOTH
    changes: Mapping[str, Any] = field(default_factory=dict)

    def for_pass(self, hires: bool) -> list[ActiveNetwork]:
        """The rows that act in the first pass or the second one."""
        if self.passes == (FIRST if hires else HIRES):
            return []
        name = self.changes.get("name")
        if name is None:
            return list(self.active)
        rest = list(self.active[1:])
        first = self.active[0] if self.active else ActiveNetwork("None")
        return rest if name == "None" else [dataclasses.replace(first, name=name), *rest]

    def changed(self, active: ActiveNetwork) -> ActiveNetwork:
        """A network as the plot wants it."""
        changes = {name: value for name, value in self.changes.items() if name != "name"}
        return dataclasses.replace(active, **changes)


class Job:
    """One batch of a web UI's job: which networks each of its pictures has in each pass, and how they stand on the UNet at hand."""

    def __init__(self, p: Any, panel: Panel, prompts: Sequence[str], hires_prompts: Sequence[str], always: Sequence[ActiveNetwork]) -> None:
        self.p = p
        self.notes: list[str] = []
        passes = ((False, prompts), (True, hires_prompts))
        self.pictures = {hires: [self._of_prompt(panel, prompt, hires, always) for prompt in texts] for hires, texts in passes}
        self._prompts = {hires: [ANY_TAG.sub("", prompt) for prompt in texts] for hires, texts in passes}
        self._applied: dict[tuple[Any, bool], Applied] = {}
        self._conditions: Conditions | None = None

    def _of_prompt(self, panel: Panel, prompt: str, hires: bool, always: Sequence[ActiveNetwork]) -> list[ActiveNetwork]:
        problems: list[str] = []
        tagged = [active for active in extract(prompt, problems)[1] if active.name.lower() != "none"]
        self.notes += [problem for problem in problems if problem not in self.notes]
        more = [active for active in always if all(active.name != other.name for other in tagged)]
        found = [panel.changed(active) for active in [*panel.for_pass(hires), *tagged, *more]]
        never = [f"{active.name} acts at no step: From and To are both {active.start:g}." for active in found if active.start == active.end < 1]
        self.notes += [note for note in dict.fromkeys(never) if note not in self.notes]
        return found

    @property
    def names(self) -> list[str]:
        """Of all networks, once each."""
        return list(dict.fromkeys(active.name for pictures in self.pictures.values() for tags in pictures for active in tags))

    def prepare(self, host: Any, session: Session) -> None:
        """What needs the model's encoders is done now, for both passes: within a job they may be anywhere."""
        self._conditions = Conditions(host)
        for hires in (False, True) if getattr(self.p, "enable_hr", False) else (False,):
            self._prepare(host, session, hires)

    def applied(self, host: Any, session: Session) -> Applied:
        """The networks of the pass at hand for the UNet at hand, which a refiner or a hires checkpoint may replace within a job."""
        return self._prepare(host, session, bool(getattr(self.p, "is_hr_pass", False)))

    def _prepare(self, host: Any, session: Session, hires: bool) -> Applied:
        key = (host.unet, hires)
        if key not in self._applied:
            self._applied[key] = session.prepare(
                host, self.pictures[hires] or [[]], leave_out=True, prompts=self._prompts[hires], conditions=self._conditions
            )
            self.notes += [note for note in self._applied[key].notes if note not in self.notes]
            self.tell()
        return self._applied[key]

    def tell(self) -> None:
        """The notes stand under the picture."""
        for note in self.notes:
            self.p.comment(note)


class Generation:
    """What acts on the web UI's jobs, one at a time: the web UI's queue sees to that."""

    def __init__(self, host: Any, session: Session, setting: Callable[[], tuple[str, float]]) -> None:
        """`setting` gives the web UI's own option "Add hypernetwork to prompt" and the default strength of extra networks."""
        self.host, self.session, self._setting = host, session, setting
        self._job: Job | None = None
        self._on: Applied | None = None

    def begin(self, p: Any, panel: Panel) -> None:
        """A job starts: from `Script.setup`. What an exception left of the one before goes."""
        self.end()
        p.hypernetworks_panel = panel
        try:
            text = write_panel(panel.active)
        except HypernetworkError as error:
            p.comment(str(error))
            return
        if text:
            p.extra_generation_params[PANEL_LABEL] = text
            if panel.passes != BOTH:
                p.extra_generation_params[PASSES_LABEL] = panel.passes
            if panel.passes == HIRES and not getattr(p, "enable_hr", False):
                p.comment(f"The panel's hypernetworks act in the {HIRES}, and without hires fix there is none: choose {BOTH}.")

    def activate(self, p: Any, items: Sequence[Sequence[str]]) -> None:
        """A batch starts: from the extra network, which hears of the first prompt's tags only (`items`). Called again for hires fix."""
        if self._job is not None and self._job.p is p and getattr(p, "is_hr_pass", False):
            return
        self.end()
        panel = getattr(p, "hypernetworks_panel", None) or Panel()
        panel = dataclasses.replace(panel, changes=getattr(p, "hypernetworks_changes", {}))
        p.extra_generation_params.pop(HASHES_LABEL, None)  # a plot's cells share what the ones before have written
        if panel.changes:
            p.extra_generation_params[AXES_LABEL] = ", ".join(_said(field, value) for field, value in panel.changes.items())
        try:
            always = self._always(p)
            self._begin_batch(p, Job(p, panel, *self._prompts(p, items, always), always))
        except HypernetworkError as error:  # a model without such layers, or what an XYZ plot asks for; networks that cannot be used are notes
            p.comment(str(error))
            self.end()

    def _begin_batch(self, p: Any, job: Job) -> None:
        job.tell()
        if not job.names:
            return
        self._write_hashes(job)
        self._job = job
        self.host.watch(job.p, self._before, self._after)
        job.prepare(self.host, self.session)

    def end(self) -> None:
        """The job is over. May be called again."""
        self._after()
        self.host.unwatch()
        self._job = None

    def _before(self, step: int, steps: int) -> None:
        self._on = self._job.applied(self.host, self.session)
        self._on.at_step(step, steps)
        self._on.put_on()

    def _after(self) -> None:
        if self._on is not None:
            self._on.remove()
            self._on = None

    @staticmethod
    def _prompts(p: Any, items: Sequence[Sequence[str]], always: Sequence[ActiveNetwork]) -> tuple[list[str], list[str]]:
        """The raw prompts of the batch, with their tags, of both passes.

        Where a script has put other prompts in between, so that the first prompt's tags are not `items`, these count for all pictures.
        """
        batch = slice(p.iteration * p.batch_size, (p.iteration + 1) * p.batch_size)
        everything = p.all_prompts or []  # none while a web UI warms its model up
        prompts = list(everything[batch])
        hires = list((getattr(p, "all_hr_prompts", None) or everything)[batch])
        heard = [list(arguments) for arguments in items]
        added = [arguments for active in always for arguments in _arguments(tag(active))]  # after the web UI has read the prompt
        if prompts and _arguments(prompts[0]) in (heard, heard + added):
            return prompts, hires
        said = "".join(f"<hypernet:{':'.join(arguments)}>" for arguments in items)
        return [said] * max(1, len(prompts)), [said] * max(1, len(hires))

    def _always(self, p: Any) -> list[ActiveNetwork]:
        """The network that the web UI's settings add to every prompt; it stands in the infotext's prompt, as before."""
        name, strength = self._setting()
        if not name or name == "None":
            return []
        active = ActiveNetwork(name, strength)
        p.all_prompts = [prompt if _mentions(prompt, name) else prompt + tag(active) for prompt in p.all_prompts or []]
        return [active]

    def _write_hashes(self, job: Job) -> None:
        """Into the infotext. What there is no file of is left out: it is told when it is to be loaded."""
        found = []
        for name in job.names:
            try:
                found.append(f"{name}: {short_hash(self.session.catalog.path(name))}")
            except (HypernetworkError, OSError):
                continue
        if found:
            job.p.extra_generation_params[HASHES_LABEL] = ", ".join(found)


def _said(field: str, value: Any) -> str:
    return f"{value.kind}={value.value}" if isinstance(value, ConditionSource) else f"{field}={value}"


def _mentions(prompt: str, name: str) -> bool:
    return any(active.name == name for active in extract(prompt, [])[1])


def _arguments(prompt: str) -> list[list[str]]:
    """What the web UI finds in the prompt's tags (modules/extra_networks.py:181, parse_prompt)."""
    return [match[1].split(":") for match in WEB_UI_TAG.finditer(prompt)]


def write_panel(active: Sequence[ActiveNetwork]) -> str:
    """The panel's rows as an infotext holds them."""
    return "".join(tag(one) for one in active)


def read_panel(infotext: Mapping[str, Any]) -> tuple[list[ActiveNetwork], str] | None:
    """The panel of an infotext that was read by the web UI; None where it is no picture's. Rows that cannot be read are left out."""
    if "Steps" not in infotext and PANEL_LABEL not in infotext:
        return None
    problems: list[str] = []
    active = extract(str(infotext.get(PANEL_LABEL, "")), problems)[1]
    for problem in problems:
        log.warning("%s of the infotext: %s", PANEL_LABEL, problem)
    passes = infotext.get(PASSES_LABEL, BOTH)
    return active, passes if passes in PASSES else BOTH
