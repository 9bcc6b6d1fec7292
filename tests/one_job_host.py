"""A host without a model: what is taken by one job at a time, and a folder."""
import threading
from contextlib import contextmanager
from pathlib import Path

from hypernetworks.errors import HostBusy
from hypernetworks.host import Folders


class OneJobHost:
    def __init__(self, folder="/nowhere"):
        self.folders, self.lock = Folders.below(Path(folder)), threading.Lock()
        self.reported, self.interrupted_at = [], None

    def report(self, text, step, steps):
        self.reported.append((text, step, steps))
        return step == self.interrupted_at

    @contextmanager
    def exclusive(self):
        if not self.lock.acquire(blocking=False):
            raise HostBusy("The model is busy.")
        try:
            yield
        finally:
            self.lock.release()
