"""What differs between gradio 3.41 (A1111, reForge), 4.40 (Forge) and 6 (standalone). Nothing else asks for the version."""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

MAJOR = int(gr.__version__.split(".")[0])
CHOICES_ARE_PAIRS = MAJOR >= 4  # those of a dropdown, in the page; a radio's always are


def script(code: str) -> dict[str, Any]:
    """Keyword of an event for a JavaScript function that sees, and may replace, the inputs before they are sent."""
    return {"_js": code} if MAJOR < 4 else {"js": code}


def followed(events: Sequence[Any], function: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> list[Any]:
    """Connects events that may come again before the answer, such as components' `change`; the last one counts. Gives what `then` can be said to. gradio 3
    has no connection of several, and forgets what comes while it waits, so that it asks once more after each answer."""
    quietly = {"queue": False, "show_progress": "hidden"}
    if MAJOR >= 4:
        return [gr.on(events, function, inputs, outputs, trigger_mode="always_last", **quietly)]
    answered = [event(function, inputs, outputs, **quietly) for event in events]
    return [one.then(function, inputs, outputs, **quietly) for one in answered]


def last_click(
    button: Any, function: Callable[..., Any], again: Callable[..., Any], inputs: list[Any], outputs: list[Any], code: str
) -> None:
    """Connects a button that may be clicked again before the answer; the last click counts. `code` makes the inputs. gradio 3 forgets a click while it
    waits, so that it asks `again` after each answer."""
    about = {"show_progress": "hidden", **script(code)}
    if MAJOR < 4:
        button.click(function, inputs, outputs, **about).then(again, inputs, outputs, **about)
    else:
        button.click(function, inputs, outputs, trigger_mode="always_last", **about)


def on_input(components: Sequence[Any], said: dict[str, Any]) -> None:
    """Connects what the user does with components, not what the server does, with a script. gradio 6 tells of a letter before the page has it, so that
    the last one is only seen when the field is left."""
    names = ("input", "blur", "release") if MAJOR >= 6 else ("input",)
    events = [getattr(component, name) for component in components for name in names if hasattr(component, name)]
    if MAJOR >= 4:
        gr.on(events, trigger_mode="multiple", **said)
        return
    for event in events:
        event(**said)


def lossless() -> dict[str, Any]:
    """Keyword of `gr.Image` that keeps every pixel; the default became a lossy format."""
    return {} if MAJOR < 4 else {"format": "png"}


def copy_button() -> dict[str, Any]:
    """Keyword of `gr.Textbox` for a button that copies the text."""
    return {"show_copy_button": True} if MAJOR < 6 else {"buttons": ["copy"]}


def uploaded(files: Any) -> list[Path]:
    """Paths of the files dropped into a `gr.File`: temporary file objects in gradio 3, paths later."""
    if not files:
        return []
    files = files if isinstance(files, Sequence) and not isinstance(files, str) else [files]
    return [Path(getattr(file, "name", file)) for file in files]


def page(title: str, style: str, script_text: str) -> gr.Blocks:
    """A page of our own, with a style sheet and a script, that asks the internet for nothing: its fonts are the system's."""
    looks = _looks(style, script_text)
    at_start = {name: value for name, value in looks.items() if MAJOR < 6}
    return gr.Blocks(title=title, analytics_enabled=False, **at_start)


def serve(demo: gr.Blocks, style: str, script_text: str, **options: Any) -> str:
    """Starts to answer on this machine, in the background; gives the address."""
    if MAJOR < 4:  # has no way to put a script into the page's head
        with demo:
            demo.load(None, None, None, _js=f"() => {{{script_text}}}")
    at_start = _looks(style, script_text) if MAJOR >= 6 else {"app_kwargs": {"middleware": [Middleware(_WithoutElsewhere)]}}
    demo.queue()
    return demo.launch(server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, **at_start, **options)[1]


class _WithoutElsewhere:
    """Blanks what the page of gradio before 6 fetches from other servers: fonts that are not used, and a script for pages within pages."""

    ELSEWHERE = re.compile(rb"<(?:link|script)\b[^>]*https://[^>]*>(?:</script>)?")

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_blanked(message: Any) -> None:
            if message["type"] == "http.response.body":  # blanks, since the length was told before
                message = message | {"body": self.ELSEWHERE.sub(lambda found: b" " * len(found[0]), message.get("body", b""))}
            await send(message)

        is_page = scope["type"] == "http" and scope["path"] == "/"
        await self.app(scope, receive, send_blanked if is_page else send)


def _looks(style: str, script_text: str) -> dict[str, Any]:
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_400")  # the help texts are there to be read
    if MAJOR < 4:
        return {"theme": theme, "css": style}
    return {"theme": theme, "head": f"<style>{style}</style><script>{script_text}</script>"}
