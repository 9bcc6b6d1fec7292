"""Going on with a network's training: what the form has to say for that."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .checkpoint import RunFolder
from .config import FOLDERS, TrainingConfig, options
from .errors import ConfigError, HypernetworkError
from .generator_files import GeneratorFacts
from .host import Folders
from .library import Facts, facts_of, settings
from .networks import steps_done

OF_THIS_MACHINE = (*FOLDERS, "loss_function")


def options_to_resume(folders: Folders, name: str) -> tuple[dict[str, Any], list[str]]:
    """Values of `TrainingConfig` for going on with `<networks>/<name>.safetensors`, and sentences about what to do.

    What the file says of its structure counts more than the settings in it. Its folders of pictures and a loss function of the user's own are
    taken over only if it was trained here, by its run folder: a path that came with somebody's file is not to be looked into, and no code
    that it names is to be run. Raises `HypernetworkError` for a file that training cannot go on with.
    """
    path = folders.networks / f"{name}.safetensors"
    if "/" in name or not path.is_file():
        raise HypernetworkError(
            f"Training goes on with .safetensors files that stand directly in {folders.networks}, and {name} is not there: "
            "convert a .pt first, or move the file."
        )
    facts, run = facts_of(path), RunFolder(folders.runs, name)
    values, unknown = _understood({**settings(facts.metadata), **_structure(facts)})
    values |= {"name": name, "description": facts.description, **_of_this_machine(run)}
    told = [f"These are the options of {name}. Press Train, then “Continue training”."]
    if unknown:
        told.append(f"Not understood, and left as they usually are: {', '.join(unknown)}.")
    if not values["dataset"]:
        told.append("Its pictures are not known here: choose them first (step 1).")
    if not run.has_state:
        told.append("The state of its run is not here, so that its weights are trained on with a new optimizer, and steps count from 0.")
    elif (done := steps_done(facts)) >= values.get("max_steps", TrainingConfig.max_steps):
        values["max_steps"] = 2 * done
        told.append(f"It has done its {done:,} steps, so Steps is {2 * done:,} now.")
    return values, told


def _understood(found: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values that options take, and the names of the others."""
    known, values, unknown = options(TrainingConfig), {}, []
    for name, value in found.items():
        try:
            values[name] = known[name].check(value)
        except (KeyError, ConfigError, OverflowError):  # OverflowError: an infinite whole number
            unknown.append(str(name)[:60])
    return values, unknown


def _structure(facts: Facts) -> dict[str, Any]:
    """What the file says of the network's shape, as options. A generator's folder gives what is none: the names of its tasks."""
    structure = asdict(facts.structure)
    if isinstance(facts, GeneratorFacts):
        return {"kind": facts.kind, **{name: value for name, value in structure.items() if name in options(TrainingConfig)}}
    del structure["last_layer_dropout"]  # no option: a note for A1111's files
    layers = [str(key) for key in facts.keys] if facts.per_layer else []
    targets = [part for part in ("attn1", "attn2") if any(layer.endswith(part) for layer in layers)]
    return {"kind": facts.kind, **structure, "per_layer": facts.per_layer, **({"target_layers": targets} if targets else {})}


def _of_this_machine(run: RunFolder) -> dict[str, str]:
    """The options that name places of this machine, as the run was started with them here."""
    asked = run.about().get("options", {})
    return {name: value if isinstance(value := asked.get(name, ""), str) else "" for name in OF_THIS_MACHINE}
