"""Run by a web UI's extensions manager at every start, or by hand: adds the Python packages that are missing, and changes no other.

Whatever happens, it ends well and says at most one sentence: the web UI must start without this extension too.
"""
from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence

REQUIREMENTS = {
    "accelerate": "accelerate>=0.21",
    "numpy": "numpy>=1.24",
    "PIL": "pillow>=9.5",
    "safetensors": "safetensors>=0.4",
    "tqdm": "tqdm>=4.60",
}
"""What is imported -> what pip is asked for, as in pyproject.toml. tomli reads the command line's files and is not needed in a web UI."""

HOST = ("torch", "gradio")  # every web UI brings its own build, which is not to be replaced by another
PATIENCE = 60  # seconds that pip may take
PIP = ("--disable-pip-version-check", "--no-input", "--only-binary", ":all:", "--retries", "1", "--timeout", "10")

_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9.]+)?")  # pip refuses lists with any other


def main(arguments: Sequence[str]) -> str:
    """Installs what is missing; gives what is to be said of it: nothing where nothing is missing and nobody looks on."""
    absent = _not_there(HOST)
    if absent:
        return f'this Python has no {" and no ".join(absent)}, so it is not a web UI\'s. The app of its own: pip install -e ".[app]"'
    missing = _not_there(REQUIREMENTS)
    if not missing:
        return "all that is needed is there." if sys.stdout.isatty() else ""
    packages = ", ".join(REQUIREMENTS[module] for module in missing)
    if _is_unwanted(arguments):
        return f"{packages} missing; not installed because of --skip-install."
    failure = _install([REQUIREMENTS[module] for module in missing])
    importlib.invalidate_caches()
    if failure or _not_there(missing):
        return f"{packages} could not be installed: {failure or 'pip takes them to be there, though they are not'}"
    return f"{packages} installed."


def _not_there(modules: Sequence[str]) -> list[str]:
    """Nothing is imported: for torch that takes seconds. What has no origin is a folder without code, as a failed removal leaves it."""
    found = {module: importlib.util.find_spec(module) for module in modules}
    return [module for module, spec in found.items() if spec is None or spec.origin is None]


def _is_unwanted(arguments: Sequence[str]) -> bool:
    """With --skip-install the web UIs start no installer (A1111 modules/launch_utils.py:432, Forge :483), but for an extension that is
    installed from their own page (A1111 modules/ui_extensions.py:390): it is given the environment, and no arguments."""
    try:
        given = shlex.split(os.environ.get("COMMANDLINE_ARGS", ""))
    except ValueError:  # a quote without its end
        given = os.environ["COMMANDLINE_ARGS"].split()
    return "--skip-install" in (*arguments, *given)


def _install(packages: Sequence[str]) -> str:
    """Asks pip for these packages, with all others held at their versions; gives why that failed, or nothing."""
    index = os.environ.get("INDEX_URL")  # which the web UIs hand to pip (A1111 modules/launch_utils.py:24,142)
    with tempfile.TemporaryDirectory() as folder:
        constraints = os.path.join(folder, "constraints.txt")
        with open(constraints, "w", encoding="utf-8") as file:
            file.write("\n".join(_installed()))
        options = [*PIP, "--constraint", constraints, *(["--index-url", index] if index else [])]
        command = [sys.executable, "-m", "pip", "install", *options, *packages]
        try:
            pip = subprocess.run(command, timeout=PATIENCE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except subprocess.TimeoutExpired:
            return f"pip was not done after {PATIENCE} seconds"
    return "" if pip.returncode == 0 else _reason(pip.stdout.decode(errors="replace"))


def _reason(output: str) -> str:
    """pip's first complaint, or the last it said."""
    lines = [line for line in output.splitlines() if line.strip()] or ["pip gave no reason"]
    return next((line[len("ERROR: ") :] for line in lines if line.upper().startswith("ERROR: ")), lines[-1])


def _installed() -> list[str]:
    """`name==version` of every package there is; of two with one name, the one that is imported."""
    from importlib.metadata import distributions  # slow to import, and seldom needed

    versions: dict[str, str] = {}
    for one in distributions():
        versions.setdefault(re.sub(r"[-_.]+", "-", one.metadata["Name"] or "").lower(), one.version or "")
    return [f"{name}=={version}" for name, version in versions.items() if name and _VERSION.fullmatch(version)]


if __name__ == "__main__":
    try:
        said = main(sys.argv[1:])
    except Exception as error:  # nothing here is worth a web UI that does not start
        said = f"its packages could not be looked after ({type(error).__name__}: {error})."
    if said:
        print(f"Hypernetworks: {' '.join(said.split())}".encode("ascii", "replace").decode())
