"""Settings: what there is, and what is chosen.

OptionInfo                   A1111 13    Forge 13    reForge 13
OptionInfo.info              A1111 44    Forge 44    reForge 44
OptionInfo.needs_restart     A1111 52    Forge 52    reForge 52
OptionInfo.needs_reload_ui   A1111 56    Forge 56    reForge 56
Options                      A1111 82    Forge 82    reForge 86
Options.set                  A1111 144   Forge 144   reForge 148
Options.get_default          A1111 173   Forge 173   reForge 177
Options.add_option           A1111 253   Forge 256   reForge 278
"""
OWN = ("data", "data_labels")


class OptionInfo:
    def __init__(
        self, default=None, label="", component=None, component_args=None, onchange=None, section=None, refresh=None, comment_before="",
        comment_after="", infotext=None, restrict_api=False, category_id=None,
    ):  # fmt: skip
        self.default, self.label, self.component, self.component_args = default, label, component, component_args
        self.onchange, self.section, self.infotext, self.restrict_api = onchange, section, infotext, restrict_api
        self.comment_after = comment_after

    def info(self, info):
        self.comment_after += f"({info})"
        return self

    def needs_restart(self):
        self.comment_after += "(requires restart)"
        return self

    def needs_reload_ui(self):
        self.comment_after += "(requires Reload UI)"
        return self


class Options:
    def __init__(self, data_labels, restricted_opts=()):
        self.data_labels = data_labels
        self.data = {name: option.default for name, option in data_labels.items()}

    def __setattr__(self, key, value):
        if key not in OWN and (key in self.data or key in self.data_labels):
            self.data[key] = value
        else:
            super().__setattr__(key, value)

    def __getattr__(self, item):
        if item in OWN:
            raise AttributeError(item)
        if item in self.data:
            return self.data[item]
        if item in self.data_labels:
            return self.data_labels[item].default
        raise AttributeError(item)

    def set(self, key, value, is_api=False, run_callbacks=True):
        option = self.data_labels[key]
        if self.data.get(key) == value or (is_api and option.restrict_api):
            return False
        setattr(self, key, value)
        return True

    def get_default(self, key):
        option = self.data_labels.get(key)
        return None if option is None else option.default

    def add_option(self, key, info):
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)
