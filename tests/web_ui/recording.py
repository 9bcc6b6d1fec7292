"""What a UNet was asked and answered during a job, and whether that is what plain hooks give."""
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from hypernetworks.attention import ResidualEdit, attached

from .unet import UNetModel


@dataclass
class Row:
    """One row of one evaluation: the text that it sees, when, and in which pass."""

    text: str
    step: int
    steps: int
    hires: bool
    unet: UNetModel

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

    def again(self, row, edits):
        """The answer for one row alone, with plain hooks."""
        part = slice(row, row + 1)
        with torch.no_grad(), attached(self.unet, [ResidualEdit(*edit) for edit in edits]):
            y = None if self.y is None else self.y[part]
            return self.unet(self.x[part], self.timesteps[part], context=self.context[part], y=y)


class Recording:
    def __init__(self):
        self.calls = []

    def note(self, unet, x, timesteps, context, y, output):
        """From the UNet."""
        with torch.inference_mode(False):
            kept = [None if tensor is None else tensor.detach().clone() for tensor in (x, timesteps, context, y, output)]
        self.calls.append(Call(unet, *kept))

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
