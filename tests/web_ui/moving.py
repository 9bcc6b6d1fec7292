"""A memory manager in miniature (Forge backend/memory_management.py:614, reForge ldm_patched/modules/model_management.py).

A patcher that is loaded for the first time takes its clones' place, and puts its own LoRA into the weights. `room_for_one` makes every
other model leave for it.
"""


class Memory:
    def __init__(self):
        self.loaded, self.room_for_one, self.free, self.moves = [], False, 1 << 40, 0

    def load(self, patchers):
        """Moves them where they compute."""
        for patcher in patchers:
            if any(patcher is loaded for loaded in self.loaded):
                continue
            clones = [loaded for loaded in self.loaded if loaded.model is patcher.model]
            self.loaded = [loaded for loaded in self.loaded if loaded.model is not patcher.model]
            if self.room_for_one:
                self.unload()
            if not clones:
                self._move(patcher.model, here=True)
            self.loaded.append(patcher)
            if hasattr(patcher, "refresh_loras"):
                patcher.refresh_loras()
            else:  # reForge's
                patcher.partially_load(patcher.load_device)

    def unload(self):
        """All leave."""
        for patcher in self.loaded:
            self._move(patcher.model, here=False)
        self.loaded = []

    def _move(self, module, here):
        """As `module.to(device)` does between two devices. Whoever asks a UNet that is on the other one gets an error."""
        self.moves += 1
        for part in module.modules():
            part.here = here
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()
        for part in module.modules():
            for name, buffer in part._buffers.items():
                part._buffers[name] = buffer.clone()
