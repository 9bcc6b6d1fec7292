"""Guidance, Forge's and reForge's way, in miniature: what fits together goes into one evaluation, the negative prompts first.

compile_conditions            Forge backend/sampling/condition.py:91
compile_weighted_conditions   Forge backend/sampling/condition.py:122

`evaluate` is Forge's calc_cond_uncond_batch (backend/sampling/sampling_function.py:154), reForge's _calc_cond_batch (ldm_patched/modules/samplers.py:213).
"""
import math

import torch

COND, UNCOND = 0, 1


def merged(n, extra_options):
    """Token merging: behind attn1 each token is what it and its neighbour are together."""
    return n.unflatten(1, (-1, 2)).mean(2).repeat_interleave(2, 1)


def compile_conditions(cond):
    """One entry, with what the UNet is told: a tensor, or SDXL's two."""
    if cond is None:
        return None
    if isinstance(cond, torch.Tensor):
        return [{"model_conds": {"c_crossattn": cond}}]
    return [{"model_conds": {"c_crossattn": cond["crossattn"], "y": cond["vector"]}}]


def compile_weighted_conditions(cond, weights):
    """One entry for the first part of every prompt, one for the second and so on: as many as the prompt with the fewest parts has."""
    entries = []
    for parts in zip(*weights, strict=False):
        places = [place for place, _ in parts]
        (entry,) = compile_conditions(cond.advanced_indexing(places) if hasattr(cond, "advanced_indexing") else cond[places])
        entries.append(entry | {"strength": parts[-1][1]})
    return entries


def evaluate(model, cond, uncond, x, timestep, model_options, fits):
    """[cond, uncond] predictions; `fits` says whether the memory suffices for so many rows. Where it does not, half as many are tried, a third..."""
    waiting = [(entry, COND) for entry in cond] + [(entry, UNCOND) for entry in uncond or []]
    sums = {flag: torch.zeros_like(x) for flag in (COND, UNCOND)}
    counts = {flag: torch.full_like(x, 1e-37) for flag in (COND, UNCOND)}
    while waiting:
        places = [place for place, (entry, _) in enumerate(waiting) if _alike(entry, waiting[0][0])][::-1]
        amounts = (len(places) // divisor for divisor in range(1, len(places) + 1))
        chunk = [waiting.pop(place) for place in places[: next((amount for amount in amounts if fits(amount * len(x))), 1)]]
        flags = [flag for _, flag in chunk]
        outputs = _evaluated(model, chunk, flags, x, timestep, model_options).chunk(len(chunk))
        for (entry, flag), output in zip(chunk, outputs, strict=True):
            weight = entry.get("strength", 1.0)
            sums[flag] += output * weight
            counts[flag] += weight
    return [sums[flag] / counts[flag] for flag in (COND, UNCOND)]


def _evaluated(model, chunk, flags, x, timestep, model_options):
    options = {**model_options.get("transformer_options", {}), "cond_or_uncond": list(flags), "sigmas": timestep}
    given = {"transformer_options": options}
    for name in chunk[0][0]["model_conds"]:
        given[name] = _joined([entry["model_conds"][name] for entry, _ in chunk])
    inputs, times = torch.cat([x] * len(chunk)), torch.cat([timestep] * len(chunk))
    if "model_function_wrapper" in model_options:
        return model_options["model_function_wrapper"](model.apply_model, {"input": inputs, "timestep": times, "c": given, "cond_or_uncond": flags})
    return model.apply_model(inputs, times, **given)


def _alike(one, other):
    """Contexts of different lengths are repeated up to their least common multiple, unless that is more than four times the shorter one."""
    a, b = one["model_conds"]["c_crossattn"].shape, other["model_conds"]["c_crossattn"].shape
    return a == b or (a[0] == b[0] and a[2] == b[2] and math.lcm(a[1], b[1]) // min(a[1], b[1]) <= 4)


def _joined(tensors):
    if tensors[0].ndim == 3:
        longest = math.lcm(*(tensor.shape[1] for tensor in tensors))
        tensors = [tensor.repeat(1, longest // tensor.shape[1], 1) for tensor in tensors]
    return torch.cat(tensors)


def guided(model, x, timestep, uncond, cond, cond_scale, model_options, fits):
    """The denoised picture. Without guidance there are no negative prompts' rows."""
    strength = sum(entry.get("strength", 1.0) for entry in cond)
    wanted = None if math.isclose(cond_scale, 1.0) and not model_options.get("disable_cfg1_optimization") else uncond
    found, negative = evaluate(model, cond, wanted, x, timestep, model_options, fits)
    return negative + (found - negative) * cond_scale * (1.0 if math.isclose(strength, 1.0) else strength)
