"""What a generator's weights are made for: the prompt, a text, a reference picture or a task, and a second one to blend with."""
from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..catalog import Catalog
from ..errors import HypernetworkError
from ..host import Host
from ..prompt import SOURCES, ActiveNetwork, ConditionSource, read, written
from ..references import References
from . import compatibility
from .markup import code, data_uri, note

PROMPT, TEXT, REFERENCE, TASK = "The prompt", "A text", "A reference picture", "A task"
NEEDED = {PROMPT: "text", TEXT: "text", REFERENCE: "image", TASK: "task"}
"""What can be chosen, and which kind of condition a generator must have been made for."""

KIND_OF = {"text": TEXT, "reference": REFERENCE, "task": TASK}
LABELS = {KIND_OF[kind]: label for label, kind in SOURCES.items()}  # in a tag
SIDE = 160  # pixels of the picture shown
ONE_IN_SIGHT = f"(kind) => {json.dumps([TEXT, REFERENCE, TASK])}.map((one) => ({{__type__: 'update', visible: kind === one}}))"
SECOND_IN_SIGHT = "(share) => [{__type__: 'update', visible: share > 0}]"


class SourceInput:
    """One condition. Build it within a page; `inputs` are what is chosen, the text, the picture's hash and the task."""

    def __init__(self, host: Host, label: str, ending: str, prefix: str, reference: gr.Textbox, prompt: bool = True) -> None:
        """`reference` holds the picture's hash. Without `prompt` the prompt itself cannot be chosen."""
        self.host, self.reference = host, reference
        self.choices = [one for one in NEEDED if prompt or one != PROMPT]
        self.kind = gr.Radio(choices=self.choices, value=self.choices[0], label=label, elem_id=f"{prefix}condition_{ending}")
        self.text = gr.Textbox(
            value="", label="Text", placeholder="for example: ink on rough paper", visible=False, elem_id=f"{prefix}text_{ending}"
        )
        with gr.Row(visible=False, elem_id=f"{prefix}reference_{ending}") as self.picture:
            self.dropped = gr.File(
                label="Reference", file_types=["image"], height=SIDE, scale=1, min_width=160,
                elem_id=f"{prefix}dropped_{ending}",
            )  # fmt: skip
            self.shown = gr.HTML(self.show(""), elem_id=f"{prefix}shown_{ending}")
        self.task = gr.Dropdown(choices=[], value="", label="Task", allow_custom_value=True, visible=False, elem_id=f"{prefix}task_{ending}")
        self.inputs = [self.kind, self.text, self.reference, self.task]
        self.offered = [self.kind, self.text, self.picture, self.reference, self.shown, self.task]
        for component in self.inputs:  # a web UI would start with what was chosen yesterday (modules/ui_loadsave.py)
            component.do_not_save_to_config = True
        self.kind.change(None, [self.kind], [self.text, self.picture, self.task], **compatibility.script(ONE_IN_SIGHT))
        self.kept = self.dropped.upload(self.keep, [self.dropped], [self.reference, self.shown, self.dropped], queue=False)
        compatibility.followed([self.reference.change], self.show, [self.reference], [self.shown])

    @property
    def _references(self) -> References:
        return References(self.host.folders.references)

    def offer(self, kinds: Sequence[str], tasks: Sequence[str], kind: str, text: str, reference: str, task: str) -> list[Any]:
        """`offered` for a generator that was made for these, with the values of `inputs` where they can be."""
        kind = kind if kind in kinds else kinds[0]
        return [
            gr.update(choices=list(kinds), value=kind),
            gr.update(value=text, visible=kind == TEXT),
            gr.update(visible=kind == REFERENCE),
            reference,
            self.show(reference),
            gr.update(choices=list(tasks), value=task or next(iter(tasks), ""), visible=kind == TASK),  # one that it does not know is told later
        ]

    def keep(self, files: Any) -> list[Any]:
        """The hash of the picture that was dropped in, which is kept; the picture; and the place to drop the next one in."""
        try:
            name = self._references.keep(compatibility.uploaded(files)[0])
            return [name, self.show(name), None]
        except HypernetworkError as error:
            return [gr.update(), note(str(error)), None]

    def show(self, name: str) -> str:
        """The picture with that hash, or why there is none."""
        if not name:
            return note("No picture yet.", "hint")
        try:
            picture = self._references.open(ConditionSource("reference", name).value)
        except HypernetworkError as error:
            return note(str(error))
        return f'<figure class="hypernetworks-reference"><img src="{data_uri(picture, SIDE)}" alt=""><figcaption>{code(name)}</figcaption></figure>'

    @staticmethod
    def source(kind: str, text: str | None, reference: str | None, task: str | None) -> ConditionSource | None:
        """What is chosen, from the values of `inputs`; None is the prompt. Raises `HypernetworkError` for what is still to be given."""
        if kind == TEXT:
            return ConditionSource("text", text or "")
        if kind == REFERENCE:
            return ConditionSource("reference", reference or "")
        return ConditionSource("task", task or "") if kind == TASK else None

    @staticmethod
    def values(source: ConditionSource | None) -> list[str]:
        """What `inputs` show for it."""
        shown = {kind: source.value if source is not None and source.kind == kind else "" for kind in KIND_OF}
        return [PROMPT if source is None else KIND_OF[source.kind], shown["text"], shown["reference"], shown["task"]]


class ConditionInputs:
    """Two conditions and how they are blended, for one network; unseen unless it is a generator."""

    def __init__(self, host: Host, catalog: Catalog, ending: str, prefix: str, prompt: bool = True) -> None:
        self.catalog = catalog
        # in the page but unseen: gradio tells no change of what is not in the page
        first, second = (
            gr.Textbox(value="", show_label=False, elem_id=f"{prefix}hash_{name}", elem_classes=["hypernetworks-hidden"])
            for name in (ending, f"{ending}_second")
        )
        with gr.Column(visible=False, elem_id=f"{prefix}conditions_{ending}") as self.box:
            gr.HTML("This network is a <strong>generator</strong>: it makes its weights anew for what you choose here, and its effect follows that.")
            self.first = SourceInput(host, "Make the weights for", ending, prefix, first, prompt)
            self.blend = gr.Slider(
                minimum=0, maximum=1, step=0.05, value=0, label="Blend with something else", elem_id=f"{prefix}blend_{ending}",
                info="0 is what you chose above alone, 1 the second alone, 0.5 half of each.",
            )  # fmt: skip
            with gr.Column(visible=False, elem_id=f"{prefix}second_{ending}") as self.second_box:
                self.second = SourceInput(host, "Blend with", f"{ending}_second", prefix, second, prompt)
        self.inputs = [*self.first.inputs, *self.second.inputs, self.blend]
        self.blend.do_not_save_to_config = True
        self.blend.change(None, [self.blend], [self.second_box], **compatibility.script(SECOND_IN_SIGHT))

    @property
    def offered(self) -> list[gr.components.Component]:
        """What is shown about a generator."""
        return [self.box, *self.first.offered, *self.second.offered, self.blend, self.second_box]

    def offer(self, name: str, *values: Any) -> list[Any]:
        """`offered` for the network of that name, with all values of `inputs`. A network of the other kind has no condition."""
        about = self.about(name)
        *sources, blend = values
        if about is None:
            return [gr.update(visible=False), *[gr.update()] * (len(self.offered) - 1)]
        first, second = self.first.offer(*about.values(), *sources[:4]), self.second.offer(*about.values(), *sources[4:])
        return [gr.update(visible=True), *first, *second, blend, gr.update(visible=blend > 0)]

    def about(self, name: str) -> dict[str, list[str]] | None:
        """The kinds of conditions that the generator of that name can be asked for, and its tasks; None for what is no generator."""
        facts = self.catalog.describe_generator(name) if name else None
        if facts is None:
            return None
        structure = facts.structure
        return {"kinds": [one for one in self.first.choices if NEEDED[one] in structure.conditions], "tasks": list(structure.tasks)}

    @staticmethod
    def chosen(values: Sequence[Any]) -> dict[str, Any]:
        """Fields of `ActiveNetwork`, from the values of `inputs`. Raises as `SourceInput.source` does."""
        *sources, blend = values
        second = SourceInput.source(*sources[4:]) if blend else None
        return {"condition": SourceInput.source(*sources[:4]), "second": second, "blend": float(blend or 0)}

    @staticmethod
    def values(active: ActiveNetwork | None) -> list[Any]:
        """What `inputs` show for a network, or for none."""
        if active is None:
            return [*SourceInput.values(None), *SourceInput.values(None), 0.0]
        return [*SourceInput.values(active.condition), *SourceInput.values(active.second), active.blend]

    @staticmethod
    def said(values: Sequence[Any]) -> str:
        """The values of `inputs` as arguments of a tag. What is still to be given is empty there, and told when it is read."""
        *sources, blend = values
        said = []
        for (kind, *given), number in ((sources[:4], ""), (sources[4:], "2")):
            if kind in LABELS and (blend or not number):
                value = dict(zip((TEXT, REFERENCE, TASK), given, strict=True))[kind]
                said.append(f"{LABELS[kind]}{number}={written(value or '')}")
        return ":".join([*said, f"blend={blend:g}"] if blend else said)


def read_conditions(said: str, name: str = "any") -> ActiveNetwork:
    """A network of that name with these arguments of a tag. Raises `HypernetworkError`."""
    return read([name, *filter(None, said.split(":"))])
