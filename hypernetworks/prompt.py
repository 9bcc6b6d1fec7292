"""Tags in a prompt: `<hypernet:name>`, `<hypernet:name:0.8>`, `<hypernet:name:0.8:k=1:v=0.5:start=0.2:uncond=0>`.

The kind and the name are A1111's (modules/extra_networks_hypernet.py), the further arguments follow its Lora tags: up to three numbers
stand for strength, k and v, the others have names.
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import HypernetworkError

TAG = re.compile(r"<\s*hypernet\s*:([^<>]*)>", re.IGNORECASE)
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
POSITIONAL = ("strength", "k", "v")
NAMED = {"k": "k", "v": "v", "in": "input", "mid": "middle", "out": "output", "start": "start", "end": "end", "uncond": "uncond"}
SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class ActiveNetwork:
    """A hypernetwork at work: its name in the catalog, how strongly it acts where, and when.

    The strength at a place is the product of `strength`, that of K or V and that of the block. `start` and `end` are shares of the
    sampling steps, 0 to 1. `uncond` says whether rows that see the negative prompt are changed too; None: as the network's file
    recommends. Raises `HypernetworkError` for values that cannot be.
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

    def __post_init__(self) -> None:
        for field in ("strength", "k", "v", "input", "middle", "output", "start", "end"):
            if not math.isfinite(getattr(self, field)):
                raise HypernetworkError(f"{field} cannot be {getattr(self, field)}; it takes a number.")
        if not 0 <= self.start <= self.end <= 1:
            raise HypernetworkError(
                f"start and end are shares of the sampling steps from 0 to 1, the start first, not {self.start:g} to {self.end:g}."
            )


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
    if not name:
        raise HypernetworkError("it has no name.")
    values: dict[str, float | bool] = {}
    positional = list(POSITIONAL)
    for argument in rest:
        label, equals, text = (part.strip() for part in argument.partition("="))
        if equals:
            field = NAMED.get(label.lower())
            if field is None:
                raise HypernetworkError(f"there is no argument {label!r}, only {', '.join(NAMED)}.")
        elif positional:
            field, text = positional.pop(0), label
        else:
            raise HypernetworkError("only strength, k and v can be numbers without a name.")
        if field in values:
            raise HypernetworkError(f"{field} is given twice.")
        values[field] = _switch(text) if field == "uncond" else _number(field, text)
    return ActiveNetwork(name, **values)


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
    unsaid = ActiveNetwork(active.name)
    candidates = []
    for count in range(len(POSITIONAL) + 1):
        said = [_text(getattr(active, field)) for field in POSITIONAL[:count]]
        named = [
            f"{label}={_text(getattr(active, field))}"
            for label, field in NAMED.items()
            if field not in POSITIONAL[:count] and getattr(active, field) != getattr(unsaid, field)
        ]
        if count or active.strength == unsaid.strength:  # the strength itself has no name
            candidates.append(":".join(["<hypernet", active.name, *said, *named]) + ">")
    return min(candidates, key=len)


def _text(value: float | bool) -> str:
    """The shortest text of a number that reads back the same."""
    return repr(float(value)).removesuffix(".0")
