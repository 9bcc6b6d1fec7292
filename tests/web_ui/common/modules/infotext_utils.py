"""Text below a picture, and back into the page.

quote                         A1111 56    Forge 58    reForge 56
unquote                       A1111 63    Forge 65    reForge 63
parse_generation_parameters   A1111 233   Forge 251   reForge 240
"""
import json
import re

from modules import script_callbacks, shared

PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
SIZE = re.compile(r"^(\d+)x(\d+)$")


def quote(text):
    return json.dumps(text, ensure_ascii=False) if any(sign in str(text) for sign in ",\n:") else text


def unquote(text):
    if not (text and text[0] == '"' and text[-1] == '"'):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_generation_parameters(x, skip_fields=None):
    *lines, last = x.strip().split("\n")
    if len(PARAMETER.findall(last)) < 3:
        lines, last = [*lines, last], ""
    negative = next((number for number, line in enumerate(lines) if line.strip().startswith("Negative prompt:")), len(lines))
    found = {
        "Prompt": "\n".join(line.strip() for line in lines[:negative]),
        "Negative prompt": "\n".join(line.strip() for line in lines[negative:]).removeprefix("Negative prompt:").strip(),
    }
    for label, text in PARAMETER.findall(last):
        size = SIZE.match(text)
        if size:
            found |= {f"{label}-1": size[1], f"{label}-2": size[2]}
        else:
            found[label] = unquote(text)
    if "Hypernet" in found:
        found["Prompt"] += f"<hypernet:{found['Hypernet']}:{found.get('Hypernet strength', '1.0')}>"
    for label in shared.opts.infotext_skip_pasting if skip_fields is None else skip_fields:
        found.pop(label, None)
    return found


def paste(text, fields):
    """What the button under the prompt does to each component (the function within `connect_paste`): its new value, None to leave it."""
    found = parse_generation_parameters(text)
    script_callbacks.infotext_pasted_callback(text, found)
    return [_value(component, key(found) if callable(key) else found.get(key)) for component, key in fields]


def _value(component, value):
    kind = type(component.value)
    if value is None:
        return None
    if kind is bool:
        return value != "False" and bool(value)
    return float(value) if kind is int else kind(value)
