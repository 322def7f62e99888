"""What pages are made of and who stores them need to know; imports nothing slow."""

from __future__ import annotations

import base64

SCRIPT = "plotly.min.js"
"""Name of plotly's script, and its address in a new page."""
PREVIEW = ("<!-- preview -->", "<!-- end of preview -->")
"""Around the parts of a page that need no script: tables and videos."""


def plotly_script() -> bytes:
    """Return the content of SCRIPT, from the installed plotly."""
    from importlib import resources

    # Not plotly.offline, whose import takes longer than all the rest of a page.
    return resources.files("plotly").joinpath("package_data", SCRIPT).read_bytes()


def with_script(page: str, address: str) -> str:
    """Return a page that takes SCRIPT from another address, relative to the page."""
    return page.replace(f'<script src="{SCRIPT}"', f'<script src="{address}"', 1)


def video_address(content: bytes) -> str:
    """Return an MP4 file as an address, so that a page needs no other file."""
    return f"data:video/mp4;base64,{base64.b64encode(content).decode()}"


def preview(page: str) -> str:
    """Return the parts of a page that need no script."""
    return "\n".join(part.partition(PREVIEW[1])[0] for part in page.split(PREVIEW[0])[1:])
