"""The XYZ plot's axes and cells (scripts/xyz_grid.py), without the grid.

AxisOption          A1111 207   Forge 237   reForge 215
AxisOptionImg2Img   A1111 219   Forge 249   reForge 227
AxisOptionTxt2Img   A1111 225   Forge 255   reForge 233
axis_options        A1111 231   Forge 261   reForge 239
Script              A1111 410   Forge 439   reForge 469
Script.run          A1111 533   Forge 562   reForge 622
"""
from copy import copy

import modules.scripts as scripts
from modules.processing import process_images


def do_nothing(p, x, xs):
    pass


class AxisOption:
    def __init__(self, label, type, apply, format_value=None, confirm=None, cost=0.0, choices=None, prepare=None):
        self.label, self.type, self.apply, self.format_value = label, type, apply, format_value
        self.confirm, self.cost, self.choices, self.prepare = confirm, cost, choices, prepare


class AxisOptionImg2Img(AxisOption):
    is_img2img = True


class AxisOptionTxt2Img(AxisOption):
    is_img2img = False


axis_options = [AxisOption("Nothing", str, do_nothing), AxisOptionTxt2Img("Seed", int, do_nothing), AxisOptionImg2Img("Denoising", float, do_nothing)]


class Script(scripts.Script):
    def title(self):
        return "X/Y/Z plot"

    def ui(self, is_img2img):
        self.current_axis_options = [option for option in axis_options if type(option) is AxisOption or option.is_img2img == is_img2img]
        return []

    def run(self, p, x_type, x_values, y_type, y_values):
        """A cell for each pair of values; a copy of the job is made for each, with the same dictionary of infotext."""
        chosen = [(next(option for option in self.current_axis_options if option.label == label), values) for label, values in ((x_type, x_values), (y_type, y_values))]
        (x_option, xs), (y_option, ys) = [(option, [option.type(value) for value in values]) for option, values in chosen]
        cells = []
        for y in ys:
            for x in xs:
                cell = copy(p)
                x_option.apply(cell, x, xs)
                y_option.apply(cell, y, ys)
                cells.append(process_images(cell))
        return cells
