"""Draw the picture of the README: scenes of the embedded world, and what a student without labels finds in them.

python docs/draw_overview.py outputs/world/checkpoints/best docs/images/overview.jpg
"""

from __future__ import annotations

import sys

from PIL import Image

from hoi.prediction import Predictor
from hoi.prediction.pictures import draw_result
from hoi.world import draw, sample_scene

SCENES = (6, 11, 3, 16)
SIDE_PX, GAP_PX = 300, 8


def main(checkpoint: str, out: str) -> None:
    predictor = Predictor.from_checkpoint(checkpoint)
    pitch = SIDE_PX + GAP_PX
    sheet = Image.new("RGB", (pitch * len(SCENES) - GAP_PX, 2 * pitch - GAP_PX), "white")
    for column, index in enumerate(SCENES):
        image, _ = draw(sample_scene(0, "test", index))
        found = draw_result(image, predictor(image), predictor.vocabulary, max_pairs=4, legend=False)
        for row, picture in enumerate((Image.fromarray(image), found)):
            sheet.paste(picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS), (column * pitch, row * pitch))
    sheet.save(out, quality=85, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
