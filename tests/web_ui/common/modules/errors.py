"""What the web UI would print and swallow stands in `reported`, so that no test overlooks it.

report    A1111 38   Forge 38   reForge 38
display   A1111 64   Forge 64   reForge 64
"""
import traceback

reported = []


def report(message, *, exc_info=False):
    reported.append(f"{message}\n{traceback.format_exc() if exc_info else ''}")


def display(e, task, *, full_traceback=False):
    reported.append(f"{task}\n{''.join(traceback.format_exception(e))}")
