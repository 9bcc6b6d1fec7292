"""What the extension puts into a web UI's own lists: the extra network, cards, axes of the XYZ plot, settings, routes. All of it can go again."""
from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from fastapi import HTTPException, Request
from modules import errors, extra_networks, scripts, shared, ui_extra_networks

from .. import xyz
from ..catalog import Catalog
from ..rest import basic_auth
from .cards import HypernetworkCards
from .generation import Generation

SECTION = ("hypernetworks", "Hypernetworks")
TRY_SCRIPT = """(name) => {
    const prompt = gradioApp().querySelector("#txt2img_prompt textarea");
    if (![":", ">"].some((end) => prompt.value.includes(`<hypernet:${name}${end}`))) prompt.value = `${prompt.value} <hypernet:${name}:1>`.trim();
    updateInput(prompt);
    switch_to_txt2img();
}"""  # the page's own functions (script.js, javascript/ui.js)


class HypernetExtraNetwork(extra_networks.ExtraNetwork):
    """Answers to `<hypernet:...>` in place of the web UI's own, which would apply a network a second time, or on Forge not at all."""

    def __init__(self, generation: Generation) -> None:
        super().__init__("hypernet")
        self.generation = generation

    def activate(self, p: Any, params_list: Sequence[Any]) -> None:
        """A batch starts (modules/extra_networks.py:60)."""
        self.generation.activate(p, [params.items for params in params_list])

    def deactivate(self, p: Any) -> None:
        """The job is over."""
        self.generation.end()


def register(generation: Generation, catalog: Catalog) -> None:
    """From `on_before_ui`: the web UI has made its own lists by then, and makes them anew with every "Reload UI"."""
    extra_networks.register_extra_network(HypernetExtraNetwork(generation))
    pages = ui_extra_networks.extra_pages
    pages[:] = [page for page in pages if page.name != SECTION[0]]
    ui_extra_networks.register_page(HypernetworkCards(catalog))
    for module in _xyz_modules():
        xyz.add_axes(module, catalog)


def unregister() -> None:
    """The web UI's own extra network comes back with its next start; until then there is none of ours."""
    registry = extra_networks.extra_network_registry
    if isinstance(registry.get("hypernet"), HypernetExtraNetwork):
        del registry["hypernet"]
    pages = ui_extra_networks.extra_pages
    pages[:] = [page for page in pages if not isinstance(page, HypernetworkCards)]
    for module in _xyz_modules():
        xyz.remove_axes(module)


def _xyz_modules() -> list[Any]:
    """The web UI's script for XYZ plots, which is found by its file's name."""
    return [data.module for data in scripts.scripts_data if data.script_class.__module__ == "xyz_grid.py"]


def report(text: str) -> None:
    """A sentence and the exception that is being handled to the console and the web UI's report of errors (modules/errors.py:38)."""
    errors.report(text, exc_info=True)


def add_settings() -> None:
    """From `on_ui_settings`."""
    options = {
        "hypernetworks_panel_open": shared.OptionInfo(False, "Unfold the panel of hypernetworks in txt2img and img2img").needs_reload_ui(),
        "hypernetworks_data_folder": shared.OptionInfo(
            "", "Folder for training runs and pictures dropped in"
        ).info("empty: the folder hypernetworks beside the web UI's other data").needs_restart(),
        "hypernetworks_client_paths": shared.OptionInfo(
            False, "Other computers may name folders of this one to train on"
        ).info("matters with --listen, --share and the like, where only pictures that were dropped in are taken otherwise"),
        "hypernetworks_layer_by_layer": shared.OptionInfo(
            not is_forge(), "Evaluate linear hypernetworks layer by layer"
        ).info("exactly the pictures that AUTOMATIC1111 draws with them; otherwise as one matrix, which is faster and differs by 1 of 255 here and there"),
    }  # fmt: skip
    for name, option in options.items():
        option.section = SECTION
        shared.opts.add_option(name, option)


def panel_open() -> bool:
    """Whether the panel is unfolded when the page is built."""
    return bool(getattr(shared.opts, "hypernetworks_panel_open", False))


def layer_by_layer() -> bool:
    """Whether linear networks are evaluated as AUTOMATIC1111 does it: there by default, since pictures drawn before this extension came shall come out
    the same."""
    return bool(getattr(shared.opts, "hypernetworks_layer_by_layer", not is_forge()))


def always_on() -> tuple[str, float]:
    """The web UI's own setting "Add hypernetwork to prompt" and the strength that it uses (extra_networks_hypernet.py:10)."""
    name = getattr(shared.opts, "sd_hypernetwork", "None")
    return str(name or "None"), float(getattr(shared.opts, "extra_networks_default_multiplier", 1.0))


def add_routes(app: Any, host: Any, jobs: Any, catalog: Catalog) -> None:
    """From `on_app_started`, where the web UI was started with its own API: our routes, and A1111's where the host has lost them."""
    if not (getattr(shared.cmd_opts, "api", False) or getattr(shared.cmd_opts, "nowebui", False)):
        return
    from ..api import SDAPI, ApiParts, router, sdapi_router

    api = ApiParts(host=host, jobs=jobs, catalog=catalog, guards=[guard(app)], client_paths=lambda: host.client_paths)
    app.router.routes += router(api).routes  # `include_router` would look at every function's parameters a second time
    if is_forge():  # the routes are there and end in a NameError
        app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") not in SDAPI]
        app.router.routes += sdapi_router(api).routes


def guard(app: Any) -> Any:
    """A FastAPI dependency that asks for what the web UI asks for: the passwords of --api-auth, else a session of --gradio-auth.

    As modules/api/api.py:278 and gradio/routes.py, get_current_user; both are closures there and cannot be called.
    """
    accounts = dict(entry.split(":", 1) for entry in (getattr(shared.cmd_opts, "api_auth", None) or "").split(",") if ":" in entry)
    return basic_auth(accounts) if accounts else _session_guard(app)


def _session_guard(app: Any) -> Any:
    def check(request: Request) -> None:
        if getattr(app, "auth", None) is None:
            return
        names = ["access-token", "access-token-unsecure"]
        names += [f"{name}-{app.cookie_id}" for name in names if getattr(app, "cookie_id", None)]
        if not any(request.cookies.get(name) in app.tokens for name in names):
            raise HTTPException(401, "Not authenticated")

    return check


def is_forge() -> bool:
    """Whether it is Forge or one of its kin, whose own hypernetworks do not work."""
    return importlib.util.find_spec("modules_forge") is not None
