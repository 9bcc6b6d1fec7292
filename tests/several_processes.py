"""What each of several processes does for tests/test_processes.py: runs of training, each told of in a file of its own."""
import hashlib
import json
import os
import sys
from pathlib import Path

import torch

from hypernetworks import learner, processes
from hypernetworks.host import Folders
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.run import Run
from hypernetworks.trainer import HypernetworkTrainer

NUMBER = int(os.environ["RANK"])
LAST = NUMBER == int(os.environ["WORLD_SIZE"]) - 1


def stop(event, trainer):
    """Only the last process is told to stop, after the first step; the others hear of it at the second."""
    if LAST and event.kind == "step" and event.step == 1:
        trainer.stop()


def cancel(event, trainer):
    """Only the last process is told to end, and before the first step."""
    if LAST and event.kind == "preparing":
        trainer.cancel()


def spoil_one_loss():
    """In the last process the loss of step 4 is not a number, once."""
    honest, left = Run._loss, [LAST]

    def spoiled(self, batch):
        loss = honest(self, batch)
        if torch.is_grad_enabled() and self.step == 4 and left[0]:
            left[0] = False
            return loss * float("nan")
        return loss

    Run._loss = spoiled
    return lambda: setattr(Run, "_loss", honest)


def leave_gradients_alone():
    """The mistake that the tests are to find: each process goes by its own gradients."""
    honest = learner.average_gradients
    learner.average_gradients = lambda accelerator, network: None
    return lambda: setattr(learner, "average_gradients", honest)


WHILE_RUNNING = {"stop": stop, "cancel": cancel}
BEFORE = {"spoil_one_loss": spoil_one_loss, "leave_gradients_alone": leave_gradients_alone}


def run(host, options, act="", resume=False):
    """One run, and what this process saw of it."""
    trainer, found = HypernetworkTrainer(config=options), []
    undo = BEFORE.get(act, lambda: lambda: None)()
    try:
        for event in trainer.run(host=host, resume=resume):
            found.append(event)
            WHILE_RUNNING.get(act, lambda event, trainer: None)(event, trainer)
    finally:
        undo()
    return {
        "weights": weights_hash(trainer.hypernetwork),
        "losses": [event.loss for event in found if event.kind == "step"],
        "validation_losses": [event.validation_loss for event in found if event.kind == "validation"],
        "warnings": [event.message for event in found if event.kind == "warning"],
        "previews": sum(event.kind == "preview" for event in found),
        "end": found[-1].kind, "step": found[-1].step, "path": str(found[-1].path),
    }


def weights_hash(network):
    if network is None:
        return None
    return hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in network.state_dict().values())).hexdigest()


def writing(home):
    """A list that every file written, renamed or made below `home` is added to."""
    found = []

    def hook(event, arguments):
        changes = event in ("os.rename", "os.mkdir", "os.remove") or (event == "open" and set(str(arguments[1])) & set("wax+"))
        if changes and str(arguments[0]).startswith(str(home)):
            found.append(str(arguments[0]))

    sys.addaudithook(hook)
    return found


def main(home):
    torch.set_num_threads(1)
    written, host = writing(home), DiffusersHost(None, Folders.below(home), device="cpu")
    found = {name: run(host, **about) for name, about in json.loads((home / "runs.json").read_text()).items()}
    group = torch.distributed.distributed_c10d._get_default_group()
    about = {"runs": found, "written": list(written), "patience": group._get_backend(torch.device("cpu")).options._timeout.total_seconds()}
    (home.parent / f"found-{NUMBER}.json").write_text(json.dumps(about))
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
