"""How far the forecast of a run's memory is from what the run takes.

    python benchmarks/forecast.py [--small] [--json FILE] [--out FOLDER]

A UNet of Stable Diffusion 1.5's size with random weights (`--small`: a tenth of it), float32, on the CPU. Each setting runs in a process of its own:
the forecast is made, then three steps of the trainer are taken, with a copy to go back to after each. What is measured is the most memory that was
resident in these steps beside what the process had before the model was made.

About 5 minutes on a CPU core; finished parts are kept in the output folder.
"""
from __future__ import annotations

import contextlib
import gc
import json
import tempfile
import time
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from measuring import in_own_process, machine, peak, reset_peak, resident
from PIL import Image
from random_models import RandomHost, sd15_unet
from report import arguments, kept, table, write_figures

from hypernetworks import recovery
from hypernetworks.trainer import HypernetworkTrainer

STEPS = 3
SETTINGS = {
    "all layers, 256 px, batch 1": dict(resolution=256, batch_size=1),
    "all widths 1-2-1, 256 px, batch 2, average, no ways back": dict(
        resolution=256, batch_size=2, per_layer=False, layer_structure=(1, 2, 1), activation="swish", weight_initialization="Normal", ema_decay=0.99,
        rollbacks=0,
    ),
    "all layers, 384 px, batch 1, checkpointing": dict(resolution=384, batch_size=1, gradient_checkpointing=True),
}  # fmt: skip


def trainer_of(options: dict[str, Any], folder: Path) -> HypernetworkTrainer:
    """A run on random pictures, one sample of each picture in a batch."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for number in range(options["batch_size"]):
        Image.effect_noise((options["resolution"],) * 2, 20 + number).convert("RGB").save(pictures / f"{number}.png")
    common = dict(name="measured", dataset=str(pictures), max_steps=1000, validation_every=0, preview_every=0, checkpoint_every=0, validation_share=0.0)
    return HypernetworkTrainer(config=common | options)


def measure(options: dict[str, Any], small: bool) -> dict[str, float]:
    """Bytes foreseen and bytes taken, and the seconds that the forecast took."""
    import accelerate  # noqa: F401  loaded code is no part of what training takes

    with tempfile.TemporaryDirectory() as folder:
        first = trainer_of(SETTINGS["all layers, 256 px, batch 1"], Path(folder) / "first")
        first.forecast(host=RandomHost(sd15_unet(small=True), Path(folder) / "first"))  # loads what forecasts need
        del first
        gc.collect()
        before = resident()
        host, trainer = RandomHost(sd15_unet(small), Path(folder) / "home"), trainer_of(options, Path(folder) / "home")
        started = time.process_time()
        foreseen = trainer.forecast(host=host)
        took = time.process_time() - started
        gc.collect()
        recovery.SNAPSHOT_EVERY = 1  # the copies of a long run within a few steps
        with contextlib.closing(trainer.run(host=host)) as events:
            steps = (event.step for event in events if event.kind == "step")
            next(steps)  # the optimizer remembers something from here on
            reset_peak()
            while next(steps) < STEPS:
                pass
        return {"foreseen": foreseen.needed, "taken": peak() - before, "seconds": took}


def main() -> None:
    parser = arguments("forecast", __doc__)
    parser.add_argument("--one", help=SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(SETTINGS[options.one], options.small)))
        return

    def measured(name: str) -> dict[str, float]:
        return json.loads(in_own_process(__file__, ["--one", name, *(["--small"] if options.small else [])]))

    found = {name: kept(options.out, name, (about, options.small), lambda n=name: measured(n)) for name, about in SETTINGS.items()}
    off = {name: about["foreseen"] / about["taken"] - 1 for name, about in found.items()}
    rows = [[name, about["foreseen"] / 1e9, about["taken"] / 1e9, f"{100 * off[name]:+.1f} %", about["seconds"]] for name, about in found.items()]
    print(f"Stable Diffusion 1.5's UNet{', a tenth of it' if options.small else ''}; {machine()}.")
    print(table(("setting", "foreseen, GB", "taken, GB", "off by", "the forecast's seconds"), rows))
    write_figures(options.json, {"forecast_off": max(abs(value) for value in off.values())}, machine=machine(), bytes=found)


if __name__ == "__main__":
    main()
