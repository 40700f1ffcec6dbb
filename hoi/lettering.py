"""Labels and legends on pictures: fonts that have the letters, texts cut or wrapped to a width, ink that is read.

Sizes and places are in pixels; a box is `xyxy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Verdict = Literal["right", "wrong", "missed"]
Box = tuple[float, float, float, float]
Point = tuple[float, float]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_WIDE_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "Arial.ttf")
"""Asked for letters beyond ASCII, which the font inside Pillow lacks."""


def ink_on(colour: str) -> str:
    """A ground, `#rrggbb`, to black or white, whichever is read better on it (WCAG 2's relative luminance)."""
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return "#000000" if linear @ [0.2126, 0.7152, 0.0722] > 0.18 else "#ffffff"


def add_legend(picture: Image.Image, lines: Sequence[tuple[str, str, str]]) -> Image.Image:
    """A picture to a taller one, with a strip below that has room for every text.

    Args:
        picture: RGB.
        lines: Colour, what stands on it (a number), and text, in the order of reading; none leaves the picture alone.
    """
    if not lines:
        return picture
    size_px = min(max(13, round(mean_side(picture.size) / 34)), max(13, picture.width // 12))
    font = font_for("".join(number + text for _, number, text in lines), size_px)
    badge = max(label_size(number, False, font)[0] for _, number, _ in lines)
    height = label_size("1", False, font)[1]
    gap = 0.4 * height
    texts = [_wrapped(text, font, picture.width - badge - 4 * gap) for _, _, text in lines]
    column = badge + 4 * gap + max(font.getlength(part) for parts in texts for part in parts)
    fit = max(1, int((picture.width - gap) // column))
    num_columns = min(len(lines), fit) if all(len(parts) == 1 for parts in texts) else 1
    num_rows = -(-len(lines) // num_columns)
    tops = np.cumsum([gap, *(height * len(parts) + gap for parts in texts[:num_rows])])
    taller = Image.new("RGB", (picture.width, picture.height + round(tops[-1])), "#ffffff")
    taller.paste(picture)
    pen = ImageDraw.Draw(taller)
    for place, ((colour, number, _), parts) in enumerate(zip(lines, texts, strict=True)):
        x, y = gap + (place // num_rows) * column, picture.height + float(tops[place % num_rows])
        draw_label(pen, number, None, colour, (x, y, x + badge, y + height), font)
        anchor = "lm" if _has_anchors(font) else None
        for row, part in enumerate(parts):
            pen.text((x + badge + gap, y + height * (row + 0.5)), part, fill="#000000", font=font, anchor=anchor)
    return taller


def _wrapped(text: str, font: Font, width_px: float) -> list[str]:
    """A text to lines that fit a width, broken between words; a word that does not fit alone is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(fitted(word, font, width_px))
        else:
            lines[-1] = fitted(longer, font, width_px)
    return lines


def draw_label(
    pen: ImageDraw.ImageDraw, text: str, verdict: Verdict | None, colour: str, place: Box, font: Font
) -> None:
    x1, y1, x2, y2 = place
    height = y2 - y1
    ink = ink_on(colour)
    pen.rounded_rectangle((x1, y1, x2 - 1, y2 - 1), radius=height / 5, fill=colour, outline="#000000")
    left = x1 + 0.3 * height
    if verdict is not None:
        _draw_sign(pen, verdict, (left, y1 + 0.28 * height, left + 0.44 * height, y1 + 0.72 * height), ink)
        left += 0.65 * height
    pen.text((left, (y1 + y2) / 2), text, fill=ink, font=font, anchor="lm" if _has_anchors(font) else None)


def _draw_sign(pen: ImageDraw.ImageDraw, verdict: Verdict, box: Box, ink: str) -> None:
    """A tick, a cross or a ring, so that colour is not all that tells."""
    x1, y1, x2, y2 = box
    width = max(2, round((x2 - x1) / 5))
    if verdict == "right":
        pen.line([(x1, (y1 + y2) / 2), (x1 + 0.38 * (x2 - x1), y2), (x2, y1)], fill=ink, width=width, joint="curve")
    elif verdict == "wrong":
        pen.line([(x1, y1), (x2, y2)], fill=ink, width=width)
        pen.line([(x1, y2), (x2, y1)], fill=ink, width=width)
    else:
        pen.ellipse(box, outline=ink, width=width)


@lru_cache(maxsize=32)
def _load_font(name: str | None, size_px: int) -> Font | None:
    try:
        return ImageFont.load_default(size_px) if name is None else ImageFont.truetype(name, size_px)
    except OSError:
        return None


def font_for(text: str, size_px: int) -> Font:
    names: tuple[str | None, ...] = (None,) if text.isascii() else (*_WIDE_FONTS, None)
    return next(font for font in (_load_font(name, size_px) for name in names) if font is not None)


def _has_anchors(font: Font) -> bool:
    return isinstance(font, ImageFont.FreeTypeFont)


def fitted(text: str, font: Font, width_px: float) -> str:
    """A text to as much of it as fits a width, on one line."""
    text = " ".join(text.split())
    if not text or font.getlength(text) <= width_px:
        return text
    keep = next((n for n in range(len(text) - 1, 0, -1) if font.getlength(text[:n] + "..") <= width_px), 0)
    return text[:keep].rstrip() + ".." if keep else ""


def label_size(text: str, has_sign: bool, font: Font) -> Point:
    """Width and height of a label, with room for a sign where it has one."""
    _, top, _, bottom = font.getbbox("Ag|")
    height = 1.45 * (bottom - top)
    return (float(np.ceil(font.getlength(text) + (1.3 if has_sign else 0.6) * height)), float(np.ceil(height)))


def mean_side(image_size: tuple[int, int]) -> float:
    return (image_size[0] * image_size[1]) ** 0.5
