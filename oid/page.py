"""An HTML page that needs no other file: tables, plots, and pictures with boxes drawn into them."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from oid.files import replacing

JPEG_QUALITY = 85
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
WHITE = (255, 255, 255)
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1500px; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0 2em; } caption { text-align: left; font-weight: 600; padding: .3em 0; }
td, th { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; }
.row { display: flex; gap: 10px; margin: 0 0 4px; } .row figure { flex: 1; margin: 0; min-width: 0; }
figcaption { font-size: 13px; color: #555; } img { width: 100%; } h2 { font-size: 14px; margin: 1.2em 0 .2em; }
"""


class Table(NamedTuple):
    """A table of the page; the first column is text."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def write_page(path: Path, title: str, parts: Sequence[str], *, style: str = "") -> None:
    """Writes a page.

    Args:
        path: the HTML file, whole or not at all.
        title: its heading, as text.
        parts: pieces of HTML, in this order.
        style: CSS rules in addition to `STYLE`.
    """
    title = html.escape(title)
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}{style}</style>"
    with replacing(path) as temporary:
        temporary.write_text("\n".join([head, f"<h1>{title}</h1>", *parts]) + "\n", encoding="utf-8")


def table_html(table: Table) -> str:
    """A table as HTML."""

    def row(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    return f"<table><caption>{html.escape(table.caption)}</caption>\n{row(table.header, 'th')}\n{body}</table>"


def picture_html(pixels: np.ndarray, alternative: str) -> str:
    """Embeds a picture, uint8 RGB `(height, width, 3)`, with an alternative text."""
    jpeg = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return _image_html("jpeg", jpeg.tobytes(), alternative)


def plot_html(figure, alternative: str, *, legend: bool = False) -> str:
    """Embeds a Matplotlib figure with an alternative text, and a legend below its axes if wanted."""
    if legend:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return _image_html("png", buffer.getvalue(), alternative)


def new_plot(width: float, height: float, title: str, *, log2: str = ""):
    """Makes a Matplotlib figure of a size in inches, and its axes; those in `log2` ("x", "xy") are logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=10, loc="left")
    for axis in log2:
        getattr(axes, f"set_{axis}scale")("log", base=2)
        getattr(axes, f"{axis}axis").set_major_formatter("{x:g}")
    return figure, axes


def _image_html(kind: str, content: bytes, alternative: str) -> str:
    source = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/{kind};base64,{source}">'


def scaled(pixels: np.ndarray, longer_side: int) -> np.ndarray:
    """A picture `(height, width, 3)`, resized so that its longer side has this number of pixels."""
    scale = longer_side / max(pixels.shape[:2])
    width, height = (max(1, round(side * scale)) for side in (pixels.shape[1], pixels.shape[0]))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(pixels, (width, height), interpolation=method)


def corners(box: Sequence[float], picture: np.ndarray) -> tuple[int, int, int, int]:
    """Converts a normalised xyxy box to pixels of a picture; it may reach one picture size outside."""
    height, width = picture.shape[:2]
    return tuple(np.round(np.clip(box, -1, 2) * (width, height, width, height)).astype(int).tolist())


def draw_outline(picture: np.ndarray, box: Sequence[float], colour: tuple[int, int, int]) -> None:
    """Draws the outline of a normalised xyxy box into an RGB picture, with a white border so that it always shows."""
    x0, y0, x1, y1 = corners(box, picture)
    cv2.rectangle(picture, (x0, y0), (x1, y1), WHITE, 4, cv2.LINE_AA)
    cv2.rectangle(picture, (x0, y0), (x1, y1), colour, 2, cv2.LINE_AA)


def draw_name(picture: np.ndarray, box: Sequence[float], text: str, colour: tuple[int, int, int]) -> None:
    """Writes a text above the upper left corner of a normalised xyxy box, but inside the picture."""
    height, width = picture.shape[:2]
    x0, y0, _, _ = corners(box, picture)
    (text_width, text_height), below = cv2.getTextSize(text, FONT, FONT_SCALE, 1)
    left = min(max(x0, 0), max(0, width - text_width - 4))
    top = min(max(y0 - text_height - below - 2, 0), max(0, height - text_height - below - 4))
    corner = (left + text_width + 4, top + text_height + below + 2)
    cv2.rectangle(picture, (left, top), corner, colour, cv2.FILLED)
    place = (left + 2, top + text_height + 2)
    cv2.putText(picture, text, place, FONT, FONT_SCALE, WHITE, 1, cv2.LINE_AA)
