"""What a folder of pictures costs before the first step: the first start, which encodes everything, the second, which finds it, and memory.

    python benchmarks/dataset.py [--small] [--json FILE] [--out FOLDER]

1,000 different pictures with captions of their own are read and prepared as a training run does it, with the embedded model's autoencoder
and text encoder; loading the model does not count. Then the resident memory of processes that prepare 100, 1,000 and 10,000 pictures from
nothing and draw batches of them, at 64 pixels, since the size of a latent does not matter there.
"""
from __future__ import annotations

import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from report import arguments, in_new_process, table, write_figures

from hypernetworks.batches import Batches
from hypernetworks.config import TrainingConfig, read
from hypernetworks.dataset import read_folder
from hypernetworks.embedded import shapes
from hypernetworks.host import Folders
from hypernetworks.hosts.diffusers import DiffusersHost

PICTURES, COUNTS = 1000, (100, 1000, 10_000)
FEW, SMALL_COUNTS = 32, (16, 32, 64)
AGAIN = 5  # second starts
STEPS = 100  # batches that are drawn before memory is read


def make_pictures(folder: Path, count: int) -> Path:
    """Different pictures, each with a caption of its own."""
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(count)
    for number in range(count):
        content = shapes.random_content(rng)
        shapes.draw(content, shapes.random_style(number)).save(folder / f"{number:05}.png")
        (folder / f"{number:05}.txt").write_text(f"{content.caption()}, picture {number}", encoding="utf-8")
    (folder / "done").touch()
    return folder


def start(host: DiffusersHost, pictures: Path, **options: int) -> Batches:
    """What a training run does before its first step."""
    config = read(TrainingConfig, {"name": "benchmark", **options})
    dataset = read_folder(pictures, resolution=config.resolution or host.model.resolution, cache=host.folders.data / "latents")
    batches = Batches(host, config, dataset)
    for _ in batches.prepare():
        pass
    return batches


def new_host(home: Path) -> DiffusersHost:
    """The embedded model, loaded, with nothing prepared below `home`."""
    torch.set_num_threads(1)
    shutil.rmtree(home, ignore_errors=True)
    host = DiffusersHost(folders=Folders.below(home))
    host.encode_prompts(["a picture"])
    return host


def start_twice(home: Path, pictures: Path) -> tuple[float, float]:
    """Of one process: seconds of the first start, and of the second (median)."""
    host, seconds = new_host(home), []
    for _ in range(1 + AGAIN):
        started = time.perf_counter()
        start(host, pictures)
        seconds.append(time.perf_counter() - started)
    return seconds[0], median(seconds[1:])


def memory_of(home: Path, pictures: Path) -> tuple[float, float]:
    """Of one process: MB resident after a first start and some batches, and the most there ever were."""
    batches = start(new_host(home), pictures, resolution=64)
    for step in range(1, STEPS + 1):
        batches.at(step, 0)
    return resident("VmRSS"), resident("VmHWM")


def resident(entry: str) -> float:
    """MB of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(entry)).split()[1]) / 1024


def measure(out: Path, pictures: int, counts: Sequence[int]) -> tuple[dict[str, float], str]:
    """Figures, and two tables in one text."""
    first, second = in_new_process(start_twice, out / "started", make_pictures(out / f"pictures-{pictures}", pictures))
    memory = {count: in_new_process(memory_of, out / "remembered", make_pictures(out / f"pictures-{count}", count)) for count in counts}
    growth = [memory[counts[-1]][which] - memory[counts[0]][which] for which in (0, 1)]
    found = {"second_start_ratio": second / first, "memory_growth_mb": growth[0], "peak_growth_mb": growth[1], "first_s": first, "second_s": second}
    rows = [(f"seconds until {pictures:,} pictures are ready: first start", first), ("second start", second), ("second / first", second / first)]
    for count, (now, most) in memory.items():
        rows += [(f"MB resident with {count:,} pictures", now), ("at most", most)]
    return found, table(("what", "value"), [*rows, ("growth of memory, MB", growth[0]), ("of its peak, MB", growth[1])])


def main() -> None:
    """The command line."""
    options = arguments("dataset", __doc__).parse_args()
    found, text = measure(options.out, *((FEW, SMALL_COUNTS) if options.small else (PICTURES, COUNTS)))
    print(text)
    write_figures(options.json, found)


if __name__ == "__main__":
    main()
