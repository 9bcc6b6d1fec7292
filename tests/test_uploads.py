"""What is dropped in ends up in one folder under safe names, with its captions; whatever is hostile or damaged does not."""
import io
import re
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hypernetworks.dataset import read_folder
from hypernetworks.errors import DatasetError
from hypernetworks.uploads import Limits, Upload, safe_stem, store, unpack

PHOTOGRAPHS = Path(skimage.data.__file__).parent


def png(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def make_zip(path: Path, contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(upload: Upload) -> list[str]:
    return sorted(path.name for path in upload.taken)


# --- archives -------------------------------------------------------------------------------------------------------------------


def test_photographs_and_captions_of_all_folders_are_taken(tmp_path):
    rocket = (PHOTOGRAPHS / "rocket.jpg").read_bytes()
    archive = make_zip(
        tmp_path / "a.zip",
        {
            "set/rocket.jpg": rocket,
            "set/rocket.txt": b"a rocket",
            "set/deep/Cat.PNG": png(),
            "set/notes.md": b"hello",
            "set/": b"",
        },
    )
    upload = unpack(archive, tmp_path / "into")
    assert files(tmp_path / "into") == {"rocket.jpg": rocket, "rocket.txt": b"a rocket", "Cat.png": png()}
    assert names(upload) == ["Cat.png", "rocket.jpg", "rocket.txt"]
    assert upload.left_out == [("notes.md", "neither a picture (png, jpg, webp or bmp) nor a caption (txt)")]
    assert [picture.caption for picture in read_folder(tmp_path / "into").pictures] == ["Cat", "a rocket"]


def test_equal_names_get_a_number_and_captions_stay_with_their_pictures(tmp_path):
    contents = {}
    for number, folder in enumerate(("one", "two", "three")):
        contents[f"{folder}/a star.txt"] = b"star of %d" % number
        contents[f"{folder}/a star.png"] = png(number)
    unpack(make_zip(tmp_path / "a.zip", contents), tmp_path / "into")
    found = read_folder(tmp_path / "into")
    pairs = {picture.path.read_bytes(): picture.caption for picture in found.pictures}
    assert pairs == {png(number): f"star of {number}" for number in range(3)}


def test_a_number_does_not_end_up_in_the_caption(tmp_path):
    unpack(make_zip(tmp_path / "a.zip", {"one/a star.png": png(1), "two/a star.png": png(2)}), tmp_path / "into")
    assert sorted(files(tmp_path / "into")) == ["a star (2).png", "a star.png"]
    assert {picture.caption for picture in read_folder(tmp_path / "into").pictures} == {"a star"}


def test_captions_kept_in_a_folder_of_their_own_join_their_pictures(tmp_path):
    unpack(
        make_zip(tmp_path / "a.zip", {"captions/1.txt": b"one", "images/1.png": png(1), "images/1.jpg": png(2)}),
        tmp_path / "into",
    )
    assert files(tmp_path / "into") == {"1.png": png(1), "1.jpg": png(2), "1.txt": b"one"}


def test_names_that_differ_in_case_only_do_not_overwrite_each_other(tmp_path):
    unpack(make_zip(tmp_path / "a.zip", {"a.png": png(1), "A.PNG": png(2), "A.txt": b"first"}), tmp_path / "into")
    assert files(tmp_path / "into") == {"a.png": png(1), "A (2).png": png(2), "a.txt": b"first"}


def test_what_is_there_already_is_kept(tmp_path):
    into = tmp_path / "into"
    into.mkdir()
    (into / "a.png").write_bytes(b"old")
    (into / "A.txt").write_bytes(b"old caption")
    upload = unpack(make_zip(tmp_path / "a.zip", {"a.png": png(1), "a.txt": b"new"}), into)
    assert files(into) == {"a.png": b"old", "A.txt": b"old caption", "a (2).png": png(1), "a (2).txt": b"new"}
    assert names(upload) == ["a (2).png", "a (2).txt"]


ATTACKS = [
    "../../evil.png", "/etc/evil.png", "C:\\evil.png", "C:evil.png", "..\\..\\evil.png", "\\\\server\\share\\evil.png",
    "a/../../evil.png", "..png/evil.png", "evil.png\0.exe", "\uff0e\uff0e\uff0fevil.png", "..\u2215evil.png", "CON.png",
    "aux.tar.png", "com1 .png", "evil.png ", " .png", "....png", "\u202egnp.evil.png", "evil\r\n.png", "e" * 400 + ".png",
    "\u00e9" * 300 + ".png", "a:b*c?.png", "|.png", ".hidden.png",
]  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_names_stay_within_the_folder(tmp_path, name):
    archive = make_zip(tmp_path / "a.zip", {"good.png": png(), name: png(1)})
    (tmp_path / "deep").mkdir()
    into = tmp_path / "deep" / "into"
    upload = unpack(archive, into)
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")} == {"a.zip", "deep"}
    assert sorted(files(tmp_path / "deep")) == sorted(f"into/{path.name}" for path in upload.taken)
    assert len(upload.taken) + len(upload.left_out) == 2


def is_safe(name: str) -> bool:
    """Python's documentation and Microsoft's "Naming Files, Paths, and Namespaces", in one condition."""
    device = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)", name.split(".")[0].rstrip())
    return (
        name not in ("", ".", "..")
        and not device
        and not re.search(r'[<>:"/\\|?*\x00-\x1f\x7f]', name)
        and name == name.strip(" .")
    )


@given(st.text(max_size=300) | st.sampled_from(ATTACKS))
def test_a_safe_stem_is_safe_and_safe_names_stay(name):
    stem = safe_stem(name)
    assert is_safe(stem) and len(stem.encode()) <= 161
    assert safe_stem(stem) == stem


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=12), max_size=6),
    st.lists(st.sampled_from([".png", ".txt", ".exe", ".PNG", "/", ""]), max_size=6),
)
def test_any_archive_at_all_writes_into_its_folder_only(tmp_path_factory, stems, suffixes):
    root = tmp_path_factory.mktemp("archive")
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        archive.writestr("good.png", png())
        for stem, suffix in zip(stems, suffixes, strict=False):
            name = (stem + suffix).encode("utf-8", "ignore").decode().partition("\0")[0]  # what an archive can hold
            if name:
                archive.writestr(name, b"anything")
        entries = [entry.filename for entry in archive.infolist() if not entry.filename.endswith(("/", "\\"))]
    (root / "data").mkdir()
    upload = unpack(root / "a.zip", root / "data" / "into")
    assert {path.name for path in root.iterdir()} == {"a.zip", "data"} and [path.name for path in (root / "data").iterdir()] == [
        "into"
    ]
    assert sorted(files(root / "data" / "into")) == names(upload)
    assert len(upload.taken) + len(upload.left_out) == len([name for name in entries if not name.startswith("._")])
    assert all(is_safe(path.name) and path.suffix in (".png", ".txt") for path in upload.taken)


def test_links_and_locked_files_are_left_out(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"good.png": png(), "locked.png": png()})
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("odd.png", png(), zipfile.ZIP_LZMA)
    data = bytearray(path.read_bytes())
    entry = data.index(b"locked.png", data.index(b"PK\1\2")) - 46
    data[entry + 8] |= 1  # the flag that says a password is needed
    path.write_bytes(data)
    upload = unpack(path, tmp_path / "into")
    assert names(upload) == ["good.png"]
    assert dict(upload.left_out) == {
        "link.png": "a link", "locked.png": "needs a password", "odd.png": "compressed in a way that is not read here",
    }  # fmt: skip


def test_an_entry_without_a_name_does_no_harm(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"good.png": png(), "x.png": png(1)})
    path.write_bytes(path.read_bytes().replace(b"x.png", b"\0.png"))  # a name ends at its first zero
    assert names(unpack(path, tmp_path / "into")) == ["good.png"]


def test_what_macos_adds_is_not_mentioned(tmp_path):
    upload = unpack(make_zip(tmp_path / "a.zip", {"a.png": png(), "__MACOSX/._a.png": b"x", "._b.png": b"x"}), tmp_path / "into")
    assert (names(upload), upload.left_out) == (["a.png"], [])


def test_a_link_in_the_folder_is_not_written_through(tmp_path):
    into = tmp_path / "into"
    into.mkdir()
    (into / "a.png").symlink_to(tmp_path / "victim.png")
    upload = unpack(make_zip(tmp_path / "a.zip", {"a.png": png()}), into)
    assert names(upload) == ["a (2).png"] and not (tmp_path / "victim.png").exists()


# --- limits and damage ----------------------------------------------------------------------------------------------------------


def refuses(archive: Path, into: Path, words: str, limits: Limits | None = None) -> None:
    with pytest.raises(DatasetError, match=words):
        unpack(archive, into, limits or Limits())
    assert not into.exists() or files(into) == {}


def test_bombs_are_refused_before_anything_is_written(tmp_path):
    small = Limits(harmless_bytes=1 << 20)
    zeros = bytes(2 << 20)
    refuses(
        make_zip(tmp_path / "a.zip", {"good.png": png(), "bomb.png": zeros}),
        tmp_path / "into",
        "bomb.png would unpack to far more",
        small,
    )
    many = make_zip(tmp_path / "b.zip", {f"{number}.png": bytes(600_000) for number in range(4)})
    refuses(many, tmp_path / "into", "b.zip would unpack to far more", small)
    refuses(many, tmp_path / "into", "This is 2.3 MB; at most 2.0 MB are taken at once", Limits(total_bytes=2 << 20))
    refuses(many, tmp_path / "into", "at most 3 are taken|more than 3 files", Limits(files=3))


def test_entries_that_share_their_bytes_are_counted_each(tmp_path):
    """The bomb of Fifield 2019: many entries of one compressed stream."""
    path = make_zip(tmp_path / "a.zip", {"a.png": bytes(900_000)})
    data = path.read_bytes()
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    record, count = data[start:end], 50
    directory = b"".join(record.replace(b"a.png", b"%c.png" % (65 + number)) for number in range(count))
    tail = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, count, count, len(directory), start, 0)
    path.write_bytes(data[:start] + directory + tail)
    refuses(path, tmp_path / "into", "would unpack to far more than pictures do", Limits(harmless_bytes=1 << 20))


@pytest.mark.parametrize("form", ["of 32 bits", "of 64 bits, said only there"])
def test_a_huge_list_of_contents_is_refused_before_it_is_made_into_objects(tmp_path, form):
    path, entries = tmp_path / "a.zip", 20_001
    contents = (b"PK\1\2" + bytes(42)) * entries
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(contents), 0, 0)
    if form != "of 32 bits":
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, len(contents), 0)
        end = record + struct.pack("<4sLQL", b"PK\6\7", 0, len(contents), 1) + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 46, 0, 0)
    path.write_bytes(contents + end)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == entries
    tracemalloc.start()
    refuses(path, tmp_path / "into", "holds more than 20000 files")
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20  # 10 MB as objects
    tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\3\4 and nothing more", b"PK\5\6"])
def test_a_file_that_is_no_archive_gets_a_sentence(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    refuses(tmp_path / "a.zip", tmp_path / "into", "a.zip is no zip archive")


def test_an_archive_without_pictures_leaves_nothing_behind(tmp_path):
    refuses(make_zip(tmp_path / "a.zip", {"a.txt": b"a caption", "b.exe": b"MZ"}), tmp_path / "into", "a.zip holds no pictures")
    refuses(tmp_path / "nowhere.zip", tmp_path / "into", "nowhere.zip cannot be unpacked: No such file")


def test_one_damaged_picture_is_left_out_and_named(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"good.png": png(1), "bad.png": png(2) * 50}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(b"bad.png") + 200] ^= 0xFF
    path.write_bytes(data)
    upload = unpack(path, tmp_path / "into")
    assert files(tmp_path / "into") == {"good.png": png(1)}
    assert upload.left_out[0][0] == "bad.png" and upload.left_out[0][1].startswith("damaged")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_archive_gives_a_sentence_or_sound_files(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("damaged")
    path = make_zip(root / "a.zip", {"a.png": png(1), "b/a.png": png(2) * 9, "a.txt": b"a caption"})
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path.write_bytes(content)
    try:
        upload = unpack(path, root / "into")
    except DatasetError as error:
        assert "\n" not in str(error)
        assert not (root / "into").exists() or files(root / "into") == {}
    else:
        assert sorted(files(root / "into")) == names(upload)
    assert {entry.name for entry in root.iterdir()} <= {"a.zip", "into"}


def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "a.zip", {"a.png": png(1), "b.png": png(2)})
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    refuses(archive, tmp_path / "into", "and the disk has 0.0 MB left")


def test_a_disk_that_fills_up_meanwhile_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "a.zip", {"a.png": png(1), "b.png": png(2)})
    real = zipfile.ZipFile.open

    def failing(self, entry, *rest):
        if getattr(entry, "filename", "") == "b.png":
            raise OSError(28, "No space left on device")
        return real(self, entry, *rest)

    monkeypatch.setattr(zipfile.ZipFile, "open", failing)
    refuses(archive, tmp_path / "into", "cannot be unpacked: No space left on device")


# --- loose files ----------------------------------------------------------------------------------------------------------------


def drop(folder: Path, *contents: tuple[str, bytes]) -> list[Path]:
    """As gradio hands files over: each in a folder of its own."""
    paths = []
    for number, (name, data) in enumerate(contents):
        (folder / str(number)).mkdir(parents=True)
        paths.append(folder / str(number) / name)
        paths[-1].write_bytes(data)
    return paths


def test_dropped_files_find_their_captions(tmp_path):
    dropped = drop(
        tmp_path / "drop",
        ("a.txt", b"first"),
        ("a.png", png(1)),
        ("b.JPEG", png(2)),
        ("a.png", png(3)),
        ("a.txt", b"second"),
        ("c.pdf", b""),
    )
    upload = store(dropped, tmp_path / "into")
    assert files(tmp_path / "into") == {
        "a.png": png(1),
        "a.txt": b"first",
        "a (2).png": png(3),
        "a (2).txt": b"second",
        "b.jpeg": png(2),
    }
    assert [name for name, _ in upload.left_out] == ["c.pdf"]


def test_captions_may_come_later_but_never_replace_any(tmp_path):
    store(drop(tmp_path / "one", ("a.png", png(1))), tmp_path / "into")
    store(drop(tmp_path / "two", ("a.txt", b"a star")), tmp_path / "into")
    assert files(tmp_path / "into") == {"a.png": png(1), "a.txt": b"a star"}
    with pytest.raises(DatasetError, match="a.txt: there is a caption of that name"):
        store(drop(tmp_path / "three", ("a.txt", b"another star")), tmp_path / "into")
    assert files(tmp_path / "into") == {"a.png": png(1), "a.txt": b"a star"}


def test_archives_among_the_files_are_unpacked(tmp_path):
    make_zip(tmp_path / "more.zip", {"b.png": png(2)})
    (tmp_path / "broken.zip").write_bytes(b"nonsense")
    dropped = [*drop(tmp_path / "drop", ("a.png", png(1))), tmp_path / "more.zip", tmp_path / "broken.zip"]
    upload = store(dropped, tmp_path / "into")
    assert names(upload) == ["a.png", "b.png"]
    assert upload.left_out == [("broken.zip", "broken.zip is no zip archive, or only a part of one")]


def test_links_and_folders_are_not_copied(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link.png").symlink_to(tmp_path / "secret")
    (tmp_path / "folder.png").mkdir()
    upload = store(
        [tmp_path / "link.png", tmp_path / "folder.png", *drop(tmp_path / "drop", ("a.png", png()))], tmp_path / "into"
    )
    assert names(upload) == ["a.png"]
    assert upload.left_out == [("link.png", "not a file"), ("folder.png", "not a file")]


def test_nothing_usable_gets_a_sentence(tmp_path):
    with pytest.raises(DatasetError, match="Nothing was taken in. c.pdf: neither a picture"):
        store(drop(tmp_path / "drop", ("c.pdf", b"")), tmp_path / "into")
    with pytest.raises(DatasetError, match="No files were given"):
        store([], tmp_path / "into")
    with pytest.raises(DatasetError, match="cannot be copied: No such file"):
        store([tmp_path / "nowhere.png"], tmp_path / "into")
