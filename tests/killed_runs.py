"""Training processes that are there to be killed.

One process, the nursery, has everything imported and the model loaded, and forks a child for each run, so that a start takes no time. It is told by
lines of JSON what to run, and the children say in lines of text how far they are.
"""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


class Nursery:
    """Starts training processes on the model in a folder."""

    def __init__(self, model):
        command = [sys.executable, __file__, str(model)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment)
        assert self.heard() == ["ready"]

    def begin(self, **order):
        """A run with `options` and `home`; it stops by itself at the step `stop_at`. Gives the child's number."""
        self.process.stdin.write(json.dumps(order) + "\n")
        word, child = self.heard()
        assert word == "child"
        return int(child)

    def heard(self):
        """The next line's words."""
        return self.process.stdout.readline().split()

    def until(self, *words):
        """All that is heard until these words, each with the time, and these."""
        found = []
        while not found or found[-1][1][: len(words)] != list(words):
            line = self.heard()
            assert line and line[0] != "gone", f"the run ended before {words}: {found} {line}"
            found.append((time.monotonic(), line))
        return found

    def kill(self, child):
        """What the child had still said, and that it was this that ended it."""
        os.kill(child, signal.SIGKILL)
        found = []
        while (line := self.heard())[0] != "gone":
            found.append((time.monotonic(), line))
        assert line == ["gone", str(-signal.SIGKILL)]
        return found

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(30) == 0


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def run(host, order):
    """One run, told event by event; then the process waits to be killed."""
    from hypernetworks.host import Folders
    from hypernetworks.trainer import HypernetworkTrainer

    host.folders = Folders.below(Path(order["home"]))
    trainer = HypernetworkTrainer(config=order["options"])
    for event in trainer.run(host=host, resume=order.get("resume", False), overwrite=order.get("overwrite", False)):
        say(event.kind, event.step)
        if event.kind == "step" and event.step == order.get("stop_at"):
            trainer.stop()
    signal.pause()


def main(model):
    import torch

    from hypernetworks.host import Folders
    from hypernetworks.hosts.diffusers import DiffusersHost

    torch.set_num_threads(1)
    host = DiffusersHost(Path(model), Folders.below(Path(model).parent / "nobody"), device="cpu")
    assert host.unet is not None
    say("ready")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                run(host, json.loads(line))
            finally:
                os._exit(1)
        say("child", child)
        say("gone", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main(sys.argv[1])
