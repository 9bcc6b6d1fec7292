"""The web UIs in miniature are what they say: what stands in for what, in which line, with which arguments.

Where `WEB_UI_SOURCES` names a folder of checkouts called a1111, forge and reforge, every table is compared with them.
"""
import ast
import os
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="a web UI is made of it")

import web_ui

HOSTS = {"A1111": "a1111", "Forge": "forge", "reForge": "reforge"}
CELL = r"(A1111|Forge|reForge) (?:(\S+\.py):)?(\d+)"
TREES = ("common", "a1111", "forge_family", "forge", "reforge")
FAKES = [file.relative_to(web_ui.ROOT) for tree in TREES for file in sorted((web_ui.ROOT / tree).rglob("*.py"))]
MORE = [Path(name) for name in ("pipeline.py", "sampling.py", "joined.py", "checkpoints.py")]
FREE = {"OptionInfo", "Options", "ScriptRunner", "Prediction", "ForgeDiffusionEngine", "BaseModel", "Sampler", "CheckpointInfo"}
"""Classes that nobody but the web UI makes: their arguments are its own business."""


def rows(file):
    """(name, host, file, line) of a fake's table; the file is of the same path unless the table says otherwise."""
    for line in ast.get_docstring(ast.parse((web_ui.ROOT / file).read_text())).splitlines():
        if match := re.fullmatch(rf"(\S+)((?:\s+{CELL})+)", line):
            yield from ((match[1], host, path or Path(*file.parts[1:]), int(number)) for host, path, number in re.findall(CELL, match[2]))


def found(tree, name):
    """The last definition of a dotted name, None where it comes from elsewhere."""
    node = tree
    for part in name.split("."):
        node = next((child for child in reversed(getattr(node, "body", [])) if part in names(child)), None)
    return node


def names(node):
    """What a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, ast.ImportFrom):
        return {alias.name for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in getattr(target, "elts", [target]) if isinstance(name, ast.Name)}


def arguments(node):
    """Names of a function's arguments, or of those of a class's `__init__`; None for anything else."""
    if isinstance(node, ast.ClassDef):
        node = found(node, "__init__")
    if not isinstance(node, ast.FunctionDef):
        return None
    said = node.args
    return [one.arg for one in (*said.posonlyargs, *said.args, *said.kwonlyargs, *filter(None, (said.vararg, said.kwarg)))]


@pytest.mark.parametrize("file", FAKES, ids=str)
def test_each_fake_names_what_it_stands_in_for(file):
    tree = ast.parse((web_ui.ROOT / file).read_text())
    told = {name for name, *_ in rows(file)}
    assert told and all(found(tree, name) is not None for name in told)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif("WEB_UI_SOURCES" not in os.environ, reason="needs checkouts of the web UIs; WEB_UI_SOURCES names their folder")
@pytest.mark.parametrize("file", [*FAKES, *MORE], ids=str)
def test_lines_and_arguments_are_the_real_ones(file):
    tree = ast.parse((web_ui.ROOT / file).read_text())
    for name, host, path, line in rows(file):
        real = found(ast.parse((Path(os.environ["WEB_UI_SOURCES"]) / HOSTS[host] / path).read_text()), name)
        assert real is not None and real.lineno == line, (name, host)
        ours, theirs = arguments(found(tree, name)), arguments(real)
        if ours is not None and theirs is not None and name not in FREE:
            assert [argument for argument in theirs if argument in ours] == ours, (name, host, ours, theirs)


@pytest.mark.parametrize("kind", web_ui.TREES)
def test_a_web_ui_leaves_nothing_behind(kind, tmp_path):
    modules, path = set(sys.modules), list(sys.path)
    with web_ui.started(kind, tmp_path) as ui:
        assert sys.modules["modules.shared"] is ui.shared and sys.path != path
    assert not [name for name in set(sys.modules) - modules if web_ui.belongs(name)] and sys.path == path
