"""How a web UI runs a script's file: as a module that nobody can import.

load_module   A1111 7   Forge 10   reForge 10
"""
import importlib.util
import os


def load_module(path):
    spec = importlib.util.spec_from_file_location(os.path.basename(path), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
