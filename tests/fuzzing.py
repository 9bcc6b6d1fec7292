"""Input that is made up, from valid seeds at random, and a watch over what reading it does to the machine."""
import copy
import os
import random
import shutil
import string
import sys
import sysconfig
import time
import typing
from pathlib import Path

import hypernetworks
from hypernetworks.errors import HypernetworkError

SECONDS = 2.0  # of computing, for one case
NOISE = 16 << 20  # bytes that come and go with the interpreter and its allocators, whatever is read
LONGEST_FILE, LONGEST_TEXT = 50_000, 2_000  # bytes and characters of what is learned
RUNS = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "os.startfile", "subprocess.Popen", "socket.connect",
    "ctypes.dlopen", "pickle.find_class", "webbrowser.open",
}  # fmt: skip
TOUCHES = {
    "open": 1, "os.listdir": 1, "os.scandir": 1, "os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2,
    "os.truncate": 1, "os.chmod": 1, "shutil.copyfile": 2, "shutil.move": 2, "shutil.rmtree": 1,
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PROGRAM = tuple(
    {os.path.realpath(place) for place in (*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, Path(hypernetworks.__file__).parent, "/proc/self", "/sys")}
)
DEVICES = ("/dev/null", "/dev/urandom")
NUMBERS = (0, 1, -1, 2, 7, 255, 2**16, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30)
FLOATS = (0.0, -0.0, 1e-320, 0.5, 1e30, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", " ", "\0", "..", "../..", "/", "\\", "/etc/passwd", "C:\\Windows", "\\\\host\\share", "~", "con", "NUL.txt", "COM¹", "．．／", "∕", "․․", "a.",
    "a ", "\u202e", "\u200b", "\ud800", "é", "e\u0301", "𝓪", "null", "None", "NaN", "[" * 3000, "{" * 300, "%s%n", "${HOME}", "$(id)", "`id`", "x" * 5000,
)  # fmt: skip


class Mutator:
    """Changes seeds at random; the same number gives the same changes."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def data(self, seeds, words=()):
        """One of the seeds with a few bytes changed, cut, doubled, or put in from the words or another seed."""
        found = bytearray(self.random.choice(seeds))
        for _ in range(self.random.choice((1, 1, 2, 3, 6))):
            place = self.random.randrange(len(found) + 1) if self.random.random() < 0.5 else self.random.randrange(min(len(found), 600) + 1)
            end = min(len(found), place + self.random.choice((1, 1, 2, 4, 8, 40, 400)))
            way = self.random.randrange(8)
            if way == 0 and place < len(found):
                found[place] ^= 1 << self.random.randrange(8)
            elif way == 1 and place < len(found):
                found[place] = self.random.randrange(256)
            elif way == 2:
                size = self.random.choice((1, 2, 4, 8))
                found[place : place + size] = (self.random.choice(NUMBERS) % 256**size).to_bytes(size, self.random.choice(("little", "big")))
            elif way == 3:
                del found[place:end]
            elif way == 4:
                found[place:place] = found[place:end] * self.random.choice((1, 2, 30))
            elif way == 5 and words:
                found[place : place + self.random.choice((0, 0, 4))] = self.random.choice(words)
            elif way == 6:
                other = self.random.choice(seeds)
                found[place:end] = other[place : place + self.random.choice((4, 40, 400))]
            elif way == 7 and self.random.random() < 0.3:
                del found[place:]
        return bytes(found)

    def text(self, seeds, words=()):
        """One of the seeds with some characters changed, cut, doubled, or put in from the words."""
        found = self.random.choice(seeds)
        for _ in range(self.random.choice((1, 1, 2, 3, 6))):
            place = self.random.randrange(len(found) + 1)
            end = min(len(found), place + self.random.choice((1, 1, 2, 5, 20)))
            put = self.random.choice((
                self.random.choice(string.printable), chr(self.random.randrange(0x110000)), self.random.choice(TEXTS), str(self.random.choice(NUMBERS + FLOATS)),
                self.random.choice(words or ("",)), found[place:end] * self.random.choice((0, 2, 50)),
            ))  # fmt: skip
            found = found[:place] + put + found[self.random.choice((place, end)) :]
        return found

    def value(self, depth=3):
        """Anything that JSON can hold, and a little more."""
        kind = self.random.randrange(8 if depth else 5)
        if kind == 0:
            return self.random.choice((None, True, False))
        if kind == 1:
            return self.random.choice(NUMBERS)
        if kind == 2:
            return self.random.choice(FLOATS)
        if kind < 5:
            return self.random.choice(TEXTS)
        members = [self.value(depth - 1) for _ in range(self.random.randrange(4))]
        return members if kind < 7 else {self.random.choice(TEXTS): member for member in members}

    def changed(self, value, names=()):
        """A value of lists and dictionaries, somewhere within it something else."""
        value = copy.copy(value)
        if isinstance(value, (dict, list)) and value and self.random.random() < 0.9:
            key = self.random.choice(list(value) if isinstance(value, dict) else range(len(value)))
            way = self.random.randrange(6)
            if way == 0:
                value.pop(key)
            elif way == 1 and isinstance(value, dict):
                value[self.random.choice((*TEXTS, *names))] = value.pop(key)
            elif way == 2 and isinstance(value, list):
                value[key:key] = [value[key]] * self.random.choice((1, 3, 200))
            else:
                value[key] = self.changed(value[key], names)
            return value
        if isinstance(value, int) and not isinstance(value, bool) and self.random.random() < 0.7:
            return value + self.random.choice((-1, 1, 8, 1000, 10**9))
        if isinstance(value, str) and self.random.random() < 0.5:
            return self.text([value], names)
        return self.value()


class Watch:
    """Within it, whatever runs code or another program is noted, and whatever touches a file that is not below the folder."""

    active = None

    def __init__(self, folder):
        self.folder, self.seen = os.path.realpath(folder), []

    def __enter__(self):
        self.seen.clear()
        Watch.active = self
        return self

    def __exit__(self, *error):
        Watch.active = None

    def note(self, event, arguments):
        if event in RUNS:
            self.seen.append((event, str(arguments)[:200]))
        elif event == "exec" and arguments[0].co_filename.startswith("<") and not importing():
            frame = sys._getframe(2)
            self.seen.append((event, f"{frame.f_code.co_filename}:{frame.f_lineno}"))
        elif event in TOUCHES:
            writes = event not in ("open", "os.listdir", "os.scandir") or (event == "open" and bool((arguments[2] or 0) & WRITING))
            for path in arguments[: TOUCHES[event]]:
                if isinstance(path, (str, bytes, os.PathLike)) and not self._may(place(event, os.fsdecode(path), arguments), writes):
                    self.seen.append((event, os.fsdecode(path)))

    def _may(self, path, writes):
        inside = path == self.folder or path.startswith(self.folder + os.sep)
        return inside or path in DEVICES or (not writes and path.startswith(PROGRAM))


def place(event, path, arguments):
    """Where it is. Removing a tree of folders goes by the numbers of open ones, which only some events tell."""
    folder = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
    if isinstance(folder, int) and folder >= 0 and not os.path.isabs(path):
        return os.path.realpath(f"/proc/self/fd/{folder}/{path}")
    if event == "open" and path == os.path.basename(path) != ".." and within(shutil.__file__):
        return DEVICES[0]
    return os.path.realpath(path)


def importing():
    """Whether a module is being loaded, at its first use, or an annotation of the program's own is looked up: both go by exec."""
    return within("<frozen importlib._bootstrap>", typing.__file__)


def within(*files):
    """Whether something in one of these files is being called."""
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_filename not in files:
        frame = frame.f_back
    return frame is not None


def _hook(event, arguments):
    if Watch.active is not None and (event in RUNS or event in TOUCHES or event == "exec"):
        watch, Watch.active = Watch.active, None  # what the watch itself asks is none of its business
        try:
            watch.note(event, arguments)
        finally:
            Watch.active = watch


sys.addaudithook(_hook)  # for good, as all of them are


class Ways:
    """Which ways through the files below a folder were gone: pairs of lines, one after the other. Of a case only the beginning is looked at, so
    that a long one is not held up: so many lines there, and so many calls, of whatever is called."""

    STEPS, CALLS = 2_000, 20_000

    def __init__(self, folder):
        self.folder, self.seen, self.new = os.fspath(folder), set(), False

    def __enter__(self):
        self.new, self.before, self.steps_left, self.calls_left = False, None, self.STEPS, self.CALLS
        sys.settrace(self._call)

    def __exit__(self, *error):
        sys.settrace(None)

    def _call(self, frame, event, argument):
        self.calls_left -= 1
        if not self.calls_left:
            sys.settrace(None)
        return self._step if frame.f_code.co_filename.startswith(self.folder) else None

    def _step(self, frame, event, argument):
        here = (frame.f_code.co_filename, frame.f_lineno)
        if (way := (self.before, here)) not in self.seen:
            self.seen.add(way)
            self.new = True
        self.before, self.steps_left = here, self.steps_left - 1
        if not self.steps_left:
            sys.settrace(None)
        return self._step


class Fuzz:
    """Runs cases, counts them, and keeps those that did what none may."""

    def __init__(self, counts, folder, code=Path(hypernetworks.__file__).parent):
        """`code`: the folder of what is tried."""
        self.counts, self.watch, self.ways, self.escaped = counts, Watch(folder), Ways(code), []

    def case(self, what, call, *arguments, size=None, refusals=(HypernetworkError,)):
        """One call, which may give something or raise a refusal, within its time; where `size` is that of the file it reads, within twice that of memory.
        Gives what the call gave."""
        self.counts.fuzzed += 1
        before = memory_mark() if size is not None else None
        began, found, problem = time.process_time(), None, ""
        with self.watch as watch, self.ways:
            try:
                found = call(*arguments)
            except refusals:
                pass
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
        if (took := time.process_time() - began) > SECONDS:
            problem = problem or f"took {took:.1f} s"
        if before is not None and (grown := memory_grown(before)) > 2 * size + NOISE:
            problem = problem or f"took {grown / 2**20:.0f} MB of memory for {size / 2**20:.1f}"
        self.check(what, not (problem or watch.seen), problem or list(watch.seen))
        return found

    def learn(self, seeds, seed):
        """What went a way that no case before it did is a seed of those that follow, unless it is long and would hold them up."""
        if self.ways.new and len(seed) <= (LONGEST_TEXT if isinstance(seed, str) else LONGEST_FILE):
            seeds.append(seed)

    def check(self, what, holds, problem="is not what is documented"):
        """What else is to hold of the case."""
        if not holds:
            self.counts.escaped += 1
            self.escaped.append((what, problem))

    def end(self):
        assert not self.escaped, f"{len(self.escaped)} escaped; for instance {self.escaped[:3]}"


def memory_mark():
    """The memory of the process now; its highest is counted anew from here. Linux only; None elsewhere."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def memory_grown(mark):
    """How much more the process has had at most since the mark, in bytes."""
    return _status("VmHWM") - mark


def _status(name):
    with open("/proc/self/status") as lines:
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))
