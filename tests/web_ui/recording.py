"""What a UNet was asked and answered during a job, and whether that is what plain hooks give."""
import copy
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from hypernetworks.attention import ResidualEdit, attached

from .unet import UNetModel

NO = ["no dogs", "no cats", "no mice"]
"""A negative prompt for each picture, so that every row can be told from its text."""


@dataclass
class Row:
    """One row of one evaluation: the text that it sees, when, and in which pass."""

    text: str
    step: int
    steps: int
    hires: bool
    unet: UNetModel = field(repr=False)

    @property
    def negative(self):
        """Negative prompts begin with "no " in these tests."""
        return self.text.startswith("no ")


@dataclass
class Call:
    """One evaluation."""

    unet: UNetModel
    x: torch.Tensor
    timesteps: torch.Tensor
    context: torch.Tensor
    y: torch.Tensor | None
    output: torch.Tensor
    weights: dict[str, torch.Tensor]

    def again(self, row, edits):
        """The answer for one row alone, with plain hooks."""
        part = slice(row, row + 1)
        with torch.no_grad(), attached(unet := self._as_it_was(), [ResidualEdit(*edit) for edit in edits]):
            y = None if self.y is None else self.y[part]
            return unet(self.x[part], self.timesteps[part], context=self.context[part], y=y)

    def _as_it_was(self):
        """The UNet with the weights of then: A1111 loads another checkpoint into the same modules."""
        if torch.equal(self.unet.out.weight, self.weights["out.weight"]):
            return self.unet
        unet = copy.deepcopy(self.unet)
        unet.load_state_dict(self.weights)
        return unet


class Recording:
    def __init__(self):
        self.calls = []

    def note(self, unet, x, timesteps, context, y, output):
        """From the UNet."""
        with torch.inference_mode(False):
            kept = [None if tensor is None else tensor.detach().clone() for tensor in (x, timesteps, context, y, output)]
            if not self.calls or not torch.equal(self.calls[-1].weights["out.weight"], unet.out.weight):
                weights = {name: value.clone() for name, value in unet.state_dict().items()}
            else:
                weights = self.calls[-1].weights
        self.calls.append(Call(unet, *kept, weights))

    def rows(self, ui, texts):
        """(call, place, Row) of all rows; the text is found by its encoding, the pass by the size and the step by the time."""
        times = {}
        for call in self.calls:
            when = times.setdefault(call.x.shape[-1], [])
            when += [int(call.timesteps[0])] if int(call.timesteps[0]) not in when else []
        first = self.calls[0].x.shape[-1]
        for call in self.calls:
            when = times[call.x.shape[-1]]
            for place in range(len(call.x)):
                text = self._text(ui, texts, call.context[place])
                yield call, place, Row(text, when.index(int(call.timesteps[0])), len(when), call.x.shape[-1] != first, call.unet)

    @staticmethod
    def _text(ui, texts, context):
        for text in texts:
            said = ui.encoded(text)
            if len(said) <= len(context) and torch.equal(context[: len(said)], said):
                return text
        raise AssertionError("a row sees a text that nobody wrote")

    def check(self, ui, texts, wanted):
        """Every row has the answer of plain hooks with the edits [(network, strength)] of `wanted(row)`; gives the rows."""
        found = list(self.rows(ui, texts))
        assert found
        for call, place, row in found:
            edits = wanted(row)
            answer = call.output[place : place + 1]
            torch.testing.assert_close(answer, call.again(place, edits), atol=1e-4, rtol=1e-4, msg=lambda text, row=row: f"{row}: {text}")
            if edits:  # or the comparison would say nothing
                assert (answer - call.again(place, [])).abs().max() > 1e-3, row
        return [row for _, _, row in found]


@contextmanager
def recorded():
    """What all UNets do within."""
    recording = Recording()
    assert UNetModel.watcher is None
    UNetModel.watcher = recording.note
    try:
        yield recording
    finally:
        UNetModel.watcher = None


def check(ui, prompts, wanted, negative=NO, comments="", **about):
    """A job with these prompts; `wanted(row)` says what acts on a row. Gives the rows and what the job gave."""
    texts = [ui.part("extra_networks").parse_prompt(prompt)[0] for prompt in [*prompts, *about.get("hr_prompt", [])]]
    parts = ui.part("prompt_parser").get_multicond_prompt_list(texts)[1]
    negative = negative[: len(prompts)]
    with recorded() as recording:
        result = ui.txt2img(prompts, negative_prompt=negative, batch_size=about.pop("batch_size", len(prompts)), **about)
    assert comments in result.comments and bool(comments) == bool(result.comments)
    return recording.check(ui, [*parts, *negative], wanted), result
