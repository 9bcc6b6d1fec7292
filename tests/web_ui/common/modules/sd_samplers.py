"""The samplers that a web UI has.

SamplerDataTuple   A1111 modules/sd_samplers_common.py:11   Forge modules/sd_samplers_common.py:13   reForge modules/sd_samplers_common.py:15
all_samplers       A1111 6   Forge 11   reForge 12
"""
from collections import namedtuple

SamplerDataTuple = namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])
all_samplers = [SamplerDataTuple(name, None, [], {}) for name in ("DPM++ 2M", "Euler", "Euler a", "Heun")]
