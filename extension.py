"""Composition root: picks the host, gives it to the parts and hands them out. Run directly it opens the standalone app."""
from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parent / "hypernetworks"


def load_package() -> str:
    """The package of this folder under a name of its own, whatever else is called `hypernetworks` on the path; gives the name."""
    name = f"hypernetworks_package_{zlib.crc32(str(PACKAGE).encode())}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)])
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return name


def part(name: str) -> ModuleType:
    """A module of the package, such as "hosts.a1111"."""
    return importlib.import_module(f"{load_package()}.{name}")


@functools.cache
def web_ui() -> Any:
    """The extension in the web UI that runs this: Forge and reForge keep their model in `modules_forge`, AUTOMATIC1111 does not."""
    parts = part("hosts.parts")
    host = part("hosts.forge").ForgeHost() if parts.is_forge() else part("hosts.a1111").A1111Host()
    return part("extension").Extension(host, parts)


def standalone(arguments: Sequence[str] = ()) -> int:
    """The app without a web UI, as `hypernetworks ui` opens it; gives the exit code."""
    return part("cli").main(["ui", *arguments])


if __name__ == "__main__":
    sys.exit(standalone(sys.argv[1:]))
