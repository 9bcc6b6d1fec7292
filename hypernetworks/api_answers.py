"""Networks and runs as the plain values that REST answers with. No folder of this machine stands in them."""
from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import FOLDERS, plain

if TYPE_CHECKING:
    from .config import TrainingConfig
    from .exporting import Exported
    from .files import FileFacts
    from .jobs import Job, Jobs
    from .prompt import ActiveNetwork

PREVIEWS = 100  # the newest that are listed; older ones can still be asked for by their index


def network(path: Path) -> dict[str, Any]:
    """What the file says about itself. Raises as `files.describe` does."""
    from .files import FileFacts, short_hash
    from .library import facts_of

    facts = facts_of(path)
    metadata = {name: text for name, text in facts.metadata.items() if name != "preview"}
    if "settings" in metadata:
        metadata["settings"] = _without_folder(metadata["settings"])
    return {
        "kind": facts.kind,
        "size": facts.size,
        "hash": short_hash(path),
        "step": facts.step,
        "description": facts.description,
        **(_residual(facts) if isinstance(facts, FileFacts) else {"layers": [layer.name for layer in facts.layers]}),
        "structure": asdict(facts.structure),
        "metadata": metadata,
        "preview": b64encode(facts.preview).decode() if facts.preview else None,
    }


def _residual(facts: FileFacts) -> dict[str, Any]:
    return {"per_layer": facts.per_layer, "widths": {str(key): width for key, width in facts.widths.items()}}


def exported(made: Exported, active: ActiveNetwork) -> dict[str, Any]:
    """The LoRA file that was written, and the tag that does the same while pictures are drawn."""
    from .prompt import tag

    return {
        "file": made.path.name,
        "hash": made.hash,
        "size": made.path.stat().st_size,
        "rank": made.rank,
        "projections": made.projections,
        "tag": made.tag,
        "made_of": tag(active),
        "notes": list(made.notes),
    }


def summary(job: Job, sentence: Callable[[str], str]) -> dict[str, Any]:
    """How a run is going. `sentence` takes from a text what a client is not to see."""
    at, last, step = job.position, job.last, job.last_step
    running, preparing = job.running, None
    if at is not None and at.kind == "preparing":  # counts pictures and captions, not steps
        at, preparing = None, {"done": at.step, "total": at.steps, "what": at.message}
    return {
        "number": job.number,
        "name": job.config.name,
        "state": job.state,
        "ending": job.ending if running else None,
        "message": sentence(last.message) if last else "",
        "preparing": preparing if running else None,
        "step": at.step if at else 0,
        "steps": at.steps if at else job.config.max_steps,
        "loss": step.loss if step else None,
        "rate": step.rate if step else None,
        "seconds_left": step.seconds_left if running and step else None,
        "error": sentence(job.error) if job.error else None,
        "file": job.path.name if job.path else None,
    }


def run(job: Job, sentence: Callable[[str], str]) -> dict[str, Any]:
    """All that a page would show of a run. The curves are bounded (see `jobs.Curve`), and so is the list of previews."""
    with job.lock:
        curve, validation_curve = job.losses.points(), job.validation_losses.points()
        first = max(0, len(job.previews) - PREVIEWS)
        previews = [{"index": index, "step": one.step, "prompt": one.prompt} for index, one in enumerate(job.previews[first:], first)]
    return {
        **summary(job, sentence),
        "options": _options(job.config),
        "curve": curve,
        "validation_curve": validation_curve,
        "previews": previews,
        "warnings": [sentence(warning) for warning in job.warnings],
    }


def queue(jobs: Jobs, sentence: Callable[[str], str]) -> dict[str, Any]:
    """The queue: `running` is the number of the one that is having its turn."""
    found, running = jobs.queue, jobs.queue.running
    waiting = [
        {"number": one.number, "name": one.config.name, "resume": one.resume, "overwrite": one.overwrite, "options": _options(one.config)}
        for one in found.waiting
    ]
    ended = [vars(one) | {"sentence": sentence(one.sentence)} for one in found.ended]
    return {"held": found.held, "running": running.number if running else None, "waiting": waiting, "ended": ended}


def _options(config: TrainingConfig) -> dict[str, Any]:
    """Those that differ from the defaults; of folders, the last part only."""
    folders = {name: _base_name(folder) for name in FOLDERS if (folder := getattr(config, name))}
    return plain(config) | folders


def _without_folder(settings: str) -> str:
    """A file's settings, with the last part only of the folders that it was trained on."""
    try:
        values = json.loads(settings)
        return json.dumps(values | {name: _base_name(values[name]) for name in FOLDERS if isinstance(values.get(name), str)})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return settings


def _base_name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
