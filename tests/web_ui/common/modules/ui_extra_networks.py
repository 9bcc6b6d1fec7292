"""Pages of cards.

extra_pages                                          A1111 17    Forge 20    reForge 20
register_page                                        A1111 86    Forge 89    reForge 89
ExtraNetworksPage                                    A1111 154   Forge 186   reForge 184
ExtraNetworksPage.refresh                            A1111 173   Forge 207   reForge 205
ExtraNetworksPage.link_preview                       A1111 186   Forge 230   reForge 218
ExtraNetworksPage.search_terms_from_path             A1111 191   Forge 235   reForge 223
ExtraNetworksPage.list_items                         A1111 555   Forge 643   reForge 626
ExtraNetworksPage.allowed_directories_for_previews   A1111 558   Forge 646   reForge 629
ExtraNetworksPage.get_sort_keys                      A1111 561   Forge 649   reForge 632
ExtraNetworksPage.find_preview                       A1111 574   Forge 662   reForge 645
ExtraNetworksPage.find_description                   A1111 587   Forge 686   reForge 669
initialize                                           A1111 606   Forge 705   reForge 688
register_default_pages                               A1111 610   Forge 709   reForge 692
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
