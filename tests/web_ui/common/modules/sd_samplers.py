"""The samplers that a web UI has (modules/sd_samplers.py:12)."""
from collections import namedtuple

SamplerData = namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])  # modules/sd_samplers_common.py
all_samplers = [SamplerData(name, None, [], {}) for name in ("DPM++ 2M", "Euler", "Euler a", "Heun")]
