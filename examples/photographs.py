"""Convert V-COCO pairs of COCO photographs to the annotation lines of a `folder` dataset.

Usage: python3 examples/photographs.py PHOTOS OUT

Reads PHOTOS/vcoco_pairs.json, `{"images": [{"file_name", "pairs": [{"h", "o", "action", "object"}]}]}` with xyxy boxes,
and writes OUT/annotations.jsonl, which stage three alone reads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Convert every pair, without the role in V-COCO's action name (`hold obj`)."""
    if len(sys.argv) != 3:
        sys.exit("usage: python3 examples/photographs.py PHOTOS OUT")
    photos, out = Path(sys.argv[1]), Path(sys.argv[2])
    source = photos / "vcoco_pairs.json"
    if not source.is_file():
        sys.exit(f"error: there is no such file · where: {source} · next: give the folder that holds it as PHOTOS")
    lines = [
        {
            "file_name": image["file_name"],
            "human_xyxy": pair["h"],
            "object_xyxy": pair["o"],
            "verb": pair["action"].split(" ")[0],
            "object": pair["object"].replace(" ", "_"),
        }
        for image in json.loads(source.read_text())["images"]
        for pair in image["pairs"]
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{len(lines)} annotated interactions -> {out / 'annotations.jsonl'}")


if __name__ == "__main__":
    main()
