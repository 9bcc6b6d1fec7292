"""Pages of cards.

extra_pages                                              A1111    Forge    reForge
register_page                                            A1111    Forge    reForge
ExtraNetworksPage                                        A1111    Forge    reForge
ExtraNetworksPage.refresh                                A1111    Forge    reForge
ExtraNetworksPage.link_preview                           A1111    Forge    reForge
ExtraNetworksPage.search_terms_from_path                 A1111    Forge    reForge
ExtraNetworksPage.list_items                             A1111    Forge    reForge
ExtraNetworksPage.allowed_directories_for_previews       A1111    Forge    reForge
ExtraNetworksPage.get_sort_keys                          A1111    Forge    reForge
ExtraNetworksPage.find_preview                           A1111    Forge    reForge
ExtraNetworksPage.find_description                       A1111    Forge    reForge
initialize                                               A1111    Forge    reForge
register_default_pages                                   A1111    Forge    reForge
"""
import os
import urllib.parse
from pathlib import Path

extra_pages = []
allowed_dirs = set()
PICTURES = ("png", "jpg", "jpeg", "webp", "gif")


def register_page(page):
    extra_pages.append(page)
    allowed_dirs.clear()
    allowed_dirs.update(folder for page in extra_pages for folder in page.allowed_directories_for_previews())


class ExtraNetworksPage:
    def __init__(self, title):
        self.title, self.name = title, title.lower()

    def refresh(self):
        pass

    def link_preview(self, filename):
        return f"./sd_extra_networks/thumb?filename={urllib.parse.quote(filename)}&mtime={os.path.getmtime(filename)}"

    def search_terms_from_path(self, filename, possible_directories=None):
        for folder in self.allowed_directories_for_previews() if possible_directories is None else possible_directories:
            parent = os.path.dirname(os.path.abspath(folder))
            if os.path.abspath(filename).startswith(parent):
                return os.path.relpath(os.path.abspath(filename), parent)
        return ""

    def list_items(self):
        raise NotImplementedError

    def allowed_directories_for_previews(self):
        return []

    def get_sort_keys(self, path):
        about = os.stat(path)
        return {
            "date_created": int(about.st_mtime), "date_modified": int(about.st_ctime), "name": Path(path).name.lower(), "path": str(path).lower()
        }  # fmt: skip

    def find_preview(self, path):
        files = (f"{path}{middle}.{ending}" for ending in PICTURES for middle in ("", ".preview"))
        return next((self.link_preview(file) for file in files if os.path.exists(file)), None)

    def find_description(self, path):
        files = (Path(f"{path}{ending}") for ending in (".txt", ".description.txt"))
        return next((file.read_text() for file in files if file.exists()), None)


class OwnPage(ExtraNetworksPage):
    """The web UI's own cards of hypernetworks (A1111 modules/ui_extra_networks_hypernets.py; Forge has lost them)."""

    def __init__(self):
        super().__init__("Hypernetworks")


def initialize():
    extra_pages.clear()


def register_default_pages():
    register_page(ExtraNetworksPage("Lora"))
    register_page(OwnPage())
