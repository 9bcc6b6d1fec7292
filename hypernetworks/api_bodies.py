"""Bodies of requests: what was asked, checked against the options, and the JSON schemas that tell a client what can be asked."""
from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .config import Option, options, read
from .errors import ConfigError

_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}


def split(body: Mapping[str, Any], *flags: str) -> tuple[dict[str, Any], dict[str, bool]]:
    """The body's values without the flags, and the flags. Null stands for a value that was not given."""
    given = {name: value for name, value in body.items() if value is not None}
    asked = {name: given.pop(name, False) for name in flags}
    if odd := [name for name, value in asked.items() if not isinstance(value, bool)]:
        raise ConfigError(f"{odd[0]} cannot be {asked[odd[0]]!r}: it takes true or false.")
    return given, asked


def configuration(config: type, values: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> Any:
    """The values as `config`, on top of those of `base`. Raises `ConfigError`."""
    known = options(config)
    for name, value in values.items():
        option = known.get(name)
        # a command line and a TOML file have no nested values; what Python makes text of is not what was meant
        if option is not None and not _is_simple(value, option):
            raise ConfigError(f"{option.label} ({name}) cannot be {value!r}: it takes {option.takes()}.")
    return read(config, {**(base or {}), **values})


def text_of(values: Mapping[str, Any], name: str, default: str = "") -> str:
    """The text of that name. Raises `ConfigError` for another kind of value."""
    value = values.get(name, default)
    if not isinstance(value, str):
        raise ConfigError(f"{name} cannot be {value!r}: it takes text.")
    return value


def whole(values: Mapping[str, Any], name: str) -> int:
    """The whole number of that name. Raises `ConfigError` for another kind of value, or none."""
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name} cannot be {value!r}: it takes a whole number.")
    return value


def schema(known: Mapping[str, Option], names: Collection[str] | None = None, **more: tuple[type, Any]) -> dict[str, Any]:
    """JSON schema of a body with these of the options, all by default, and what else it takes."""
    others = {name: {"type": _KINDS[kind], "default": default} for name, (kind, default) in more.items()}
    return {"type": "object", "properties": {name: option_schema(known[name]) for name in (known if names is None else names)} | others}


def option_schema(option: Option) -> dict[str, Any]:
    """JSON schema of one option's value."""
    item: dict[str, Any] = {"type": _KINDS[option.item if option.kind is tuple else option.kind]}
    limits = {"enum": list(option.choices) or None, "minimum": option.minimum, "maximum": option.maximum}
    item |= {name: value for name, value in limits.items() if value is not None}
    shape = {"type": "array", "items": item} if option.kind is tuple else item
    default = {} if option.default is None else {"default": option.default}
    return {**shape, "title": option.label, "description": option.help, **default}


def _is_simple(value: Any, option: Option) -> bool:
    members = value if option.kind is tuple and isinstance(value, (list, tuple)) else [value]
    return all(isinstance(member, (str, int, float)) for member in members)
