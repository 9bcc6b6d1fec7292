"""Who may import whom. The picture in docs/architecture.md stays true because of this file."""
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hypernetworks"
PICTURE = PACKAGE.parent / "docs" / "architecture.md"
GROUND = ("residual", "attention", "schedule", "prompt", "config", "losses", "optimizers", "captions", "buckets", "host", "conditions", "decoders")
HOST_LIBRARIES = {"diffusers", "transformers", "omegaconf", "peft"}
PRIVATE = {  # names of torch that may go or come with any version; all of these are in 2.1, the oldest that pyproject.toml allows
    "torch._foreach_lerp_", "torch._subclasses.fake_tensor.FakeTensorMode", "torch.utils._python_dispatch.TorchDispatchMode",
}  # fmt: skip
STANDALONE = {"diffusers", "model_folder", "samplers", "single_file", "vocabulary"}  # of hosts/
WEB_UI = {"modules", "modules_forge", "backend", "ldm", "ldm_patched", "sgm"}


def imports(file: Path) -> set[str]:
    """Top-level names of absolute imports, and `.name` for the package's own modules."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            within = file.relative_to(PACKAGE).parts[:-1]
            outer = within[: len(within) - (node.level - 1)]
            path = [*outer, *(node.module or "").split(".")]
            path = [part for part in path if part]
            found |= {"." + path[0]} if path else {"." + alias.name for alias in node.names}
    return found


def modules(*folders: str) -> list[Path]:
    return sorted(file for file in PACKAGE.rglob("*.py") if not folders or file.relative_to(PACKAGE).parts[0] in folders)


def core() -> list[Path]:
    outside = ("ui", "hosts", "embedded")
    return [file for file in modules() if file.relative_to(PACKAGE).parts[0] not in outside]


@pytest.mark.parametrize("name", GROUND)
def test_the_ground_floor_imports_no_sibling_but_errors(name):
    assert {found for found in imports(PACKAGE / f"{name}.py") if found.startswith(".")} <= {".errors"}


def test_the_core_knows_no_gradio_and_no_host():
    for file in core():
        assert not imports(file) & ({"gradio"} | HOST_LIBRARIES | WEB_UI), file


def test_only_the_ui_imports_gradio():
    assert [file for file in modules() if "gradio" in imports(file) and file.relative_to(PACKAGE).parts[0] != "ui"] == []


def test_the_ui_knows_only_the_protocol():
    for file in modules("ui"):
        assert not imports(file) & (HOST_LIBRARIES | WEB_UI | {".hosts", ".embedded"}), file


def test_only_the_hosts_and_the_embedded_model_import_diffusers():
    assert {file.relative_to(PACKAGE).parts[0] for file in modules() if imports(file) & HOST_LIBRARIES} == {"hosts", "embedded"}


def test_the_standalone_host_and_the_embedded_model_know_no_web_ui():
    for file in modules("hosts", "embedded"):
        if file.parent.name == "embedded" or file.stem in STANDALONE:
            assert not imports(file) & WEB_UI, file


def rows() -> list[tuple[list[str], set[str]]]:
    """Of the table of rooms: the files and folders of each row, and what its last column names. Text in parentheses is for people."""
    table = PICTURE.read_text(encoding="utf-8").split("\n## Rooms\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `") and "(top level)" not in line]
    return [
        (
            [name.removeprefix("hypernetworks/") for name in re.findall("`([^`]+)`", room)],
            set(re.sub(r" \(.*?\)", "", imported).split(", ")) - {"–"},
        )
        for room, _, imported in lines
    ]


def files_of(row: list[str]) -> list[Path]:
    return [file for name in row for file in (modules(name[:-1]) if name.endswith("/") else [PACKAGE / name])]


@pytest.mark.parametrize(("row", "named"), rows(), ids=lambda value: value[0] if isinstance(value, list) else "")
def test_the_table_of_rooms_names_what_each_row_imports(row, named):
    own = {name.split("/")[0].removesuffix(".py") for name in row}
    found = {name[1:] for file in files_of(row) for name in imports(file) if name.startswith(".")} - own - {"__version__"}
    if "the core" in named:
        found = found - {file.stem for file in core()} | {"the core"}
    assert named == found


def test_every_module_has_one_row():
    assert sorted(file for row, _ in rows() for file in files_of(row) if file.stem != "__init__") == [
        file for file in modules() if file.stem != "__init__"
    ]


def private_names(file: Path) -> set[str]:
    """Of torch, imported or used."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            found.add(ast.unparse(node))
    return {name for name in found if name.startswith("torch.") and re.search(r"\._[a-z]", name)}


def test_what_is_private_to_torch_is_used_only_where_its_oldest_version_has_it():
    assert set().union(*map(private_names, modules())) == PRIVATE


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, hypernetworks; print(sorted({'torch', 'gradio', 'diffusers', 'accelerate'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_public_name_can_be_had():
    import hypernetworks

    for name in hypernetworks.__all__:
        assert getattr(hypernetworks, name) is not None
