"""Locks between programs: one has it, the others are told, and a program that is killed has none."""
import errno
import os
import subprocess
import sys
import threading

import pytest

from hypernetworks import locks
from hypernetworks.locks import held, is_free

HOLDER = """
import sys, time
from pathlib import Path
from hypernetworks.locks import held
with held(Path(sys.argv[1])) as ours:
    print(ours, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "runs" / "ink" / "run.lock"


def test_another_program_has_it_until_it_is_killed(file):
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "True\n"
        with held(file) as ours:
            assert not ours
        assert not is_free(file)
    finally:
        other.kill()
        other.communicate()
    with held(file, patience=10) as ours:
        assert ours


def test_the_file_is_there_while_it_is_held_and_asking_makes_none(file):
    assert is_free(file) and not file.parent.exists()
    with held(file) as ours:
        assert ours and file.exists() and not is_free(file)
        with held(file) as second:
            assert not second
        assert file.exists() and not is_free(file)
    assert is_free(file) and not any(file.parent.iterdir())


def test_of_many_that_wait_one_has_it_at_a_time(file):
    inside, most = [], []

    def work():
        for _ in range(20):
            with held(file, patience=60) as ours:
                assert ours
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80 and max(most) == 1


def test_where_the_disk_has_no_locks_everybody_is_let_through(file, monkeypatch):
    def none(opened):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "_lock", none)
    with held(file) as first, held(file) as second:
        assert first and second


def test_where_the_folder_cannot_be_made_everybody_is_let_through(tmp_path):
    (tmp_path / "file").touch()
    with held(tmp_path / "file" / "run.lock") as ours:
        assert ours
