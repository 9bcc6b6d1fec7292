"""What several test files start from."""
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
