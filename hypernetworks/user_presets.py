"""Presets that a user has saved, beside those that ship. Each is a TOML file of options, as `hypernetworks train` takes it too."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import FOLDERS, TrainingConfig, options, plain, read, said
from .config_files import read_config, toml_text
from .errors import ConfigError, HypernetworkError, NameTaken
from .files import check_name
from .host import Folders
from .presets import PRESETS, Preset, find
from .writing import write_atomically

OWN = ("name", *FOLDERS, "shared_caption", "description", "preview_prompts", "loss_function", "seed")
"""Options that no preset touches: they belong to one network, to its pictures, or to this machine."""


class UserPresets:
    """The presets in the folder `presets` of a host's data folder; every look is one at the disk, so that a file put there counts too."""

    def __init__(self, folders: Folders) -> None:
        self.folder = folders.data / "presets"

    def all(self) -> dict[str, Preset]:
        """Those that ship and then the user's own, by name. A file that cannot be used is left out."""
        found = dict(PRESETS)
        for path in sorted(self.folder.glob("*.toml")):
            try:
                values = self._read(path)
            except HypernetworkError:
                continue
            if not _ships(path.stem):
                found[path.stem] = Preset(_help(values), values)
        return found

    def values(self, name: str) -> dict[str, Any]:
        """The options of the preset of that name, in any case. Raises `ConfigError` that names the nearest one, or says what is wrong with the file."""
        for path in self.folder.glob("*.toml"):
            if path.stem.lower() == name.lower() and not _ships(name):
                return self._read(path)
        return find(name, self.all())

    def save(self, name: str, config: TrainingConfig, overwrite: bool = False) -> str:
        """Keeps the options that differ from the defaults; gives the name. Raises `NameTaken` for one that ships, or is there and may not be replaced."""
        name = check_name(name.strip())
        self._refuse_shipped(name)
        if not overwrite and (taken := self._path(name)) is not None:
            raise NameTaken(f"There is a preset {taken.stem!r} already: replace it, or choose another name.")
        text = toml_text({option: value for option, value in plain(config).items() if option not in OWN})
        write_atomically(self._path(name) or self.folder / f"{name}.toml", lambda path: path.write_text(text, encoding="utf-8"))
        return name

    def delete(self, name: str) -> None:
        """Raises `ConfigError` where there is none of that name, `NameTaken` for one that ships."""
        self._refuse_shipped(name)
        path = self._path(name)
        if path is None:
            raise ConfigError(f"There is no preset {name!r} of your own.")
        path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path | None:
        """Found among the files of the folder, so that no name is ever read as a path."""
        return next((path for path in self.folder.glob("*.toml") if path.stem.lower() == name.strip().lower()), None)

    def _read(self, path: Path) -> dict[str, Any]:
        values = {name: value for name, value in read_config(path).items() if name not in OWN}
        return plain(read(TrainingConfig, values))

    def _refuse_shipped(self, name: str) -> None:
        if _ships(name):
            raise NameTaken(f"The preset {name.strip()!r} ships with the extension and stays as it is: choose another name.")


def _ships(name: str) -> bool:
    return name.strip().lower() in {shipped.lower() for shipped in PRESETS}


def _help(values: Mapping[str, Any]) -> str:
    known = options(TrainingConfig)
    shown = "; ".join(f"{known[name].label} {said(value)}" for name, value in values.items())
    return f"Your own: {shown or 'all options at their defaults'}."
