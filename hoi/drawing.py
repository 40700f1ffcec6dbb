"""Draw human-object pairs over their image: two boxes, the link between them, and a readable label.

Boxes are `xyxy`; boxes, sizes and places are in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, product
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Verdict = Literal["right", "wrong", "missed"]
Box = tuple[float, float, float, float]
Point = tuple[float, float]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_WIDE_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "Arial.ttf")
"""For letters beyond ASCII, which the font inside Pillow lacks."""

VERDICT_COLOURS: dict[Verdict, str] = {"right": "#009e73", "wrong": "#d55e00", "missed": "#56b4e9"}
PAIR_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Of pairs without a verdict, in turn. Both sets are Okabe and Ito's, which colour-blind people can tell apart."""
_SEAM = "#000000a0"  # drawn under every line, so that it shows on any background
_SMOOTH_UP_TO_PX = 2048  # longest side up to which lines are drawn twice as large and scaled down


@dataclass(frozen=True)
class DrawnPair:
    """One pair to draw."""

    human_xyxy: Box
    object_xyxy: Box  # the human's again for what a person does alone, which is drawn as one box
    text: str  # of the label; empty for none
    verdict: Verdict | None = None  # sets colour, line (dashed where missed) and sign
    colour: str | None = None  # `#rrggbb`, in place of the verdict's or the next of `PAIR_COLOURS`
    at_link: bool = False  # whether the label is placed at the middle of the link, as a short number is

    def __post_init__(self) -> None:
        if not np.isfinite([*self.human_xyxy, *self.object_xyxy]).all():
            raise ValueError(f"DrawnPair {self.text!r}: a box holds NaN or infinity")


def draw_pairs(image: Image.Image | np.ndarray, pairs: Sequence[DrawnPair]) -> Image.Image:
    """Draw pairs over an image, PIL or uint8 [H, W, 3], and return a new RGB picture of the same size.

    The first pairs lie on top, and their labels take the best places. No label covers another; one that finds no room
    is left out, its boxes are not.
    """
    picture = (Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB")
    if not pairs:
        return picture
    line = max(2.0, _mean_side(picture.size) / 165)
    font, labels, places = _layout(picture.size, pairs)
    colours = [
        pair.colour or (VERDICT_COLOURS[pair.verdict] if pair.verdict else PAIR_COLOURS[number % len(PAIR_COLOURS)])
        for number, pair in enumerate(pairs)
    ]

    scale = 2 if max(picture.size) <= _SMOOTH_UP_TO_PX else 1
    overlay = Image.new("RGBA", (picture.width * scale, picture.height * scale))
    pen = ImageDraw.Draw(overlay)
    for pair, colour, place in reversed(list(zip(pairs, colours, places, strict=True))):
        _draw_lines(pen, pair, colour, place, line, scale)
    overlay = overlay.resize(picture.size, Image.Resampling.BOX)
    picture.paste(overlay, mask=overlay.getchannel("A"))

    pen = ImageDraw.Draw(picture)
    for pair, text, colour, place in zip(pairs, labels, colours, places, strict=True):
        if place is not None and text:
            _draw_label(pen, text, pair.verdict, colour, place, font)
    return picture


def covered_share(image_size: tuple[int, int], pairs: Sequence[DrawnPair]) -> float | None:
    """Return the share of a picture that its pairs' labels would cover; None where one finds no room or is cut."""
    _, labels, places = _layout(image_size, pairs)
    whole = [" ".join(pair.text.split()) for pair in pairs]
    if labels != whole or any(text and place is None for text, place in zip(labels, places, strict=True)):
        return None
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in filter(None, places)]
    return sum(areas) / (image_size[0] * image_size[1])


def _layout(image_size: tuple[int, int], pairs: Sequence[DrawnPair]) -> tuple[Font, list[str], list[Box | None]]:
    # The font, each label's text as far as it fits, and its place.
    font = _font("".join(pair.text for pair in pairs).isascii(), max(11, round(_mean_side(image_size) / 22)))
    room = {has_sign: image_size[0] - _label_size("", has_sign, font)[0] for has_sign in (True, False)}
    has_signs = [pair.verdict is not None for pair in pairs]
    labels = [_fitted(pair.text, font, room[sign]) for pair, sign in zip(pairs, has_signs, strict=True)]
    sizes = [_label_size(t, sign, font) if t else (0.0, 0.0) for t, sign in zip(labels, has_signs, strict=True)]
    return font, labels, place_labels(sizes, list(map(_wishes, pairs, sizes)), image_size)


def fit_longest_side(
    image: Image.Image | np.ndarray, pairs: Sequence[DrawnPair], side_px: int
) -> tuple[Image.Image, list[DrawnPair]]:
    """Resize an image and its pairs to a longest side of `side_px`, so that lines and letters come out alike."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    factor = side_px / max(picture.size)
    width, height = (max(1, round(side * factor)) for side in picture.size)

    def scaled(box: Box) -> Box:
        x1, y1, x2, y2 = (edge * factor for edge in box)
        return (x1, y1, x2, y2)

    resized = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    return resized, [replace(p, human_xyxy=scaled(p.human_xyxy), object_xyxy=scaled(p.object_xyxy)) for p in pairs]


def place_labels(
    sizes: Sequence[Point], wishes: Sequence[Sequence[Point]], image_size: tuple[int, int]
) -> list[Box | None]:
    """Place labels of these widths and heights inside the image without overlap.

    Each gets the first free one of its wishes (top left corners, best first, moved into the image), else the free place
    nearest to its first wish, else None.
    """
    placed: list[Box | None] = []
    for (width, height), corners in zip(sizes, wishes, strict=True):
        room = (image_size[0] - width, image_size[1] - height)
        boxes = ((x, y, x + width, y + height) for x, y in _candidates(corners, room, max(height, 1.0)))
        free = (box for box in boxes if not any(_overlap(box, other) for other in filter(None, placed)))
        placed.append(next(free, None) if min(room) >= 0 and width > 0 else None)
    return placed


def _candidates(wishes: Sequence[Point], room: Point, step: float) -> Iterator[Point]:
    moved = [(min(max(x, 0.0), room[0]), min(max(y, 0.0), room[1])) for x, y in wishes]
    yield from moved
    columns, rows = (np.append(np.arange(0, side, step), side).tolist() for side in room)
    first_x, first_y = moved[0]
    yield from sorted(product(columns, rows), key=lambda at: (at[0] - first_x) ** 2 + (at[1] - first_y) ** 2)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _wishes(pair: DrawnPair, size: Point) -> list[Point]:
    # Above or below both boxes, the object, the human; then at the link's middle.
    width, height = size
    human, obj = pair.human_xyxy, pair.object_xyxy
    both = (min(human[0], obj[0]), min(human[1], obj[1]), max(human[2], obj[2]), max(human[3], obj[3]))
    corners: list[Point] = []
    for x1, y1, x2, y2 in (both, obj, human):
        corners += [(x1, y1 - height), (x1, y2), (x2 - width, y1 - height), (x2 - width, y2)]
    x, y = _middle(pair)
    middle = (x - width / 2, y - height / 2)
    return [middle, *corners] if pair.at_link else [*corners, middle]


def _centre(box: Box) -> Point:
    return ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)


def _middle(pair: DrawnPair) -> Point:
    return _centre((*_centre(pair.human_xyxy), *_centre(pair.object_xyxy)))


def _draw_lines(
    pen: ImageDraw.ImageDraw, pair: DrawnPair, colour: str, label: Box | None, line: float, scale: int
) -> None:
    # Boxes, link and, for a label that lies apart, a thread to it.
    alone = pair.human_xyxy == pair.object_xyxy
    boxes = [pair.human_xyxy] if alone else [pair.human_xyxy, pair.object_xyxy]
    paths = [[(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)] for x1, y1, x2, y2 in boxes]
    if not alone:
        paths.append([_centre(pair.human_xyxy), _centre(pair.object_xyxy)])
    thread: list[Point] = []
    if label is not None:
        x1, y1, x2, y2 = label
        if not any(_overlap((x1 - line, y1 - line, x2 + line, y2 + line), box) for box in boxes):
            thread = [_centre(label), _middle(pair)]
    dash = 4 * line if pair.verdict == "missed" else None
    for stroke, width in ((_SEAM, line + 2), (colour, line)):
        for path in paths:
            _stroke(pen, path, stroke, width, scale, dash)
        _stroke(pen, thread, stroke, width / 2, scale, None)
        for box in [] if alone else boxes:
            x, y = _centre(box)
            radius = line * 1.6 + (width - line) / 2
            pen.ellipse([scale * edge for edge in (x - radius, y - radius, x + radius, y + radius)], fill=stroke)


def _stroke(
    pen: ImageDraw.ImageDraw, path: Sequence[Point], colour: str, width: float, scale: int, dash: float | None
) -> None:
    for (x1, y1), (x2, y2) in pairwise(path):
        length = float(np.hypot(x2 - x1, y2 - y1))
        pieces = np.array([[0.0, 1.0]])
        if dash is not None and length > dash:
            starts = np.arange(0, length, 2 * dash) / length
            pieces = np.stack([starts, np.minimum(starts + dash / length, 1)], 1)
        for begin, end in pieces.tolist():
            ends = [x1 + (x2 - x1) * begin, y1 + (y2 - y1) * begin, x1 + (x2 - x1) * end, y1 + (y2 - y1) * end]
            pen.line([scale * at for at in ends], fill=colour, width=max(1, round(width * scale)), joint="curve")


def ink_on(colour: str) -> str:
    """Return black or white, whichever is more readable on `#rrggbb` (by WCAG 2's relative luminance)."""
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return "#000000" if linear @ [0.2126, 0.7152, 0.0722] > 0.18 else "#ffffff"


def add_legend(picture: Image.Image, lines: Sequence[tuple[str, str, str]]) -> Image.Image:
    """Add a strip below an RGB picture with a line for each colour, the number on it, and its text."""
    if not lines:
        return picture
    size_px = min(max(13, round(_mean_side(picture.size) / 34)), max(13, picture.width // 12))
    font = _font("".join(number + text for _, number, text in lines).isascii(), size_px)
    badge = max(_label_size(number, False, font)[0] for _, number, _ in lines)
    height = _label_size("1", False, font)[1]
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
        _draw_label(pen, number, None, colour, (x, y, x + badge, y + height), font)
        for row, part in enumerate(parts):
            _write(pen, (x + badge + gap, y + height * (row + 0.5)), part, "#000000", font)
    return taller


def _wrapped(text: str, font: Font, width_px: float) -> list[str]:
    # Broken between words; a word that does not fit alone is cut.
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(_fitted(word, font, width_px))
        else:
            lines[-1] = _fitted(longer, font, width_px)
    return lines


def _draw_label(
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
    _write(pen, (left, (y1 + y2) / 2), text, ink, font)


def _draw_sign(pen: ImageDraw.ImageDraw, verdict: Verdict, box: Box, ink: str) -> None:
    # A tick, a cross or a ring, so that colour is not the only difference.
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
def _font(is_ascii: bool, size_px: int) -> Font:
    for name in () if is_ascii else _WIDE_FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, size_px)
    return ImageFont.load_default(size_px)


def _write(pen: ImageDraw.ImageDraw, left_middle: Point, text: str, ink: str, font: Font) -> None:
    # Fonts of pixels have no anchors.
    anchor = "lm" if isinstance(font, ImageFont.FreeTypeFont) else None
    pen.text(left_middle, text, fill=ink, font=font, anchor=anchor)


def _fitted(text: str, font: Font, width_px: float) -> str:
    text = " ".join(text.split())
    if not text or font.getlength(text) <= width_px:
        return text
    keep = next((n for n in range(len(text) - 1, 0, -1) if font.getlength(text[:n] + "..") <= width_px), 0)
    return text[:keep].rstrip() + ".." if keep else ""


def _label_size(text: str, has_sign: bool, font: Font) -> Point:
    _, top, _, bottom = font.getbbox("Ag|")
    height = 1.45 * (bottom - top)
    return (float(np.ceil(font.getlength(text) + (1.3 if has_sign else 0.6) * height)), float(np.ceil(height)))


def _mean_side(image_size: tuple[int, int]) -> float:
    return (image_size[0] * image_size[1]) ** 0.5
