"""A job of a web UI, in miniature: what A1111 and Forge have in common. What differs stands in each one's `modules/processing.py`.

Only the sampler Euler and Heun's are there, and latents are upscaled without a model.

StableDiffusionProcessing                               A1111 modules/processing.py:140   Forge modules/processing.py:123
StableDiffusionProcessing.sd_model                      A1111 modules/processing.py:266   Forge modules/processing.py:267
StableDiffusionProcessing.comment                       A1111 modules/processing.py:296   Forge modules/processing.py:297
StableDiffusionProcessing.setup_prompts                 A1111 modules/processing.py:421   Forge modules/processing.py:398
StableDiffusionProcessing.setup_conds                   A1111 modules/processing.py:496   Forge modules/processing.py:490
StableDiffusionProcessing.get_conds                     A1111 modules/processing.py:508   Forge modules/processing.py:507
StableDiffusionProcessing.parse_extra_network_prompts   A1111 modules/processing.py:511   Forge modules/processing.py:510
StableDiffusionProcessing.close                         A1111 modules/processing.py:407   Forge modules/processing.py:384
Processed                                               A1111 modules/processing.py:519   Forge modules/processing.py:518
create_infotext                                         A1111 modules/processing.py:705   Forge modules/processing.py:668
"""
import numpy as np
import torch
from modules import extra_networks, infotext_utils, prompt_parser, rng, sd_models, sd_vae, shared
from modules.sd_samplers_common import Sampler
from PIL import Image


class StableDiffusionProcessing:
    """The fields that are used, with their defaults."""

    TAKES = dict(
        sd_model=None, prompt="", negative_prompt="", seed=-1, subseed=-1, sampler_name=None, batch_size=1, n_iter=1, steps=50, cfg_scale=7.0,
        width=512, height=512, do_not_save_samples=False, do_not_save_grid=False, extra_generation_params=None, do_not_reload_embeddings=False,
        denoising_strength=0.75, s_min_uncond=None, override_settings=None, override_settings_restore_afterwards=True, refiner_checkpoint=None,
        refiner_switch_at=None, disable_extra_networks=False, enable_hr=False, hr_scale=2.0, hr_second_pass_steps=0, hr_checkpoint_name=None,
        hr_prompt="", hr_negative_prompt="", styles=None, restore_faces=None, tiling=None,
    )  # fmt: skip
    is_hr_pass = False
    iteration = 0
    all_prompts = all_negative_prompts = all_seeds = all_hr_prompts = None
    prompts = negative_prompts = hr_prompts = extra_network_data = hr_extra_network_data = None
    c = uc = hr_c = hr_uc = None
    sampler = refiner_checkpoint_info = None
    _scripts = _script_args = None
    _setup_complete = False

    def __init__(self, **about):
        if unknown := set(about) - set(self.TAKES):
            raise TypeError(f"unexpected keyword arguments {unknown}")
        vars(self).update({name: value for name, value in (self.TAKES | about).items() if name != "sd_model"})
        self.comments = {}
        self.extra_generation_params = self.extra_generation_params or {}
        self.override_settings = self.override_settings or {}
        self.s_min_uncond = shared.opts.s_min_uncond if self.s_min_uncond is None else self.s_min_uncond
        self.pictures_in_between = []

    @property
    def sd_model(self):
        return shared.sd_model

    @sd_model.setter
    def sd_model(self, value):
        pass

    @property
    def scripts(self):
        return self._scripts

    @scripts.setter
    def scripts(self, value):
        self._scripts = value
        self._setup()

    @property
    def script_args(self):
        return self._script_args

    @script_args.setter
    def script_args(self, value):
        self._script_args = value
        self._setup()

    def _setup(self):
        if self._scripts and self._script_args and not self._setup_complete:
            self._setup_complete = True
            self._scripts.setup_scrips(self, is_ui=True)

    def comment(self, text):
        self.comments[text] = 1

    def close(self):
        self.sampler = self.c = self.uc = self.hr_c = self.hr_uc = None

    def setup_prompts(self):
        """A list, be it of prompts or of negative prompts, has one for each picture."""
        count = len(self.negative_prompt) if isinstance(self.negative_prompt, list) else self.batch_size * self.n_iter
        self.all_prompts = self.prompt if isinstance(self.prompt, list) else count * [self.prompt]
        negative = self.negative_prompt
        self.all_negative_prompts = negative if isinstance(negative, list) else [negative] * len(self.all_prompts)
        if self.enable_hr:
            self.hr_prompt, self.hr_negative_prompt = self.hr_prompt or self.prompt, self.hr_negative_prompt or negative
            prompt, negative = self.hr_prompt, self.hr_negative_prompt
            self.all_hr_prompts = prompt if isinstance(prompt, list) else self.batch_size * self.n_iter * [prompt]
            self.all_hr_negative_prompts = negative if isinstance(negative, list) else self.batch_size * self.n_iter * [negative]

    def parse_extra_network_prompts(self):
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(self.prompts)
        if self.enable_hr:
            self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(self._batch(self.all_hr_prompts))

    def setup_conds(self):
        if self.is_hr_pass:  # a refiner asks
            self.calculate_hr_conds()
            return
        self.c, self.uc = self.conds(self.prompts, self.negative_prompts, self.width, self.height)

    def calculate_hr_conds(self):
        negative = self._batch(self.all_hr_negative_prompts)
        self.hr_c, self.hr_uc = self.conds(self.hr_prompts, negative, *(int(side * self.hr_scale) for side in (self.width, self.height)))

    def conds(self, prompts, negative_prompts, width, height):
        said = prompt_parser.SdConditioning(prompts, width=width, height=height)
        unsaid = prompt_parser.SdConditioning(negative_prompts, width=width, height=height, is_negative_prompt=True)
        return (
            prompt_parser.get_multicond_learned_conditioning(shared.sd_model, said, self.steps),
            prompt_parser.get_learned_conditioning(shared.sd_model, unsaid, self.steps),
        )

    def get_conds(self):
        return (self.hr_c, self.hr_uc) if self.is_hr_pass else (self.c, self.uc)

    def _batch(self, everything):
        return everything[self.iteration * self.batch_size : (self.iteration + 1) * self.batch_size]

    def before_sampling(self, x, c, uc):
        """What a web UI does with its model and scripts before each pass."""

    def change_checkpoint(self, info):
        """Loads the checkpoint of the second pass."""
        sd_models.reload_model_weights(info=info)

    def sample(self):
        self.sampler = Sampler(self)
        noise = self.rng.next()
        self.before_sampling(noise, self.c, self.uc)
        samples = self.sampler.sample(self, noise, self.c, self.uc)
        if not self.enable_hr:
            return samples
        if self.hr_checkpoint_name:
            self.change_checkpoint(sd_models.get_closet_checkpoint_match(self.hr_checkpoint_name))
        return self.sample_hr_pass(samples)

    def sample_hr_pass(self, samples):
        if shared.state.interrupted:
            return samples
        self.is_hr_pass = True
        self.sampler = Sampler(self)
        samples = torch.nn.functional.interpolate(samples, scale_factor=self.hr_scale, mode="bilinear")
        shared.state.nextjob()
        noise = rng.ImageRNG(samples.shape[1:], self.seeds).next()
        if not self.disable_extra_networks:
            extra_networks.activate(self, self.hr_extra_network_data)
        self.calculate_hr_conds()
        if self.scripts is not None:
            self.scripts.before_hr(self)
        self.before_sampling(noise, self.hr_c, self.hr_uc)
        samples = self.sampler.sample_img2img(self, samples, noise, self.hr_c, self.hr_uc, self.hr_second_pass_steps or self.steps)
        self.is_hr_pass = False
        return samples


class Processed:
    """What a job gives."""

    def __init__(self, p, images_list, seed=-1, info="", infotexts=None):
        self.images, self.seed, self.info, self.infotexts = images_list, seed, info, infotexts or [info]
        self.comments = "".join(f"{comment}\n" for comment in p.comments)


def create_infotext(p, all_prompts, all_seeds, index=0):
    """Prompt, negative prompt, and labels with values."""
    labels = {
        "Steps": p.steps, "Sampler": p.sampler_name, "CFG scale": p.cfg_scale, "Seed": all_seeds[index], "Size": f"{p.width}x{p.height}",
        "Model": p.sd_model.sd_checkpoint_info.name_for_extra, **p.extra_generation_params,
    }  # fmt: skip
    said = ", ".join(f"{label}: {infotext_utils.quote(value)}" for label, value in labels.items() if value is not None)
    negative = p.negative_prompts[index]
    return f"{all_prompts[index]}{f'{chr(10)}Negative prompt: {negative}' if negative else ''}\n{said}".strip()


def batches(p, sample):
    """The loop over a job's batches, within whatever mode the web UI puts around it; `sample(p)` gives latents. Gives pictures, latents, infotexts."""
    images, latents, infotexts = [], [], []
    for number in range(p.n_iter):
        p.iteration = number
        shared.state.skipped = False
        if shared.state.interrupted or shared.state.stopping_generation:
            break
        p.prompts, p.negative_prompts, p.seeds = (p._batch(things) for things in (p.all_prompts, p.all_negative_prompts, p.all_seeds))
        p.subseeds = p.seeds
        p.rng = rng.ImageRNG((4, p.height // 8, p.width // 8), p.seeds)
        if p.scripts is not None:
            p.scripts.before_process_batch(p, batch_number=number, prompts=p.prompts, seeds=p.seeds, subseeds=p.subseeds)
        p.parse_extra_network_prompts()
        found = sample(p)
        latents += list(found.clone())
        shared.state.nextjob()
        if p.scripts is not None:
            p.prompts = p._batch(p.all_prompts)
        images += [_picture(pixels) for pixels in shared.sd_model.decode(found)]
        infotexts += [create_infotext(p, p.prompts, p.seeds, index) for index in range(len(found))]
    return images, latents, infotexts


def _picture(pixels):
    return Image.fromarray((255 * ((pixels + 1) / 2).clamp(0, 1)).numpy().transpose(1, 2, 0).astype(np.uint8))


def begin(p, seed):
    """What stands before the loop."""
    p.sd_vae_name = sd_vae.get_loaded_vae_name()
    if p.refiner_checkpoint:
        p.refiner_checkpoint_info = sd_models.get_closet_checkpoint_match(p.refiner_checkpoint)
    p.setup_prompts()
    p.all_seeds = [int(seed) + number for number in range(len(p.all_prompts))]
    if p.scripts is not None:
        p.scripts.process(p)


def end(p, images, latents, infotexts):
    """What stands behind it."""
    if not p.disable_extra_networks and p.extra_network_data:
        extra_networks.deactivate(p, p.extra_network_data)
    result = Processed(p, images, p.all_seeds[0], infotexts[0] if infotexts else "", infotexts)
    result.latents = latents
    if p.scripts is not None:
        p.scripts.postprocess(p, result)
    return result


