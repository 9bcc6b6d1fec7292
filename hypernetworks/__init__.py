"""Hypernetworks for Stable Diffusion. The public names load on first use, so that importing the package costs a web UI nothing."""
from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "HypernetworkError": "errors",
    "Hypernetwork": "generator",
    "apply_weights": "generator",
    "ResidualHypernetwork": "residual",
    "ResidualStructure": "residual",
    "attached": "attention",
    "ResidualEdit": "attention",
    "LowRankEdit": "attention",
    "Strength": "attention",
    "load": "files",
    "save": "files",
    "describe": "files",
    "Catalog": "catalog",
    "Session": "session",
    "ActiveNetwork": "prompt",
    "TrainingConfig": "config",
    "HypernetworkTrainer": "trainer",
    "Progress": "trainer",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
