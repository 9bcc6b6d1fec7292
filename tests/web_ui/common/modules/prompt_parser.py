"""Prompts to conditioning; parts that are joined by AND each have a row of their own. Prompts that change while sampling are left out.

SdConditioning                       A1111 139   Forge 139   reForge 142
get_learned_conditioning             A1111 157   Forge 158   reForge 160
get_multicond_prompt_list            A1111 209   Forge 210   reForge 212
get_multicond_learned_conditioning   A1111 252   Forge 253   reForge 255
reconstruct_cond_batch               A1111 280   Forge 294   reForge 296
reconstruct_multicond_batch          A1111 321   Forge 337   reForge 337
"""
import re

import torch

AND = re.compile(r"\bAND\b")
WEIGHT = re.compile(r"^((?:\s|.)*?)(?:\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+)))?\s*$")


class SdConditioning(list):
    def __init__(self, prompts, is_negative_prompt=False, width=None, height=None, copy_from=None):
        super().__init__(prompts)
        like = copy_from or prompts
        self.is_negative_prompt = is_negative_prompt or getattr(like, "is_negative_prompt", False)
        self.width, self.height = width or getattr(like, "width", None), height or getattr(like, "height", None)


class DictWithShape(dict):
    @property
    def shape(self):
        return self["crossattn"].shape

    def advanced_indexing(self, item):
        return DictWithShape({key: value[item] for key, value in self.items()})


def get_learned_conditioning(model, prompts, steps, hires_steps=None, use_old_scheduling=False):
    """For each prompt its conditioning."""
    found = []
    for prompt in prompts:
        cond = model.get_learned_conditioning(SdConditioning([prompt], copy_from=prompts))
        found.append({key: value[0] for key, value in cond.items()} if isinstance(cond, dict) else cond[0])
    return found


def get_multicond_prompt_list(prompts):
    rows, texts, indexes = [], SdConditioning([], copy_from=prompts), {}
    for prompt in prompts:
        row = []
        for part in AND.split(prompt):
            text, weight = WEIGHT.search(part).groups()
            if text not in indexes:
                indexes[text] = len(texts)
                texts.append(text)
            row.append((indexes[text], float(weight) if weight is not None else 1.0))
        rows.append(row)
    return rows, texts, indexes


def get_multicond_learned_conditioning(model, prompts, steps, hires_steps=None, use_old_scheduling=False):
    rows, texts, _ = get_multicond_prompt_list(prompts)
    conds = get_learned_conditioning(model, texts, steps, hires_steps, use_old_scheduling)
    return [[(conds[index], weight) for index, weight in row] for row in rows]


def reconstruct_cond_batch(c, current_step):
    return _stacked(c)


def reconstruct_multicond_batch(c, current_step):
    tensors, places = [], []
    for parts in c:
        places.append([(len(tensors) + number, weight) for number, (_, weight) in enumerate(parts)])
        tensors += [cond for cond, _ in parts]
    return places, _stacked(tensors)


def _stacked(conds):
    if isinstance(conds[0], dict):
        return DictWithShape({key: _stacked([cond[key] for cond in conds]) for key in conds[0]})
    if conds[0].ndim == 1:
        return torch.stack(conds)
    longest = max(len(cond) for cond in conds)
    return torch.stack([torch.cat([cond, cond[-1:].expand(longest - len(cond), -1)]) for cond in conds])
