"""Names, paths, and networks kept in memory."""

import os
import shutil
import threading
from pathlib import Path

import pytest
from models import diffusers_unet

from hypernetworks.catalog import Catalog
from hypernetworks.errors import FileRefused, HypernetworkError
from hypernetworks.files import describe, save
from hypernetworks.generator import Hypernetwork
from hypernetworks.generator_files import save_generator
from hypernetworks.residual import ResidualHypernetwork

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def folder(tmp_path):
    def put(name, step):
        network = ResidualHypernetwork({6: 6}, initialization="Normal")
        network.step = step
        save(network, tmp_path / name)

    put("striped.safetensors", 1)
    put("striped.pt", 2)
    put("Sepia.pt", 3)
    put("v1.5.safetensors", 4)
    put("styles/dotted.safetensors", 5)
    put("styles/old/striped.pt", 6)
    put("styles/old/sepia.safetensors", 7)
    shutil.copy(GOLDEN / "kohya.pt", tmp_path / "None.pt")
    (tmp_path / ".hidden.safetensors").write_bytes(b"half a file")
    (tmp_path / "striped.txt").write_text("notes")
    (tmp_path / "striped.pt.optim").write_bytes(b"x")
    return tmp_path


def test_names_are_stems_of_all_files_below_the_folder(folder):
    assert Catalog(folder).names() == ["dotted", "Sepia", "sepia", "striped", "styles/old/striped", "v1.5"]


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    assert Catalog(tmp_path / "absent").names() == []
    with pytest.raises(HypernetworkError, match="There is none in"):
        Catalog(tmp_path / "absent").load("x")


@pytest.mark.parametrize(
    "name, step",
    [
        ("striped", 1),
        ("Sepia", 3),
        ("v1.5", 4),
        ("dotted", 5),
        ("styles/dotted", 5),
        ("styles/old/striped", 6),
        ("sepia", 7),
        ("styles/old/sepia", 7),
    ],
)
def test_a_network_is_found_by_its_name_or_by_its_path(folder, name, step):
    catalog = Catalog(folder)
    assert catalog.load(name).step == describe(catalog.path(name)).step == step


def test_safetensors_comes_first_even_from_a_deeper_folder(folder):
    save(ResidualHypernetwork({8: 8}), folder / "styles" / "Sepia.safetensors")
    assert Catalog(folder).path("Sepia") == folder / "styles" / "Sepia.safetensors"


def test_every_name_shown_leads_to_a_file_of_its_own(folder):
    catalog = Catalog(folder)
    paths = [catalog.path(name) for name in catalog.names()]
    assert len(set(paths)) == len(paths) and all(path.is_file() for path in paths)


def test_a_missing_name_is_answered_with_similar_ones(folder):
    with pytest.raises(HypernetworkError, match="no hypernetwork 'stripped'. Did you mean striped"):
        Catalog(folder).load("stripped")
    with pytest.raises(HypernetworkError, match="there are dotted, .* and others"):
        Catalog(folder).path("zzz")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "styles/../../secret", "secret", ""])
def test_nothing_outside_the_folder_can_be_named(folder, name):
    save(ResidualHypernetwork({8: 8}), folder.parent / "secret.safetensors", overwrite=True)
    with pytest.raises(HypernetworkError, match="no hypernetwork"):
        Catalog(folder).path(name)


def test_the_listing_is_kept_until_refreshed(folder):
    catalog = Catalog(folder)
    before = catalog.names()
    save(ResidualHypernetwork({8: 8}), folder / "new.safetensors")
    assert catalog.names() == before
    catalog.refresh()
    assert "new" in catalog.names()


def test_a_new_file_is_found_by_its_name_without_a_refresh(folder):
    catalog = Catalog(folder)
    catalog.names()
    save(ResidualHypernetwork({8: 8}), folder / "new.safetensors")
    assert catalog.load("new").keys == (8,)


def test_a_new_file_that_goes_before_the_known_one_is_found_without_a_refresh(folder):
    catalog = Catalog(folder)
    assert [catalog.load(name).step for name in ("Sepia", "dotted", "styles/old/striped")] == [3, 5, 6]
    for name in ("Sepia", "dotted", "styles/old/striped"):
        save(ResidualHypernetwork({8: 8}), folder / f"{name}.safetensors")
        assert catalog.load(name).keys == (8,) and catalog.path(name) == folder / f"{name}.safetensors"


def test_a_network_is_loaded_once_until_its_file_changes(folder):
    catalog = Catalog(folder)
    first = catalog.load("striped")
    assert catalog.load("striped") is first and not first.training
    network = ResidualHypernetwork({8: 8})
    save(network, folder / "striped.safetensors", overwrite=True)
    assert catalog.load("striped").keys == (8,)
    os.utime(folder / "striped.safetensors", ns=(1, 1))
    assert catalog.load("striped") is not first


def test_the_networks_used_longest_ago_are_let_go(folder):
    catalog = Catalog(folder, loaded=2)
    striped, dotted = catalog.load("striped"), catalog.load("dotted")
    assert catalog.load("striped") is striped
    catalog.load("v1.5")
    assert catalog.load("striped") is striped
    assert catalog.load("dotted") is not dotted


def test_a_file_that_is_gone_is_said(folder):
    catalog = Catalog(folder)
    catalog.load("striped")
    (folder / "striped.safetensors").unlink()
    with pytest.raises(HypernetworkError, match="is gone"):
        catalog.load("striped")
    catalog.refresh()
    assert catalog.load("striped").step == 2


def test_a_damaged_file_is_listed_and_refused_when_loaded(folder):
    (folder / "broken.pt").write_bytes(b"broken")
    catalog = Catalog(folder)
    assert "broken" in catalog.names()
    with pytest.raises(FileRefused, match="broken.pt is damaged"):
        catalog.load("broken")


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_symbolic_links_are_followed_but_not_in_a_circle(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(GOLDEN / "kohya.pt", elsewhere / "linked.pt")
    (folder / "link").symlink_to(elsewhere)
    (folder / "circle").symlink_to(folder)
    names = Catalog(folder).names()
    assert "linked" in names and len(names) == 7


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_a_link_to_itself_is_no_folder(folder):
    (folder / "itself").symlink_to(folder / "itself")
    (folder / "round.pt").symlink_to(folder / "round.pt")
    assert set(Catalog(folder).names()) == {"dotted", "Sepia", "sepia", "striped", "styles/old/striped", "v1.5", "round"}


def test_threads_share_one_network(folder):
    catalog, found = Catalog(folder), []
    threads = [threading.Thread(target=lambda: found.append(catalog.load("striped"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(map(id, found))) == 1


def test_a_generator_is_loaded_by_its_name_too_and_the_same_again(tmp_path):
    unet = diffusers_unet()
    network = Hypernetwork(embedding_dim=16, hidden_dim=16, basis_size=2, tasks=("day", "night")).bind(unet)
    save_generator(network, tmp_path / "any.safetensors")
    save(ResidualHypernetwork({8: 8}), tmp_path / "oil.safetensors")
    catalog = Catalog(tmp_path)
    loaded = catalog.load("any")
    assert isinstance(loaded, Hypernetwork) and loaded.layers == network.layers and catalog.load("any") is loaded
    assert isinstance(catalog.load("oil"), ResidualHypernetwork)
    assert catalog.describe_generator("any").structure.tasks == ("day", "night")
    assert catalog.describe_generator("oil") is None and catalog.describe_generator("gone") is None


def test_files_are_the_same_object_until_one_changes(folder):
    catalog = Catalog(folder)
    before, path = catalog.files(), folder / "striped.safetensors"
    assert list(before) == catalog.names() and before["striped"] == (path, path.stat().st_mtime_ns, path.stat().st_size)
    catalog.refresh()
    assert catalog.files() is before
    os.utime(path, ns=(1, 1))
    assert catalog.files() is before  # no look without a refresh
    catalog.refresh()
    assert catalog.files()["striped"].time == 1 and catalog.files()["dotted"] == before["dotted"]


def test_two_ways_to_one_folder_are_listed_once_and_the_first_in_order_counts(folder):
    (folder / "another way").symlink_to(folder / "styles", target_is_directory=True)
    assert Catalog(folder).path("dotted") == folder / "another way" / "dotted.safetensors"
    assert Catalog(folder).names().count("dotted") == 1
