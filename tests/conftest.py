"""What several test files start from."""
from dataclasses import dataclass

import pytest

from hypernetworks.host import Folders


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory):
    """The embedded model, loaded once for a file of tests."""
    from hypernetworks.hosts.diffusers import DiffusersHost

    return DiffusersHost(None, Folders.below(tmp_path_factory.mktemp("home")))


@pytest.fixture
def host(shared_host, tmp_path):
    """The embedded model with folders of the test's own."""
    shared_host.folders = Folders.below(tmp_path)
    return shared_host


@pytest.fixture
def service(host, tmp_path):
    """The REST routes on it, with a client."""
    from rest_service import Service

    found = Service(host, tmp_path)
    yield found
    found.end()


@pytest.fixture
def waiting(host, tmp_path):
    """The same with pictures, and with runs that go on until they are stopped."""
    from rest_service import Service, Trainer

    found = Service(host, tmp_path, make_trainer=Trainer)
    assert found.upload().status_code == 200
    yield found
    found.end()


@pytest.fixture(scope="module")
def browser():
    """A real one. Skips where none can be expected."""
    from browsing import opened_browser

    with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of the app at `address`."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def address(home):
    """The app as `hypernetworks ui` starts it."""
    from browsing import app_running

    with app_running(home, "-m", "hypernetworks", "ui", "--home", home, "--no-browser", "--port") as address:
        yield address


@dataclass
class FaultCounts:
    """What the fault tests have done, counted by themselves: processes killed and how many of them lost something, inputs made up and how many of them
    came through to where they should not."""

    killed: int = 0
    lost: int = 0
    fuzzed: int = 0
    escaped: int = 0


COUNTS = pytest.StashKey[FaultCounts]()


@pytest.fixture
def fault_counts(pytestconfig):
    """For the line at the end."""
    return pytestconfig.stash.setdefault(COUNTS, FaultCounts())


def pytest_terminal_summary(terminalreporter, config):
    if counts := config.stash.get(COUNTS, None):
        terminalreporter.section("faults")
        terminalreporter.write_line(f"killed {counts.killed}, lost {counts.lost}; fuzzed {counts.fuzzed:,}, escaped {counts.escaped}")
