"""The runs that wait for their turn: an order that can be changed, kept on the disk so that a restart finds it again, and other programs do."""
from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .checkpoint import RunFolder
from .config import TrainingConfig, plain, read
from .errors import ConfigError, HypernetworkError, NameTaken, NotThere
from .files import check_name
from .host import Folders
from .locks import RUN, held, is_free
from .writing import write_atomically

LONGEST = 1000  # runs that can wait
REMEMBERED = 20  # runs that have ended
PATIENCE = 10.0  # seconds that another program may take to change the queue
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waiting:
    """A run that waits, or is having its turn. `number` stays its own wherever it stands; `sweep` is the name of the one that it belongs to."""

    number: int
    config: TrainingConfig
    resume: bool = False
    overwrite: bool = False
    sweep: str = ""


@dataclass(frozen=True)
class Ended:
    """How a run of the queue came out: `state` is "finished", "stopped", "cancelled" or "failed", `sentence` what it said last."""

    number: int
    name: str
    state: str
    sentence: str


class Queue:
    """Every method may be called from any thread. What a web UI was told before it was started anew is `held`: it waits for the user's word.

    Programs that work in one data folder see the same runs. Each begins those that were added in it, and all that it was told to go on with.
    """

    def __init__(self, folders: Callable[[], Folders]) -> None:
        """`folders` gives the host's; the file `queue.json` in its data folder is read at the first look, and whenever another program has changed it."""
        self._folders, self._lock, self._read = folders, threading.Lock(), False
        self._stamp: tuple[int, ...] | None = None  # of the file as it was last read or written
        self._waiting: list[Waiting] = []
        self._ended: list[Ended] = []
        self._running: Waiting | None = None
        self._elsewhere: list[Waiting] = []  # have their turns in other programs
        self._own: set[int] = set()  # numbers of those that this program may begin
        self._held, self._count, self._changes = False, 0, 0

    @property
    def changes(self) -> int:
        """How many there were, so that a page notices one."""
        with self._open(changing=False):
            return self._changes

    @property
    def waiting(self) -> list[Waiting]:
        """In the order of their turns."""
        with self._open(changing=False):
            return list(self._waiting)

    @property
    def ended(self) -> list[Ended]:
        """The last ones, newest first."""
        with self._open(changing=False):
            return list(self._ended)

    @property
    def running(self) -> Waiting | None:
        """The one that is having its turn."""
        with self._open(changing=False):
            return self._running

    @property
    def held(self) -> bool:
        """Whether no run begins by itself."""
        with self._open(changing=False):
            return self._held

    def hold(self, held: bool = True) -> None:
        """No further run begins by itself; or they do again."""
        with self._open():
            self._held = held
            if not held:
                self._own |= {one.number for one in self._waiting}

    def add(self, config: TrainingConfig, resume: bool = False, overwrite: bool = False, sweep: str = "") -> Waiting:
        """At the end. Raises `NameRefused`, `NameTaken` for the name of another one that waits, `ConfigError` where too many do."""
        with self._open():
            self._check(config, resume or overwrite)
            self._count += 1
            self._own.add(self._count)
            self._waiting.append(Waiting(self._count, config, resume, overwrite, sweep))
            return self._waiting[-1]

    def _check(self, config: TrainingConfig, may_be_there: bool) -> None:
        check_name(config.name)
        if len(self._waiting) >= LONGEST:
            raise ConfigError(f"There are {LONGEST:,} runs in the queue already; wait until some have ended.")
        there = [*self._waiting, *self._turns()]
        if not may_be_there and any(one.config.name.casefold() == config.name.casefold() for one in there):
            raise NameTaken(f"A run named {config.name!r} is in the queue already: choose another name.")

    def move(self, number: int, to: int) -> None:
        """To a place among those that wait, counted from 0; beyond the last one is the last. Raises `NotThere`."""
        with self._open():
            self._put(self._found(number), to)

    def shift(self, number: int, by: int) -> None:
        """So many places later, or earlier for a negative number. Raises `NotThere`."""
        with self._open():
            one = self._found(number)
            self._put(one, self._waiting.index(one) + by)

    def _put(self, one: Waiting, to: int) -> None:
        self._waiting.remove(one)
        self._waiting.insert(max(0, to), one)

    def remove(self, number: int) -> Waiting | None:
        """Takes out one that waits, which it gives, or forgets one that has ended. Raises `NotThere`."""
        with self._open():
            if any(one.number == number for one in self._ended):
                self._ended = [one for one in self._ended if one.number != number]
                return None
            one = self._found(number)
            self._waiting.remove(one)
            return one

    def take(self) -> Waiting | None:
        """The next one that this program may begin, for its turn; None where none waits or all are held."""
        with self._open(changing=False):
            if self._held or self._next() is None:
                return None
        with self._open():
            if (one := self._next()) is not None:  # else another program was told to go on with it meanwhile
                self._waiting.remove(one)
                self._running = one
            return one

    def _next(self) -> Waiting | None:
        return next((one for one in self._waiting if one.number in self._own), None)

    def _turns(self) -> list[Waiting]:
        """Those that have one, here and elsewhere."""
        return [*([self._running] if self._running else []), *self._elsewhere]

    def finish(self, one: Waiting, state: str, sentence: str) -> None:
        """Its turn is over."""
        with self._open():
            if self._running == one:  # else the next one has begun already
                self._running = None
            self._ended = [Ended(one.number, one.config.name, state, sentence), *self._ended][:REMEMBERED]

    def _found(self, number: int) -> Waiting:
        for one in self._waiting:
            if one.number == number:
                return one
        raise NotThere(f"No run with the number {number} waits in the queue.")

    @contextmanager
    def _open(self, changing: bool = True) -> Iterator[None]:
        """What is known, for nobody else meanwhile; a change is kept on the disk. Whatever raises has changed nothing yet."""
        with self._lock, ExitStack() as stack:
            first = not self._read and self._file.exists()
            if changing or first:
                stack.enter_context(held(self._file.with_suffix(".lock"), PATIENCE))
            self._read = True
            self._look(first)
            yield
            if changing:
                self._changes += 1
                self._save()

    @property
    def _file(self) -> Path:
        return self._folders().data / "queue.json"

    def _save(self) -> None:
        kept = {
            "count": self._count, "running": [_plain(one) for one in self._turns()],
            "waiting": [_plain(one) for one in self._waiting], "ended": [vars(one) for one in self._ended],
        }  # fmt: skip
        text = json.dumps(kept, indent=1)
        try:
            write_atomically(self._file, lambda path: path.write_text(text, encoding="utf-8"))
            self._stamp = _stamp(self._file)
        except HypernetworkError as error:  # the runs go on as long as this process does
            log.warning("The queue of runs is not kept: %s", error)

    def _look(self, first: bool) -> None:
        """Reads the file where another program has changed it. At the first look, runs that were cut off come before all others."""
        if (stamp := _stamp(self._file)) == self._stamp:
            return
        self._stamp = stamp
        self._changes += 1
        self._load()
        if not first:
            return
        cut_off = [one for one in self._elsewhere if is_free(self._folders().runs / one.config.name / RUN)]
        self._elsewhere = [one for one in self._elsewhere if one not in cut_off]
        self._waiting = [*map(self._gone_on, cut_off), *self._waiting]
        self._held = bool(self._waiting)
        if cut_off:
            self._save()  # or another program would find them, too

    def _load(self) -> None:
        """What cannot be read is left out, and the log says so."""
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            ended, count = [Ended(**one) for one in kept["ended"]], int(kept["count"])
            running = kept["running"] if isinstance(kept["running"], list) else [kept["running"]] if kept["running"] else []  # one alone
            running, waiting = ([one for one in map(_waiting, found) if one is not None] for found in (running, kept["waiting"]))
        except FileNotFoundError:
            return
        except Exception as error:  # damaged from outside, in whatever way
            log.warning("The queue of runs in %s cannot be read: %s", self._file, error)
            return
        own = self._running.number if self._running else None
        self._ended, self._count = ended, max(count, self._count)
        self._elsewhere, self._waiting = ([one for one in found if one.number != own] for found in (running, waiting))

    def _gone_on(self, one: Waiting) -> Waiting:
        """A run that was cut off goes on from its last checkpoint where it has one of its own, not one of an earlier run of that name."""
        run = RunFolder(self._folders().runs, one.config.name)
        own = run.state_path.exists() and run.about().get("options") == plain(one.config)
        return replace(one, resume=True, overwrite=False) if own else one


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Another one after every change of the file; None where there is none."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino


def _plain(one: Waiting) -> dict[str, Any]:
    return vars(one) | {"config": plain(one.config)}


def _waiting(kept: Mapping[str, Any]) -> Waiting | None:
    try:
        return Waiting(**dict(kept) | {"config": read(TrainingConfig, kept["config"])})
    except (HypernetworkError, TypeError, KeyError, ValueError) as error:
        log.warning("A run of the queue cannot be read: %s", error)
        return None
