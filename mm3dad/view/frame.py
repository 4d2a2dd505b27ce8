"""What the HTML pages with tables and charts share: head and style."""

from __future__ import annotations

import html
import importlib.resources


def draw_page(title: str, body: str, style: str = "") -> str:
    """Return a page that needs no other file.

    Args:
        title: plain text.
        body: HTML.
        style: CSS beyond that of all pages.
    """
    shared = (importlib.resources.files("mm3dad.view") / "assets" / "report.css").read_text(encoding="utf-8")
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{html.escape(title)}</title>\n<style>\n{shared}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
