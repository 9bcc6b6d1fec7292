"""The checkpoints that there are in a web UI of the tests.

CheckpointInfo   A1111 modules/sd_models.py:48   Forge modules/sd_models.py:62   reForge modules/sd_models.py:174
"""
from dataclasses import dataclass


@dataclass(eq=False)
class CheckpointInfo:
    """With what the file would hold: a seed, the widths, the family."""

    name_for_extra: str
    seed: int = 0
    width: int = 8
    context_width: int = 16
    family: str = "sd1"
    prediction: str = "epsilon"
    in_channels: int = 4

    @property
    def filename(self):
        return f"/models/{self.name_for_extra}.safetensors"

    @property
    def model_name(self):
        return self.name_for_extra

    @property
    def short_title(self):
        return self.name_for_extra

    title = name = short_title

    @property
    def shorthash(self):
        return f"{self.seed:010x}"

    def calculate_shorthash(self):
        return self.shorthash

    @property
    def config(self):
        """Models of the same configuration may take each other's weights."""
        return self.width, self.context_width, self.family, self.prediction, self.in_channels


CHECKPOINTS = {
    info.name_for_extra: info
    for info in (
        CheckpointInfo("base"),
        CheckpointInfo("alike", seed=3),
        CheckpointInfo("wide", seed=4, width=12),
        CheckpointInfo("xl", seed=5, context_width=24, family="sdxl"),
        CheckpointInfo("velocity", seed=6, family="sd2", prediction="v_prediction"),
        CheckpointInfo("flux", seed=7, family="flux"),
        CheckpointInfo("inpainting", seed=8, in_channels=9),
        CheckpointInfo("xl inpainting", seed=9, context_width=24, family="sdxl", in_channels=9),
        CheckpointInfo("xl refiner", seed=10, context_width=1280, family="sdxl"),
    )
}
