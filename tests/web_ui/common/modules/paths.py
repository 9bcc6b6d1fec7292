"""Folders of a web UI that runs for one test; `web_ui.start` sets them.

script_path   A1111    Forge    reForge
models_path   A1111    Forge    reForge
data_path     A1111    Forge    reForge
"""
script_path = models_path = data_path = ""
