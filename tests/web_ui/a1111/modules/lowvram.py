"""--medvram and --lowvram.

is_enabled   A1111 146
"""


def is_enabled(sd_model):
    return sd_model.lowvram
