"""What a large folder of hypernetworks costs: listing it, listing it again, opening one, and switching from one to another between two images.

    python benchmarks/library.py [--small] [--json FILE] [--out FOLDER]

5,000 files as the trainer writes them for SD1.5 (one pair per attention layer or one per width, a preview in the header) and `.pt` files as
AUTOMATIC1111 has them. Headers and sizes are real; the weights of all but a few are holes in the file, which nobody reads for a list.
A first listing is one in a process that has listed nothing yet, from a warm disk. Medians of several processes, by the processor's clock.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from report import arguments, in_new_process, table, write_figures

from hypernetworks.catalog import Catalog
from hypernetworks.config import TrainingConfig, read
from hypernetworks.embedded import PICTURES
from hypernetworks.files import SUFFIXES, save
from hypernetworks.host import Folders, ModelFacts
from hypernetworks.library import Library
from hypernetworks.networks import new_network, training_metadata
from hypernetworks.prompt import ActiveNetwork
from hypernetworks.session import Session
from hypernetworks.ui.library_table import Table

FILES, FEW = 5000, 200
PROCESSES, TIMES = 3, 5
MODEL = ModelFacts("v1-5-pruned-emaonly", "0" * 10, "sd1", "epsilon", 512)
KINDS = {  # name -> options of the trainer, suffix, share of the files
    "per layer": ({}, ".safetensors", 0.6),
    "per width": ({"per_layer": False}, ".safetensors", 0.3),
    "a1111": ({"per_layer": False, "layer_structure": (1.0, 2.0, 1.0), "activation": "relu"}, ".pt", 0.1),
}
SWITCHED = {"per_layer": False, "layer_structure": (1.0, 2.0, 1.0), "activation": "swish"}  # one of default widths, as the web UIs' form has them
PREVIEW = PICTURES / "striped" / "01.png"
STEP = 10_000
PT_HEAD = 2**16  # bytes; a `.pt` begins with all but its weights


# --- the files ------------------------------------------------------------------------------------------------------------------


def sd15_unet() -> torch.nn.Module:
    """SD1.5's UNet without weights: its attention layers are all that counts here."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)


def make_files(folder: Path, count: int) -> None:
    """Fills the folder, unless it is full already: real networks, and for the list copies of them that hold no weights."""
    if (folder / "done").exists():
        return
    (folder / "older").mkdir(parents=True, exist_ok=True)
    unet = sd15_unet()
    for name in ("first", "second"):
        write_network(folder / f"{name}.safetensors", unet, SWITCHED)
    for kind, (options, suffix, share) in KINDS.items():
        whole = write_network(folder / f"whole {kind}{suffix}", unet, options)
        for number in range(round(share * count)):
            write_hollow((folder / "older" if number % 10 == 0 else folder) / f"{kind} {number:04}{suffix}", whole, number)
    (folder / "done").touch()


def write_network(path: Path, unet: torch.nn.Module, options: dict[str, Any]) -> Path:
    """A network as the trainer leaves it."""
    config = read(TrainingConfig, {"name": path.stem, "weight_initialization": "Normal", **options})
    network = new_network(unet, config)
    network.step = STEP
    network.metadata.update(training_metadata(config, MODEL, 24, PREVIEW))
    return save(network, path, overwrite=True)


def write_hollow(path: Path, whole: Path, number: int) -> None:
    """A file of the length and with the head of `whole`, of another step, and with a hole where the weights are."""
    with open(whole, "rb") as file:
        length = PT_HEAD if whole.suffix == ".pt" else 8 + int.from_bytes(file.read(8), "little")
        file.seek(0)
        head = file.read(length)
    with open(path, "wb") as file:
        file.write(head.replace(f'"step":"{STEP}"'.encode(), f'"step":"{STEP + number}"'.encode()))
        file.truncate(whole.stat().st_size)


# --- what is measured -----------------------------------------------------------------------------------------------------------


def timed(call: Callable[[], Any]) -> float:
    """Seconds of the processor that a call takes; with a warm disk there is nothing to wait for, and other programs do not count."""
    started = time.process_time()
    call()
    return time.process_time() - started


def median_of(call: Callable[[], Any]) -> float:
    """Of several calls."""
    return median(timed(call) for _ in range(TIMES))


def list_files(folders: Folders) -> dict[str, float]:
    """Of one process: the names for a dropdown, the lines of the table, and the page's rows of them."""
    library = Library(Catalog(folders.networks), folders)
    dropdown, table = Catalog(folders.networks), Table(library)
    found = {"first_s": timed(lambda: (library.entries(), library.catalog.names())), "page_first_s": timed(table.refreshed)}

    def names() -> None:
        dropdown.refresh()
        dropdown.names()

    found["names_s"], found["again_s"] = timed(names), median_of(lambda: (library.entries(), library.catalog.names()))
    return found | {"names_again_s": median_of(names), "page_again_s": median_of(table.refreshed)}


def open_details(folders: Folders, name: str, what: str) -> dict[str, float]:
    """Of one process: what the page shows of one file, its hash among it."""
    library = Library(Catalog(folders.networks), folders)
    return {f"{what}_s": timed(lambda: library.details(name)), f"{what}_again_s": median_of(lambda: library.details(name))}


def switch(folders: Folders, dtype: torch.dtype) -> dict[str, float]:
    """Of one process: from a network on the UNet to another one that was never read, and back to the first."""
    host = SimpleNamespace(unet=sd15_unet(), device=torch.device("cpu"), dtype=dtype, model=MODEL, rows=())
    session = Session(Catalog(folders.networks))

    def use(name: str) -> None:
        with session.applied(host, [ActiveNetwork(name)]):
            pass

    use("first")
    kind = str(dtype).removeprefix("torch.")
    return {f"switch_{kind}_s": timed(lambda: use("second")), f"switch_back_{kind}_s": median_of(lambda: use("first"))}


def measure_once(folders: Folders) -> dict[str, float]:
    """All figures of one process, in seconds."""
    torch.set_num_threads(1)
    found = list_files(folders)
    found |= open_details(folders, "whole per layer", "details") | open_details(folders, "whole a1111", "details_pt")
    return found | switch(folders, torch.float32) | switch(folders, torch.bfloat16)


def measure(folders: Folders, processes: int) -> dict[str, float]:
    """Medians over processes."""
    rounds = [in_new_process(measure_once, folders) for _ in range(processes)]
    return {name: median(found[name] for found in rounds) for name in rounds[0]}


def report(found: dict[str, float], files: int) -> str:
    """One table, in milliseconds."""
    rows = [(what, *(found[name] * 1000 for name in names)) for what, names in {
        f"list {files:,} files": ("first_s", "again_s"),
        "their names only, for a dropdown": ("names_s", "names_again_s"),
        "the page's table, listed once": ("page_first_s", "page_again_s"),
        "open the details of a .safetensors": ("details_s", "details_again_s"),
        "open the details of a .pt": ("details_pt_s", "details_pt_again_s"),
        "switch networks, float32": ("switch_float32_s", "switch_back_float32_s"),
        "switch networks, bfloat16": ("switch_bfloat16_s", "switch_back_bfloat16_s"),
    }.items()]  # fmt: skip
    return table(("milliseconds", "first", "again"), rows)


def main() -> None:
    """The command line."""
    options = arguments("library", __doc__).parse_args()
    count = FEW if options.small else FILES
    folders = Folders.below(options.out / str(count))
    make_files(folders.networks, count)
    found = measure(folders, 1 if options.small else PROCESSES)
    files = sum(path.suffix in SUFFIXES for path in folders.networks.rglob("*.*"))
    print(report(found, files))
    write_figures(options.json, found, files=files)


if __name__ == "__main__":
    main()
