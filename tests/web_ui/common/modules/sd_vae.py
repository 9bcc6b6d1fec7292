"""An autoencoder beside the checkpoint's own.

get_loaded_vae_name   A1111 23   Forge 24   reForge 24
"""
import os

loaded_vae_file = None


def get_loaded_vae_name():
    return None if loaded_vae_file is None else os.path.basename(loaded_vae_file)
