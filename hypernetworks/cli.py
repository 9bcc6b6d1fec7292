"""The command line: `hypernetworks demo | train | rerun | sweep | generate | export | refine | inspect | convert | ui`."""
from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__, processes
from .config import ExportConfig, Option, RefineConfig, TrainingConfig, options, read
from .config_files import read_config
from .errors import ConfigError, DatasetError, HypernetworkError, ModelUnfit
from .host import Folders


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. A user's mistake ends with one sentence and exit code 2."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.command(parsed)
        return 0
    except HypernetworkError as error:
        print(f"hypernetworks{processes.label()}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hypernetworks: interrupted.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hypernetworks", description="Hypernetworks for Stable Diffusion: train them, generate with them.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_demo, _add_train, _add_rerun, _add_sweep, _add_generate, _add_export, _add_refine, _add_inspect, _add_convert, _add_ui):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Any, help: str, model: bool = True, home: bool = True) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(command=run)
    if model:
        parser.add_argument("--model", type=Path, help="a diffusers folder or a .safetensors checkpoint (default: the small embedded model)")
    if model and home:
        parser.add_argument(
            "--home", type=Path, default=Path(os.environ.get("HYPERNETWORKS_HOME", Path.home() / "hypernetworks")),
            help="folder for networks, pictures and runs (default: ~/hypernetworks, or the variable HYPERNETWORKS_HOME)",
        )
    return parser


def _host(parsed: argparse.Namespace) -> Any:
    from .hosts.diffusers import DiffusersHost

    return DiffusersHost(parsed.model, Folders.below(parsed.home))


def _add_demo(commands: Any) -> None:
    parser = _command(commands, "demo", _demo, "Train on the bundled pictures, draw before and after, and measure.", model=False)
    parser.add_argument("--generator", action="store_true", help="instead of training: weights, pictures and a LoRA file from one picture of an unknown style")
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="where pictures and the file go (default: outputs/demo)")
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: what the demo is tuned for)")


def _demo(parsed: argparse.Namespace) -> None:
    from .demo import run_demo, run_generator_demo

    if parsed.generator:
        run_generator_demo(parsed.out)
    else:
        run_demo(parsed.out, parsed.steps)


def _add_train(commands: Any) -> None:
    parser = _command(commands, "train", _train, "Train a hypernetwork. Options come from CONFIG (TOML or JSON), written first; flags after it overrule it.")
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG", help="a TOML or JSON file with any of the options below")
    parser.add_argument("--preset", default=None, help="start from the options of a preset, one that ships or your own (see the tab for their names)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the run with this name")
    parser.add_argument("--overwrite", action="store_true", help="replace a hypernetwork that has this name")
    parser.add_argument("--forecast", action="store_true", help="say how much memory this would take, and train nothing")
    groups: dict[str, Any] = {}
    for option in options(TrainingConfig).values():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group.lower())
        _add_option(groups[option.group], option)


def _add_option(group: Any, option: Option) -> None:
    shown = ", ".join(f"{member:g}" if isinstance(member, float) else str(member) for member in option.default) if option.kind is tuple else option.default
    text = f"{option.help} ({option.takes()}; default: {'none' if shown in ('', None) else shown})".replace("%", "%%")
    names = {"metavar": option.name.split("_")[-1].upper(), "dest": option.name, "default": argparse.SUPPRESS}
    if option.kind is bool:
        names |= {"nargs": "?", "const": "true", "metavar": "true|false"}
    group.add_argument(option.flag, help=text, **names)


def training_config(parsed: argparse.Namespace) -> TrainingConfig:
    """Preset, then file, then flags: what comes later counts."""
    values: dict[str, Any] = {}
    if parsed.preset:
        from .user_presets import UserPresets

        values |= UserPresets(Folders.below(parsed.home)).values(parsed.preset)
    if parsed.config:
        values |= read_config(parsed.config)
    values |= {name: getattr(parsed, name) for name in options(TrainingConfig) if hasattr(parsed, name)}
    return read(TrainingConfig, values)


def _train(parsed: argparse.Namespace) -> None:
    from .progress_bar import show
    from .trainer import HypernetworkTrainer

    config, host = training_config(parsed), _host(parsed)
    if not config.dataset:
        raise ConfigError("Say which folder of pictures to train on: --dataset FOLDER, or dataset in the configuration.")
    if not config.name:
        raise ConfigError("Give the hypernetwork a name: --name NAME, or name in the configuration.")
    trainer = HypernetworkTrainer(config=config)
    if parsed.forecast:
        _print_forecast(trainer, host)
        return
    with host.exclusive():
        show(trainer, trainer.run(host=host, resume=parsed.resume, overwrite=parsed.overwrite), silent=not processes.is_main())
    processes.leave()


def _print_forecast(trainer: Any, host: Any) -> None:
    foreseen = trainer.forecast(host=host)
    if foreseen is None:
        raise HypernetworkError("The memory of a run with this model cannot be foreseen.")
    for label, size in foreseen.table():
        print(f"{label + ':':<22} {size}")
    print(foreseen.sentence)


def _add_rerun(commands: Any) -> None:
    parser = _command(commands, "rerun", _rerun, "Repeat a training run from its folder, and compare the file.", home=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the run's folder: <home>/data/runs/<name>")
    parser.add_argument("--out", type=Path, default=None, help="folder for the file that is made (default: rerun, within the run's folder)")
    parser.add_argument("--anyway", action="store_true", help="also with another model, or with pictures that were changed")
    parser.add_argument("--loss-function", default="", metavar="FUNCTION", help="run this function, module.function, which the run computed its loss with")


def _rerun(parsed: argparse.Namespace) -> None:
    from .hosts.diffusers import DiffusersHost
    from .progress_bar import show
    from .rerun import Rerun

    rerun = Rerun(parsed.folder, parsed.out, parsed.loss_function)
    host = DiffusersHost(parsed.model, rerun.folders)
    with host.exclusive():
        try:
            rerun.check(host)
        except (DatasetError, ModelUnfit) as error:
            if not parsed.anyway:
                raise type(error)(f"{error} With --anyway it is repeated all the same.") from None
            print(f"Note: {error}", file=sys.stderr)
        show(rerun, rerun.run(host))
    print("\n".join(rerun.compared()))


def _add_sweep(commands: Any) -> None:
    parser = _command(commands, "sweep", _sweep, "Train once for every combination of the lists of values in CONFIG's table [sweep], and print a table.")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a TOML or JSON file of options, with lists of values in its table [sweep]")
    parser.add_argument("--preset", default=None, help="start from the options of a preset")
    parser.add_argument("--resume", action="store_true", help="go on with the runs that there are already")
    parser.add_argument("--overwrite", action="store_true", help="replace hypernetworks that have the runs' names")


def _sweep(parsed: argparse.Namespace) -> None:
    from . import sweep
    from .user_presets import UserPresets

    values, lists = sweep.split(read_config(parsed.config))
    host = _host(parsed)
    base = UserPresets(host.folders).values(parsed.preset) if parsed.preset else {}
    made = sweep.make({**base, **values}, lists)
    if not made.runs[0].dataset:
        raise ConfigError("Say which folder of pictures to train on: dataset in the configuration.")
    sweep.keep(made, host.folders)
    for number, config in enumerate(made.runs, 1):
        print(f"Run {number} of {len(made.runs)}: {config.name}", flush=True)
        ending = _run_of_sweep(config, host, parsed)
        written = sweep.write_table(host.folders, made.name)
        if ending == "stopped":
            break
    print(f"\n{sweep.markdown(sweep.outcomes(host.folders, made.name))}\n{written[0]}\n{written[1]}")


def _run_of_sweep(config: TrainingConfig, host: Any, parsed: argparse.Namespace) -> str:
    """How the run ended; one that fails is told, and the others go on."""
    from .progress_bar import show
    from .trainer import HypernetworkTrainer

    trainer = HypernetworkTrainer(config=config)
    try:
        with host.exclusive():
            last = show(trainer, trainer.run(host=host, resume=parsed.resume, overwrite=parsed.overwrite))
    except HypernetworkError as error:
        print(f"{config.name}: {error}", file=sys.stderr)
        return "failed"
    return last.kind if last else ""


def _add_generate(commands: Any) -> None:
    parser = _command(commands, "generate", _generate, "Draw pictures; write <hypernet:name:0.8> into the prompt, or name networks with flags.")
    parser.add_argument("prompt")
    parser.add_argument("--negative-prompt", default="", help="what not to draw")
    parser.add_argument("--hypernetwork", action="append", default=[], metavar="NAME[:STRENGTH]", help="use this one too; may be given several times")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default: 20)")
    parser.add_argument("--cfg-scale", type=float, default=5.0, help="how strictly to follow the prompt (default: 5)")
    parser.add_argument("--size", type=int, default=0, help="side in pixels (default: the model's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture (default: 0)")
    parser.add_argument("--count", type=int, default=1, help="number of pictures (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for the pictures (default: outputs)")


def _generate(parsed: argparse.Namespace) -> None:
    from .catalog import Catalog
    from .host import GenerationRequest
    from .prompt import extract
    from .session import Session

    if min(parsed.steps, parsed.count) < 1 or parsed.size < 0 or parsed.size % 8:
        raise ConfigError("Steps and count must be at least 1, and the size a multiple of 8.")
    host = _host(parsed)
    tags = "".join(f"<hypernet:{name}>" for name in parsed.hypernetwork)
    active = extract(tags)[1]
    side = parsed.size or host.model.resolution
    request = GenerationRequest(
        parsed.prompt, parsed.negative_prompt, parsed.steps, parsed.cfg_scale, side, side, parsed.seed, parsed.count
    )
    with host.exclusive():
        pictures = Session(Catalog(host.folders.networks)).generate(host, request, active)
    parsed.out.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        path = _free(parsed.out, f"seed-{parsed.seed + number}")
        picture.save(path)
        print(path)


def _free(folder: Path, stem: str) -> Path:
    """A picture's path in the folder that does not exist yet."""
    path, number = folder / f"{stem}.png", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.png"
    return path


def _add_export(commands: Any) -> None:
    _export_command(commands, "export", _export, ExportConfig, "Write what a generator makes for a condition as an ordinary LoRA file.")


def _add_refine(commands: Any) -> None:
    _export_command(commands, "refine", _refine, RefineConfig, "Train what a generator makes for up to 40 steps, then write it as a LoRA file.")


def _export_command(commands: Any, name: str, run: Any, config: type, help: str) -> None:
    parser = _command(commands, name, run, help)
    for option in options(config).values():
        if option.name == "generator":
            parser.add_argument(option.name, help=option.help)
        else:
            _add_option(parser, option)


def _export_config(parsed: argparse.Namespace, config: type, host: Any) -> Any:
    """What the flags ask for, each reference picture kept and called by its hash."""
    from .prompt import REFERENCE
    from .references import References

    asked = read(config, {name: getattr(parsed, name) for name in options(config) if hasattr(parsed, name)})
    pictures = {name: picture for name in ("reference", "reference2") if (picture := getattr(asked, name)) and not REFERENCE.fullmatch(picture)}
    if missing := [picture for picture in pictures.values() if not Path(picture).is_file()]:
        raise ConfigError(f"There is no picture {missing[0]}.")
    references = References(host.folders.references)
    return dataclasses.replace(asked, **{name: references.keep(Path(picture)) for name, picture in pictures.items()})


def _export(parsed: argparse.Namespace) -> None:
    from .catalog import Catalog
    from .exporting import asked, export

    host = _host(parsed)
    config = _export_config(parsed, ExportConfig, host)
    with host.exclusive():
        made = export(host, Catalog(host.folders.networks), asked(config), config.name, snapshot=config.snapshot)
    for note in made.notes:
        print(note, file=sys.stderr)
    print(made.path)


def _refine(parsed: argparse.Namespace) -> None:
    from .catalog import Catalog
    from .progress_bar import show
    from .refining import Refiner

    host = _host(parsed)
    refiner = Refiner(_export_config(parsed, RefineConfig, host), Catalog(host.folders.networks))
    with host.exclusive():
        show(refiner, refiner.run(host=host))


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", _inspect, "Say what a hypernetwork file is.", model=False)
    parser.add_argument("file", type=Path)


def _inspect(parsed: argparse.Namespace) -> None:
    from .files import FileFacts, short_hash
    from .library import facts_of

    facts = facts_of(parsed.file)
    structure = {name: value for name, value in vars(facts.structure).items() if value not in (False, ())}
    if isinstance(facts, FileFacts):
        kind = "one pair per attention layer" if facts.per_layer else "one pair per width"
        about = {"pairs": f"{len(facts.keys)}, {kind}", "for": ", ".join(map(str, facts.keys))}
    else:
        about = {"kind": facts.kind, "makes weights for": f"{len(facts.layers)} projections"}
    lines = {
        "name": facts.name, "hash": short_hash(parsed.file), "size": f"{facts.size / 1e6:.2f} MB", **about, **structure,
        "steps": facts.step, "description": facts.description, **facts.metadata,
    }
    for label, value in lines.items():
        if value not in ("", None) and label != "preview":
            print(f"{label.replace('_', ' ') + ':':<22} {_listed(value)}")


def _listed(value: Any) -> str:
    return ", ".join(member if isinstance(member, str) else f"{member:g}" for member in value) if isinstance(value, tuple) else str(value)


def _add_convert(commands: Any) -> None:
    parser = _command(commands, "convert", _convert, "Rewrite a hypernetwork file: .pt (A1111) to .safetensors or back.", model=False)
    parser.add_argument("file", type=Path)
    parser.add_argument("target", type=Path, help="the new file; its ending decides the format")
    parser.add_argument("--overwrite", action="store_true", help="replace the target where it exists")


def _convert(parsed: argparse.Namespace) -> None:
    from .files import load, save

    save(load(parsed.file), parsed.target, overwrite=parsed.overwrite)
    print(parsed.target)


def _add_ui(commands: Any) -> None:
    parser = _command(commands, "ui", _ui, "Open the app in a browser: training, generating and the library, without a web UI.")
    parser.add_argument("--port", type=int, default=7861, help="port on this machine (default: 7861)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser window")


def _ui(parsed: argparse.Namespace) -> None:
    try:
        from .ui.app import launch
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise HypernetworkError('The app needs gradio: pip install "hypernetworks[app]".') from None
    launch(_host(parsed), port=parsed.port, open_browser=not parsed.no_browser)
