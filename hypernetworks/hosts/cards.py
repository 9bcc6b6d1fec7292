"""The cards of hypernetworks beside the web UI's other extra networks (Forge and forge-classic have lost the page)."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modules import shared, ui_extra_networks

from ..catalog import Catalog
from ..errors import HypernetworkError
from ..library import Facts, facts_of
from ..prompt import written_name


class HypernetworkCards(ui_extra_networks.ExtraNetworksPage):
    """One card per file, with the picture beside it or else the one in its header, and with its metadata."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__("Hypernetworks")
        self.catalog = catalog

    def refresh(self) -> None:
        """Looks at the folder again."""
        self.catalog.refresh()

    def list_items(self) -> Iterator[dict[str, Any]]:
        """What the page shows (modules/ui_extra_networks.py, create_item_html)."""
        for index, name in enumerate(self.catalog.names()):
            item = self.create_item(name, index)
            if item is not None:
                yield item

    def create_item(self, name: str, index: int | None = None, enable_filter: bool = True) -> dict[str, Any] | None:
        """One card; a file that has gone since has none."""
        try:
            path = self.catalog.path(name)
        except HypernetworkError:
            return None
        stem = str(path.with_suffix(""))
        facts = _facts(path)
        return {
            "name": name,
            "filename": str(path),
            "shorthash": None,
            "preview": self.find_preview(stem) or _preview_in(facts),
            "description": self.find_description(stem) or (facts.description if facts is not None else None),
            "metadata": _shown(facts),
            "search_terms": [self.search_terms_from_path(str(path))],
            "prompt": f"{json.dumps(f'<hypernet:{written_name(name)}:')} + opts.extra_networks_default_multiplier + {json.dumps('>')}",
            "local_preview": f"{stem}.preview.{shared.opts.samples_format}",
            "sort_keys": {"default": index, **self.get_sort_keys(str(path))},
        }

    def allowed_directories_for_previews(self) -> list[str]:
        """Where pictures may be fetched from."""
        return [str(self.catalog.folder)]


def _facts(path: Path) -> Facts | None:
    """From the header alone; a `.pt` would have to be loaded for it, and a list of them takes too long."""
    if path.suffix.lower() != ".safetensors":
        return None
    try:
        return facts_of(path)
    except HypernetworkError:
        return None


def _preview_in(facts: Facts | None) -> str | None:
    """The picture in the header as an address of its own."""
    text = facts.metadata.get("preview", "") if facts is not None and facts.preview else ""
    return f"data:image/jpeg;base64,{text}" if text else None


def _shown(facts: Facts | None) -> dict[str, str] | None:
    if facts is None:
        return None
    return {"steps": str(facts.step), **{name: text for name, text in facts.metadata.items() if name != "preview"}}
