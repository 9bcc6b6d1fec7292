"""REST under /hypernetworks/api, and A1111's routes for hypernetworks where a web UI lost them. docs/api.md has each route.

Importing this costs nothing: FastAPI, which comes with gradio, is imported when routes are made.
"""
from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, api_answers, sdapi
from .access import client_folder, picture_folders
from .api_bodies import configuration, option_schema, schema, split, text_of
from .api_queue import QueueApi, add_queue
from .config import FOLDERS, ExportConfig, RefineConfig, TrainingConfig, options
from .errors import AccessRefused, ConfigError, HostBusy, HypernetworkError, NameTaken, NotThere

if TYPE_CHECKING:
    from fastapi import APIRouter

    from .catalog import Catalog
    from .host import Host
    from .jobs import Job, Jobs
    from .user_presets import UserPresets

PREFIX = "/hypernetworks/api"
SDAPI = ("/sdapi/v1/hypernetworks", "/sdapi/v1/create/hypernetwork", "/sdapi/v1/train/hypernetwork")
OPTIONS = options(TrainingConfig)
ELSEWHERE = re.compile(r"""(?<![\w.])([A-Za-z]:)?([\\/][^\s\\/'"]+)+[\\/]""")  # the folder part of an absolute path
OF_A_NETWORK = tuple(name for name, option in OPTIONS.items() if option.group == "Network" and name != "also_pt") + ("seed",)


@dataclass(frozen=True)
class ApiParts:
    """What the routes work on. `guards` are FastAPI dependencies that raise for who may not call; `client_paths` says whether a client
    may name paths of this machine."""

    host: Host
    jobs: Jobs
    catalog: Catalog
    guards: Sequence[Callable[..., Any]] = ()
    client_paths: Callable[[], bool] = lambda: False


def router(parts: ApiParts) -> APIRouter:
    """Our own routes, all below `PREFIX`."""
    from .received import LARGEST, LARGEST_REFERENCE
    from .rest import Routes

    api = Api(parts)
    routes = Routes(PREFIX, parts.guards, api.sentence)
    for path, handler in {
        "/version": api.version, "/options": api.options, "/presets": api.presets,
        "/networks": api.networks, "/network": api.network, "/pictures": api.pictures,
        "/jobs": api.runs, "/jobs/{number}": api.run, "/jobs/{number}/previews/{index}": api.preview,
    }.items():  # fmt: skip
        routes.get(path, handler)
    routes.post("/create", api.create, schema(OPTIONS, OF_A_NETWORK, preset=(str, ""), overwrite=(bool, False)))
    routes.post("/convert", api.convert, schema(OPTIONS, (), name=(str, ""), format=(str, "pt"), overwrite=(bool, False)))
    routes.post("/export", api.export, schema(options(ExportConfig)), LARGEST_REFERENCE)
    routes.post("/refine", api.refine, schema(options(RefineConfig)), LARGEST_REFERENCE)
    routes.post("/references", api.keep_reference, schema({}, reference=(str, "")), LARGEST_REFERENCE)
    routes.post("/train", api.train, schema(OPTIONS, preset=(str, ""), resume=(bool, False), overwrite=(bool, False)))
    add_queue(routes, QueueApi(parts.jobs, api.sentence, api.training, api.allowed), OPTIONS)
    routes.post("/presets", api.save_preset, schema(OPTIONS, preset=(str, ""), overwrite=(bool, False)))
    routes.post("/presets/delete", api.delete_preset, schema({}, name=(str, "")))
    routes.post("/jobs/{number}/stop", api.stop)
    routes.post("/jobs/{number}/cancel", api.cancel)
    routes.upload("/pictures", api.receive, LARGEST, api.data_folder)
    return routes.router


def sdapi_router(parts: ApiParts, paths: Collection[str] = SDAPI) -> APIRouter:
    """A1111's routes, those of `SDAPI` that the web UI lacks. They answer as A1111's do: a user's error is 200 with a sentence."""
    from .rest import Routes

    api = Api(parts)
    routes = Routes("", parts.guards, api.sentence)
    if SDAPI[0] in paths:
        routes.get(SDAPI[0], api.sdapi_networks)
    for path, handler in zip(SDAPI[1:], (api.sdapi_create, api.sdapi_train), strict=True):
        if path in paths:
            routes.post(path, handler, {"type": "object"})
    return routes.router


class Api:
    """What the routes do, as plain values in and out. Raises our errors; `rest` makes answers of them."""

    def __init__(self, parts: ApiParts) -> None:
        self.host, self.jobs, self.catalog, self.client_paths = parts.host, parts.jobs, parts.catalog, parts.client_paths
        self._waiting = threading.Lock()

    def sentence(self, error: HypernetworkError | str) -> str:
        """The error's sentence; where clients are to know nothing of this machine's folders, without these."""
        text = str(error)
        if self.client_paths():
            return text
        folders = self.host.folders
        for folder in (self.catalog.folder, folders.networks, folders.loras, folders.pictures, folders.runs, folders.data):
            text = text.replace(f"{folder}/", "").replace(f"{folder}\\", "").replace(str(folder), folder.name)
        return ELSEWHERE.sub("", text)

    def version(self) -> dict[str, Any]:
        """The version of the extension."""
        return {"version": __version__}

    def options(self) -> dict[str, Any]:
        """The options of training by name, as JSON schema, each with the group it belongs to."""
        return {name: option_schema(option) | {"group": option.group} for name, option in OPTIONS.items()}

    def presets(self) -> dict[str, Any]:
        """Named sets of options: what each is for, and what it sets."""
        return {name: {"help": one.help, "options": one.values} for name, one in self._presets.all().items()}

    def save_preset(self, body: dict[str, Any]) -> dict[str, Any]:
        """Saves options of training as a preset called `name`; `preset` is the one to start from, `overwrite` allows to replace one's own."""
        values, flags = split(body, "overwrite")
        name = self._presets.save(text_of(values, "name"), self.training(values), flags["overwrite"])
        return {name: self.presets()[name]}

    def delete_preset(self, body: dict[str, Any]) -> dict[str, Any]:
        """Deletes the user's own preset called `name`; gives those that are left."""
        self._presets.delete(text_of(body, "name"))
        return self.presets()

    def networks(self) -> list[dict[str, Any]]:
        """The hypernetworks in the models folder: name, and file within that folder."""
        self.catalog.refresh()
        return [{"name": name, "file": self._file(self.catalog.path(name))} for name in self.catalog.names()]

    def network(self, name: str) -> dict[str, Any]:
        """What the file of that name says about itself, its hash, and its preview as a JPEG in base64."""
        path = self._path(name)
        return {"name": name, "file": self._file(path), **api_answers.network(path)}

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Makes an untrained network for the loaded model. Takes the options of the group Network and `seed`, `preset`, `overwrite`."""
        values, flags = split(body, "overwrite")
        if other := [name for name in values if name in OPTIONS and name not in OF_A_NETWORK]:
            raise ConfigError(f"{other[0]} says nothing about an untrained network; it takes {', '.join(OF_A_NETWORK)}.")
        config = self.training(values)
        self._create(config, flags["overwrite"])
        return self.network(config.name)

    def convert(self, body: dict[str, Any]) -> dict[str, Any]:
        """Writes the network called `name` as `format`, pt or safetensors, beside its file; `overwrite` allows to replace one there."""
        from .library import Library

        values, flags = split(body, "overwrite")
        if unknown := sorted(set(values) - {"name", "format"}):
            raise ConfigError(f"There is no argument {unknown[0]!r}; there are name, format and overwrite.")
        name, kind = text_of(values, "name"), text_of(values, "format", "pt")
        if kind not in ("pt", "safetensors"):
            raise ConfigError(f"format cannot be {kind!r}: it takes pt or safetensors.")
        self._path(name)
        written = Library(self.catalog, self.host.folders).convert(name, f".{kind}", flags["overwrite"])
        return {"file": self._file(written), **api_answers.network(written)}

    def export(self, body: dict[str, Any]) -> dict[str, Any]:
        """Writes what a generator makes for a condition as a LoRA file. A reference is a picture in base64, or the hash of one that was kept."""
        from .exporting import asked, export

        config = self._export_config(ExportConfig, split(body)[0])
        active = asked(config)
        with self._model():
            return api_answers.exported(export(self.host, self.catalog, active, config.name, snapshot=config.snapshot), active)

    def refine(self, body: dict[str, Any]) -> dict[str, Any]:
        """Trains what a generator makes on pictures for at most 40 steps, in the background, and writes it as a LoRA file; gives the job."""
        from .refining import Refiner

        config = self._export_config(RefineConfig, split(body)[0])
        folder = self._pictures(config.dataset)
        refiner = Refiner(dataclasses.replace(config, dataset=str(folder)), self.catalog)
        return self._told(self.jobs.start(refiner.config, trainer=refiner))

    def keep_reference(self, body: dict[str, Any]) -> dict[str, Any]:
        """Keeps a picture, in base64, by whose hash prompts and other requests can then name it."""
        if unknown := sorted(set(body) - {"reference"}):
            raise ConfigError(f"There is no argument {unknown[0]!r}; there is reference.")
        return {"reference": self._kept(text_of(body, "reference"))}

    def pictures(self) -> list[str]:
        """The folders of pictures that a run may name as its dataset."""
        return picture_folders(self.host.folders)

    def receive(self, kind: str, body: Path, name: str) -> dict[str, Any]:
        """Takes pictures and captions, as a zip or as files in JSON, into a new folder of pictures called `name`."""
        from .received import keep

        folder, upload = keep(kind, body, name, self.host.folders)
        left_out = [{"name": name, "reason": reason} for name, reason in upload.left_out]
        return {"dataset": folder.name, "files": [path.name for path in upload.taken], "left_out": left_out}

    def data_folder(self) -> Path:
        """Where what is received may be kept until it is sorted; on the disk that it will stay on."""
        self.host.folders.data.mkdir(parents=True, exist_ok=True)
        return self.host.folders.data

    def train(self, body: dict[str, Any]) -> dict[str, Any]:
        """Starts a run in the background. Takes the options of training, `preset`, `resume` and `overwrite`; gives the job."""
        values, flags = split(body, "resume", "overwrite")
        return self._told(self._start(self.training(values), **flags))

    def runs(self) -> list[dict[str, Any]]:
        """The run that is going on, or else the last one, without its curves and previews; none before the first."""
        job = self.jobs.current
        return [] if job is None else [api_answers.summary(job, self.sentence)]

    def run(self, number: int) -> dict[str, Any]:
        """A run: how far it is, its losses, previews, warnings and error."""
        return self._told(self._job(number))

    def stop(self, number: int) -> dict[str, Any]:
        """Ends a run after the step at hand and saves. One that has ended stays as it is."""
        return self._end(number, "stop")

    def cancel(self, number: int) -> dict[str, Any]:
        """Ends a run after the step at hand without writing a network. One that has ended stays as it is."""
        return self._end(number, "cancel")

    def preview(self, number: int, index: int) -> bytes:
        """One of a run's previews as PNG; `index` is the one that the run lists."""
        job = self._job(number)
        with job.lock:
            found = job.previews[index : index + 1] if index >= 0 else []
        try:
            return found[0].path.read_bytes()
        except (IndexError, OSError):
            raise NotThere(f"Run {number} has no preview {index}.") from None

    def sdapi_networks(self) -> list[dict[str, Any]]:
        """As A1111: name and path of each hypernetwork. The path is within the models folder where clients may name no paths."""
        self.catalog.refresh()
        return [{"name": name, "path": self._shown(self.catalog.path(name))} for name in self.catalog.names()]

    def sdapi_create(self, body: dict[str, Any]) -> dict[str, str]:
        """As A1111's create_hypernetwork: an untrained network with one pair per width."""
        try:
            values, flags = split(body, "overwrite_old")
            path = self._create(self.training(sdapi.creation(values)), flags["overwrite_old"])
        except HypernetworkError as error:
            return {"info": f"create hypernetwork error: {self.sentence(error)}"}
        return {"info": f"create hypernetwork filename: {self._shown(path)}"}

    def sdapi_train(self, body: dict[str, Any]) -> dict[str, str]:
        """As A1111's train_hypernetwork: goes on training an existing network, and answers when that has ended."""
        try:
            job = self._start(self._sdapi_config(body), resume=True)
        except HypernetworkError as error:
            return {"info": f"train hypernetwork error: {self.sentence(error)}"}
        job.wait()
        file = "" if job.path is None else self._shown(job.path)
        return {"info": f"train hypernetwork complete: filename: {file} error: {self.sentence(job.error or 'None')}"}

    def _sdapi_config(self, body: dict[str, Any]) -> TrainingConfig:
        from .files import describe

        values = sdapi.training(body)
        path = self._path(text_of(values, "name"))
        if path != self._target(path.stem):
            raise ConfigError(f"{self._file(path)} cannot be trained on: only a .safetensors directly in the models folder can; convert it first.")
        return self.training({**sdapi.network_options(describe(path)), **values})

    def _start(self, config: TrainingConfig, resume: bool = False, overwrite: bool = False) -> Job:
        return self.jobs.start(self.allowed(config, resume, overwrite), resume=resume, overwrite=overwrite)

    def allowed(self, config: TrainingConfig, resume: bool, overwrite: bool) -> TrainingConfig:
        """The configuration with the folders that a client means. Raises for what it may not ask for, or what is there already."""
        from .files import check_name

        check_name(config.name)
        if config.loss_function and not self.client_paths():
            raise AccessRefused("Own loss (loss_function) runs code of this machine, which only clients that may name its paths can ask for.")
        folders = {name: str(self._pictures(folder)) for name in FOLDERS if (folder := getattr(config, name)) or name == "dataset"}
        if not (resume or overwrite):
            self._check_free(config.name)
        return dataclasses.replace(config, **folders)

    def training(self, values: Mapping[str, Any]) -> TrainingConfig:
        """The options of training, on top of those of the preset where one is named. Raises `ConfigError`."""
        base = self._presets.values(text_of(values, "preset")) if "preset" in values else {}
        return configuration(TrainingConfig, {name: value for name, value in values.items() if name != "preset"}, base)

    @property
    def _presets(self) -> UserPresets:
        from .user_presets import UserPresets

        return UserPresets(self.host.folders)

    def _pictures(self, dataset: str) -> Path:
        if not dataset:
            raise ConfigError("Say which pictures to train on: dataset is the name of a folder that was sent.")
        return client_folder(dataset, self.host.folders, self.client_paths())

    def _create(self, config: TrainingConfig, overwrite: bool) -> Path:
        from .checkpoint import RunFolder
        from .files import check_name, save
        from .networks import new_network, training_metadata

        target = self._target(check_name(config.name))
        if not overwrite:
            self._check_free(config.name)
        with self._model():
            network = new_network(self.host.unet, config)
            network.metadata.update(training_metadata(config, self.host.model, 0, None))
        RunFolder(self.host.folders.runs, config.name).forget_state()  # of another network of that name
        save(network, target, overwrite=overwrite)
        self.catalog.refresh()
        return target

    def _export_config(self, kind: type, values: dict[str, Any]) -> Any:
        """What is asked for, each picture kept and called by its hash."""
        from .exporting import asked

        pictures = {name: text_of(values, name) for name in ("reference", "reference2") if name in values}
        config = configuration(kind, {name: value for name, value in values.items() if name not in pictures})
        self._path(asked(config).name)  # before anything is kept
        return dataclasses.replace(config, **{name: self._kept(picture) for name, picture in pictures.items() if picture})

    def _kept(self, picture: str) -> str:
        from .received import keep_reference

        return keep_reference(picture, self.host.folders)

    @contextmanager
    def _model(self) -> Iterator[None]:
        """The model for a request that needs it. One request may wait for it: more would leave the web UI no thread to answer with."""
        self.jobs.check_idle()
        if not self._waiting.acquire(blocking=False):
            raise HostBusy("The model is busy, and another request waits for it already.")
        try:
            with self.host.exclusive():
                yield
        finally:
            self._waiting.release()

    def _check_free(self, name: str) -> None:
        from .checkpoint import RunFolder

        if self._target(name).exists():
            raise NameTaken(f"A hypernetwork named {name!r} exists already; overwrite it, resume its training, or choose another name.")
        if RunFolder(self.host.folders.runs, name).has_state:
            raise NameTaken(f"A run named {name!r} was left before its end; overwrite it, resume it, or choose another name.")

    def _target(self, name: str) -> Path:
        return self.host.folders.networks / f"{name}.safetensors"

    def _path(self, name: str) -> Path:
        """The file of that name. Only names that the catalog lists lead to one."""
        try:
            return self.catalog.path(name)
        except HypernetworkError as error:
            raise NotThere(str(error)) from None

    def _file(self, path: Path) -> str:
        return path.relative_to(self.catalog.folder).as_posix()

    def _shown(self, path: Path) -> str:
        return str(path) if self.client_paths() else self._file(path)

    def _job(self, number: int) -> Job:
        job = self.jobs.current
        if job is None or job.number != number:
            raise NotThere(f"There is no run {number}; only the last one is remembered{f', number {job.number}' if job else ''}.")
        return job

    def _end(self, number: int, how: str) -> dict[str, Any]:
        job = self._job(number)
        if job.running:
            getattr(job, how)()
        return self._told(job)

    def _told(self, job: Job) -> dict[str, Any]:
        return api_answers.run(job, self.sentence)
