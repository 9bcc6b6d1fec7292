"""REST for the runs that wait, and for sweeps, which are put among them."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import api_answers
from .api_bodies import configuration, schema, split, whole
from .config import Option, TrainingConfig, plain
from .errors import HypernetworkError

if TYPE_CHECKING:
    from .jobs import Jobs
    from .rest import Routes


def add_queue(routes: Routes, api: QueueApi, known: Mapping[str, Option]) -> None:
    """The routes of the queue; `known` are the options of training."""
    routes.get("/queue", api.queue)
    routes.get("/sweep", api.outcomes)
    routes.post("/queue", api.add, schema(known, preset=(str, ""), resume=(bool, False), overwrite=(bool, False)))
    routes.post("/sweep", api.sweep, schema(known, preset=(str, ""), overwrite=(bool, False), sweep=(dict, {})))
    routes.post("/queue/move", api.move, schema({}, number=(int, 0), to=(int, 0)))
    routes.post("/queue/remove", api.remove, schema({}, number=(int, 0)))
    routes.post("/queue/hold", api.hold, schema({}, held=(bool, False)))


class QueueApi:
    """What the routes do. `training` makes a configuration of a client's values, `allowed` says what of it a client may ask for."""

    def __init__(
        self, jobs: Jobs, sentence: Callable[[HypernetworkError | str], str], training: Callable[[Mapping[str, Any]], TrainingConfig],
        allowed: Callable[[TrainingConfig, bool, bool], TrainingConfig],
    ) -> None:  # fmt: skip
        self.jobs, self.sentence, self.training, self.allowed = jobs, sentence, training, allowed

    def queue(self) -> dict[str, Any]:
        """The runs that wait, in order, and how the last ones came out."""
        return api_answers.queue(self.jobs, self.sentence)

    def add(self, body: dict[str, Any]) -> dict[str, Any]:
        """Puts a run at the end of the queue, where it begins at once if nothing else does. Takes what `train` takes."""
        values, flags = split(body, "resume", "overwrite")
        self.jobs.add(self.allowed(self.training(values), flags["resume"], flags["overwrite"]), **flags)
        return self.queue()

    def move(self, body: dict[str, Any]) -> dict[str, Any]:
        """Moves the run with the number `number` to the place `to` among those that wait, counted from 0."""
        self.jobs.queue.move(whole(body, "number"), whole(body, "to"))
        return self.queue()

    def remove(self, body: dict[str, Any]) -> dict[str, Any]:
        """Takes the run with the number `number` out of the queue, or forgets one that has ended."""
        self.jobs.queue.remove(whole(body, "number"))
        return self.queue()

    def hold(self, body: dict[str, Any]) -> dict[str, Any]:
        """With `held` no further run begins by itself, without it they do again."""
        self.jobs.queue.hold(split(body, "held")[1]["held"])
        self.jobs.go_on()
        return self.queue()

    def sweep(self, body: dict[str, Any]) -> dict[str, Any]:
        """Queues a run for every combination of the lists of values in `sweep`. Takes what `train` takes but for `resume`."""
        from . import sweep

        given, flags = split(body, "overwrite")
        values, lists = sweep.split(given)
        base = plain(self.training(values))  # the preset's options are among them
        made = sweep.make(base, {name: _members(name, members) for name, members in lists.items()})
        runs = [self.allowed(config, False, flags["overwrite"]) for config in made.runs]
        self.jobs.add_sweep(made, runs, flags["overwrite"])
        return self.outcomes(made.name)

    def outcomes(self, name: str) -> dict[str, Any]:
        """How the runs of the sweep of that name came out so far."""
        from . import sweep

        return {"name": name, "runs": [vars(one) for one in sweep.outcomes(self.jobs.host.folders, name)]}


def _members(name: str, members: Any) -> list[Any]:
    """The list of values that a client gives for an option. Raises `ConfigError` for what is none of simple values, or of lists of them."""
    for member in members if isinstance(members, list) else [None]:
        configuration(TrainingConfig, {name: member})
    return members
