"""install.py as a web UI's extensions manager runs it: a subprocess, where packages are there or missing; the real pip, and no network."""
import configparser
import os
import re
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOST = ("torch", "gradio", "numpy", "PIL", "safetensors", "tqdm")  # all that a web UI brings but accelerate


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python of its own with pip and nothing else."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, with_pip=True)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.fixture
def packages(tmp_path):
    """A folder of packages to be put before the Python's own: modules that can be found, never imported."""
    for module in HOST:
        add(tmp_path, module)
    return tmp_path


def add(folder, module, code="raise ImportError('only to be found')"):
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text(code)


def wheel(folder, name, version, requires=""):
    """A package file that the real pip installs."""
    about, module = f"{name}-{version}.dist-info", f"{name}/__init__.py"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (f"Requires-Dist: {requires}\n" if requires else "")
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(module, "")
        file.writestr(f"{about}/METADATA", metadata)
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "".join(f"{path},,\n" for path in (*file.namelist(), f"{about}/RECORD")))


def run(python, packages, *arguments, **variables):
    """What install.py says. It ends well in every case, with one sentence at most; how long it took is printed."""
    ours = {"PYTHONPATH": str(packages), "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_CACHE_DIR": str(packages / "cache")}
    others = ("PIP_", "COMMANDLINE_ARGS", "INDEX_URL", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)} | ours | variables
    start = time.perf_counter()
    command = [python, ROOT / "install.py", *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, cwd=packages)
    print(f"install.py took {time.perf_counter() - start:.3f} s")
    assert ended.returncode == 0 and ended.stderr == "" and ended.stdout.count("\n") <= 1
    return ended.stdout


def pip_that(packages, code):
    """Another pip in the real one's place, which notes that it was asked."""
    (packages / "pip").mkdir()
    (packages / "pip" / "__init__.py").touch()
    asked = packages / "asked.txt"
    (packages / "pip" / "__main__.py").write_text(f"open({str(asked)!r}, 'a').write('asked')\n{code}")
    return asked


def version(python, package):
    ended = subprocess.run([python, "-m", "pip", "show", package], capture_output=True, text=True)
    return (re.findall(r"^Version: (.*)$", ended.stdout, re.MULTILINE) or [None])[0]


def remove(python, *names):
    subprocess.run([python, "-m", "pip", "uninstall", "-y", "-q", *names], capture_output=True, check=True)


def test_where_nothing_is_missing_nothing_is_imported_asked_for_or_said(python, packages):
    add(packages, "accelerate")
    asked = pip_that(packages, "")
    assert run(python, packages) == ""
    assert not asked.exists()


def test_in_this_python_nothing_is_missing():
    assert run(sys.executable, ROOT) == ""


def test_what_is_missing_is_installed_and_nothing_else_changes(python, packages, tmp_path):
    for name in ("1.3", "0.20"):
        wheel(tmp_path, "accelerate", name)
    try:
        assert run(python, packages, PIP_FIND_LINKS=str(tmp_path)) == "Hypernetworks: accelerate>=0.21 installed.\n"
        assert version(python, "accelerate") == "1.3"
        assert run(python, packages) == ""
    finally:
        remove(python, "accelerate")


def test_a_release_that_asks_for_another_version_of_what_is_there_is_passed_over(python, packages, tmp_path):
    wheel(tmp_path, "helper", "1.0")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-index", tmp_path / "helper-1.0-py3-none-any.whl"], check=True)
    wheel(tmp_path, "helper", "2.0")
    wheel(tmp_path, "accelerate", "1.3", requires="helper>=2.0")
    try:
        said = run(python, packages, PIP_FIND_LINKS=str(tmp_path))
        assert said.startswith("Hypernetworks: accelerate>=0.21 could not be installed: ") and "accelerate" in said.split(": ", 2)[2]
        assert (version(python, "accelerate"), version(python, "helper")) == (None, "1.0")
        wheel(tmp_path, "accelerate", "1.1", requires="helper>=1.0")
        assert "installed." in run(python, packages, PIP_FIND_LINKS=str(tmp_path))
        assert (version(python, "accelerate"), version(python, "helper")) == ("1.1", "1.0")
    finally:
        remove(python, "accelerate", "helper")


@pytest.mark.parametrize("arguments, variables", [
    (["--skip-install"], {}), ([], {"COMMANDLINE_ARGS": "--api --skip-install"}), ([], {"COMMANDLINE_ARGS": "--skip-install --ckpt 'no end"}),
])
def test_skip_install_is_obeyed(python, packages, arguments, variables):
    asked = pip_that(packages, "")
    said = run(python, packages, *arguments, **variables)
    assert "accelerate>=0.21 missing" in said and "--skip-install" in said
    assert not asked.exists()


@pytest.mark.parametrize("code, words", [
    ("print('Collecting'); print('ERROR: the disk is full'); raise SystemExit(2)", "could not be installed: the disk is full"),
    ("raise SystemExit(1)", "could not be installed: pip gave no reason"),
    ("print('all is well')", "could not be installed: pip takes them to be there"),
    ("import os, sys; sys.stdout.buffer.write(bytes(range(256)) * 999); os.abort()", "could not be installed: "),
])
def test_a_pip_that_fails_is_one_sentence(python, packages, code, words):
    asked = pip_that(packages, code)
    assert words in run(python, packages)
    assert asked.read_text() == "asked"


def test_without_a_network_it_is_one_sentence(python, packages):
    said = run(python, packages, PIP_NO_INDEX="0", INDEX_URL="http://127.0.0.1:9/simple")  # port 9: discard; nobody answers
    assert "accelerate>=0.21 could not be installed: " in said


def test_a_pip_that_never_ends_is_ended(python, packages):
    pip_that(packages, "import time; time.sleep(60)")
    code = (ROOT / "install.py").read_text().replace("PATIENCE = 60", "PATIENCE = 1")
    (packages / "install.py").write_text(code)
    ended = subprocess.run(
        [python, packages / "install.py"], env=os.environ | {"PYTHONPATH": str(packages)}, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 0 and "pip was not done after 1 seconds" in ended.stdout


def test_what_only_a_web_ui_brings_is_never_installed(python, tmp_path):
    asked = pip_that(tmp_path, "")
    said = run(python, tmp_path)
    assert "no torch and no gradio" in said and not asked.exists()


def test_a_folder_without_code_is_no_package(python, packages):
    (packages / "accelerate").mkdir()
    assert "accelerate>=0.21" in run(python, packages, "--skip-install")


def test_requirements_are_those_of_the_package():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = set(re.findall(r'"([^"]+)"', re.search(r"^dependencies = \[(.*)\]$", text, re.MULTILINE)[1]))
    asked = set(re.findall(r'": "(.+)",', (ROOT / "install.py").read_text(encoding="utf-8")))
    assert {one for one in needed if not one.startswith(("torch", "tomli"))} == asked


def test_the_manager_can_read_our_name():
    config = configparser.ConfigParser()
    assert config.read(ROOT / "metadata.ini")
    assert config.get("Extension", "Name") == "hypernetworks"
