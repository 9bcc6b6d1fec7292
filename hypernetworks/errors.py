"""What a user can cause and mend. `str(error)` is one clear sentence; everything else is a bug and is raised as it is."""
from __future__ import annotations


class HypernetworkError(Exception):
    """Base of every error whose message is meant for a user's eyes."""


class ConfigError(HypernetworkError):
    """An option that does not exist, or a value that the option does not take."""


class NameRefused(HypernetworkError):
    """A name that cannot be a file name on every system."""


class NameTaken(HypernetworkError):
    """A file of that name exists; nothing is overwritten unless asked for."""


class FileRefused(HypernetworkError):
    """A file that is truncated, of another format, or made for another architecture."""


class UnsafeFile(FileRefused):
    """A file that asks for code to be run while it is read; the message names what it asked for."""


class ModelUnfit(HypernetworkError):
    """The loaded model cannot take this network, or is of a kind that has no such attention layers."""


class DatasetError(HypernetworkError):
    """A folder that holds nothing to train on, or an archive that cannot be unpacked safely."""


class TrainingFailed(HypernetworkError):
    """Training cannot start or go on (loss is not a number, no space left, out of memory)."""


class DiskFull(TrainingFailed):
    """The disk has no room for what is to be written; what stood there before is as it was."""


class HostBusy(HypernetworkError):
    """The model is in use by another job."""


class NotBound(HypernetworkError):
    """A network whose shapes come from a model was used before it met one."""


class AccessRefused(HypernetworkError):
    """A folder that a client may not name."""


class NotThere(HypernetworkError):
    """A hypernetwork, a run or a picture that a client asks for and that does not exist."""


class BodyRefused(HypernetworkError):
    """What a client sent is not of the kind that is asked for."""


class BodyTooLarge(BodyRefused):
    """What a client sent is larger than what is taken."""


class Interrupted(HypernetworkError):
    """The host's user interrupted what was being drawn."""
