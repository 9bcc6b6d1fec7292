"""Tags in a prompt: `<hypernet:name>`, `<hypernet:name:0.8>`, `<hypernet:name:0.8:k=1:v=0.5:start=0.2:uncond=0>`.

The kind and the name are A1111's (modules/extra_networks_hypernet.py), the further arguments follow its Lora tags: up to three numbers
stand for strength, k and v, the others have names. `text=`, `ref=` and `task=` say what a generator's weights are for.
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from .errors import HypernetworkError

TAG = re.compile(r"<\s*hypernet\s*:([^<>]*)>", re.IGNORECASE)
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
POSITIONAL = ("strength", "k", "v")
NAMED = {"k": "k", "v": "v", "in": "input", "mid": "middle", "out": "output", "start": "start", "end": "end", "uncond": "uncond"}
SOURCES = {"text": "text", "ref": "reference", "task": "task"}
FIELDS = {**NAMED, **dict.fromkeys(SOURCES, "condition"), **{f"{label}2": "second" for label in SOURCES}, "blend": "blend"}
TWICE = {"condition": "the condition", "second": "the second condition"}
HALF = 0.5  # the share of a second condition where the tag does not say it
SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
REFERENCE = re.compile(r"[0-9a-f]{10}")
ESCAPED = re.compile(r"%(?:23|25(?=(?:25)*23))")  # of a name, which else stands in a tag as it is
LONGEST_CONDITION = 100_000  # characters of a text or a task
UNWRITABLE = re.compile(r"^\s+|(?<!\s)\s+$|[%:<>#\x00-\x1f\x7f]")  # "#" begins a comment in a web UI's prompt


@dataclass(frozen=True)
class ConditionSource:
    """What a condition is made of: a "text", a "reference" picture, told by its hash, or a "task", told by its name.

    Raises `HypernetworkError` for a value that cannot be.
    """

    kind: str
    value: str

    def __post_init__(self) -> None:
        if self.kind not in SOURCES.values():
            raise HypernetworkError(f"A condition is made of a text, a reference or a task, not of {self.kind!r}.")
        if len(self.value) > LONGEST_CONDITION:
            raise HypernetworkError(f"What weights are made for has at most {LONGEST_CONDITION:,} characters, not {len(self.value):,}.")
        if self.kind == "reference" and not self.value:
            raise HypernetworkError("Drop in a reference picture first, or choose something else to make the weights for.")
        if self.kind == "reference" and not REFERENCE.fullmatch(self.value):
            raise HypernetworkError(f"A reference picture is told by the ten digits 0-9 and a-f of its hash, not by {self.value!r}.")
        if self.kind == "task" and not self.value:
            raise HypernetworkError("A task needs a name.")


@dataclass(frozen=True)
class ActiveNetwork:
    """A hypernetwork at work: its name in the catalog, how strongly it acts where, and when.

    The strength at a place is the product of `strength`, that of K or V and that of the block. `start` and `end` are shares of the
    sampling steps, 0 to 1. `uncond` says whether rows that see the negative prompt are changed too; None: as the network's file
    recommends. A generator's weights are for `condition`, with a share `blend` (0 to 1) of those for `second`; None stands for the
    prompt itself. Raises `HypernetworkError` for values that cannot be.
    """

    name: str
    strength: float = 1.0
    k: float = 1.0
    v: float = 1.0
    input: float = 1.0
    middle: float = 1.0
    output: float = 1.0
    start: float = 0.0
    end: float = 1.0
    uncond: bool | None = None
    condition: ConditionSource | None = None
    second: ConditionSource | None = None
    blend: float = 0.0

    def __post_init__(self) -> None:
        for field in ("strength", "k", "v", "input", "middle", "output", "start", "end", "blend"):
            if not math.isfinite(getattr(self, field)):
                raise HypernetworkError(f"{field} cannot be {getattr(self, field)}; it takes a number.")
        if not 0 <= self.start <= self.end <= 1:
            raise HypernetworkError(
                f"start and end are shares of the sampling steps from 0 to 1, the start first, not {self.start:g} to {self.end:g}."
            )
        if not 0 <= self.blend <= 1:
            raise HypernetworkError(f"blend is the share of the second condition from 0 to 1, not {self.blend:g}.")


def extract(prompt: str, problems: list[str] | None = None) -> tuple[str, list[ActiveNetwork]]:
    """The prompt without its hypernetwork tags, and the tags in their order. All other text stays as it is.

    Raises `HypernetworkError` that names a tag which cannot be read; with a list of `problems` the sentence goes there instead, and the
    tag is left out.
    """
    found = []
    for match in TAG.finditer(prompt):
        try:
            found.append(read(match[1].split(":")))
        except HypernetworkError as error:
            sentence = f"The tag {match[0]} cannot be read: {error}"
            if problems is None:
                raise HypernetworkError(sentence) from None
            problems.append(sentence)
    return TAG.sub("", prompt), found


def read(arguments: Sequence[str]) -> ActiveNetwork:
    """What stands between the colons of a tag, the name first. Raises `HypernetworkError` for an argument that cannot be read."""
    name, *rest = (argument.strip() for argument in arguments)
    name = ESCAPED.sub(lambda match: "#" if match[0] == "%23" else "%", name)
    if not name:
        raise HypernetworkError("it has no name.")
    values: dict[str, float | bool | ConditionSource] = {}
    positional = list(POSITIONAL)
    for argument in rest:
        label, equals, text = (part.strip() for part in argument.partition("="))
        if equals:
            field = FIELDS.get(label.lower())
            if field is None:
                raise HypernetworkError(f"there is no argument {label!r}, only {', '.join(FIELDS)}.")
        elif positional:
            field, text = positional.pop(0), label
        else:
            raise HypernetworkError("only strength, k and v can be numbers without a name.")
        if field in values:
            raise HypernetworkError(f"{TWICE.get(field, field)} is given twice.")
        values[field] = _value(label.lower(), field, text)
    if "second" in values:
        values.setdefault("blend", HALF)
    return ActiveNetwork(name, **values)


def _value(label: str, field: str, text: str) -> float | bool | ConditionSource:
    if field == "uncond":
        return _switch(text)
    if field in ("condition", "second"):
        kind = SOURCES[label.removesuffix("2")]
        return ConditionSource(kind, text.lower() if kind == "reference" else unquote(text))
    return _number(field, text)


def _number(field: str, text: str) -> float:
    if not NUMBER.fullmatch(text):
        raise HypernetworkError(f"{field} cannot be {text!r}; it takes a number.")
    return float(text)


def _switch(text: str) -> bool:
    if text.lower() not in SWITCH:
        raise HypernetworkError(f"uncond cannot be {text!r}; it takes 1 or 0.")
    return SWITCH[text.lower()]


def tag(active: ActiveNetwork) -> str:
    """The shortest tag that reads back the same. Raises `HypernetworkError` for a name that cannot stand in one."""
    if not active.name or active.name != active.name.strip() or set(active.name) & set("<>:"):
        raise HypernetworkError(f"The name {active.name!r} cannot stand in a tag: it must not be empty or contain < > or :.")
    unsaid, sources = ActiveNetwork(active.name), _sources(active)
    candidates = []
    for count in range(len(POSITIONAL) + 1):
        said = [_text(getattr(active, field)) for field in POSITIONAL[:count]]
        named = [
            f"{label}={_text(getattr(active, field))}"
            for label, field in NAMED.items()
            if field not in POSITIONAL[:count] and getattr(active, field) != getattr(unsaid, field)
        ]
        if count or active.strength == unsaid.strength:  # the strength itself has no name
            candidates.append(":".join(["<hypernet", written_name(active.name), *said, *named, *sources]) + ">")
    return min(candidates, key=len)


def _sources(active: ActiveNetwork) -> list[str]:
    labels = {kind: label for label, kind in SOURCES.items()}
    said = []
    for source, number in ((active.condition, ""), (active.second, "2")):
        if source is not None:
            said.append(f"{labels[source.kind]}{number}={written(source.value)}")
    if active.blend != (0 if active.second is None else HALF):
        said.append(f"blend={_text(active.blend)}")
    return said


def written_name(name: str) -> str:
    """A network's name as it stands in a tag: "#" as "%23", and a "%" that would be read as part of that as "%25"."""
    return re.sub(r"%(?=(?:25)*23)", "%25", name).replace("#", "%23")


def written(value: str) -> str:
    """A text, a hash or a name as it stands in a tag."""
    return UNWRITABLE.sub(lambda match: quote(match[0], safe=""), value)


def _text(value: float | bool) -> str:
    """The shortest text of a number that reads back the same."""
    return repr(float(value)).removesuffix(".0")
