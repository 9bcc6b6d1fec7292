"""Composition root: picks the host, gives it to the parts and registers them. Run directly it opens the standalone app."""
from __future__ import annotations

import sys
from collections.abc import Sequence


def standalone(arguments: Sequence[str] = ()) -> int:
    """The app without a web UI, as `hypernetworks ui` opens it; gives the exit code."""
    from hypernetworks.cli import main

    return main(["ui", *arguments])


if __name__ == "__main__":
    sys.exit(standalone(sys.argv[1:]))
