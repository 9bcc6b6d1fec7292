"""Folders of a web UI that runs for one test; `web_ui.start` sets them.

script_path   A1111 3   Forge 3   reForge 3
models_path   A1111 3   Forge 3   reForge 3
data_path     A1111 3   Forge 3   reForge 3
"""
script_path = models_path = data_path = ""
