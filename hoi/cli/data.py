"""Data of one's own, published data sets, and the embedded world."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from hoi.cli.program import Config, Overrides, app, group, option, path_option, pipeline, verb
from hoi.errors import UserError, command


@verb("new", "hoi new mine --images photos/ --phrases phrases.txt")
def new(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="of the pipeline file", show_default=False)
    ] = None,
    images: Annotated[str, option("searched below, too", "FOLDER")] = "",
    phrases: Annotated[str, option("one a line, 'riding a bicycle'; or YAML", "FILE")] = "",
    named: Annotated[str | None, option("the same as the first word", "NAME", name="--name")] = None,
    detector: Annotated[
        str, option("torchvision's name, COCO results FILE.json, or hf-hub:… of OWLv2 or Grounding DINO")
    ] = "fasterrcnn_resnet50_fpn_v2",
    instances: Annotated[str | None, option("COCO instances JSON that belongs to results", "FILE")] = None,
    clip: Annotated[
        str, option("open_clip's MODEL/TAG, local-dir:FOLDER or hf-hub:owner/name")
    ] = "ViT-B-16-quickgelu/openai",
    out: Annotated[Path, path_option("where the pipeline file goes", "FOLDER")] = Path(),
) -> int:
    """Write a checked pipeline file for a folder of images and a list of phrases."""
    name = name or named
    if not (name and images and phrases):
        missing = [what for what, value in (("name", name), ("images", images), ("phrases", phrases)) if not value]
        fix = command("new", config=None, name=name or "NAME", images=images or "FOLDER", phrases=phrases or "FILE")
        raise UserError(f"a new project needs {' and '.join(missing)}", fix=fix)
    from hoi.project.new import Project, write_project

    report = write_project(Project(name, images, phrases, detector, instances, clip), out)
    print(report)
    return 1 if report.num_errors else 0


@verb("doctor", "hoi doctor --config mine.yaml --all")
def doctor(
    config: Config = None,
    overrides: Overrides = None,
    every: Annotated[bool, option("open every image; load weights even if that downloads them", name="--all")] = False,
    json: Annotated[Path | None, path_option("write the findings there, too")] = None,
) -> int:
    """Say what is missing or wrong in what a pipeline file names, and the line that mends it."""
    from hoi.files import write_json
    from hoi.project.doctor import examine

    with pipeline(config, overrides) as settings:
        report = examine(settings, every)
    if json is not None:
        write_json(json, report.to_dict())
    print(report)
    return 1 if report.num_errors else 0


NoGates = Annotated[bool, option("go on even if a sanity gate finds a figure at chance", name="--no-gates")]


@verb("hicodet", "DATA=/data/hico hoi hicodet cache.folder=/scratch/hicodet")
def hicodet(config: Config = None, overrides: Overrides = None, no_gates: NoGates = False) -> None:
    """Go from HICO-DET's files on disk to results: doctor, plan, cache, gates, train, eval, audit, report.

    Run it again to go on after an interruption.
    """
    _published(config, overrides, "hicodet", no_gates)


@verb("vcoco", "DATA=/data/vcoco hoi vcoco cache.folder=/scratch/vcoco")
def vcoco(config: Config = None, overrides: Overrides = None, no_gates: NoGates = False) -> None:
    """Go from V-COCO's files on disk to results, in the steps of `hoi hicodet`."""
    _published(config, overrides, "vcoco", no_gates)


def _published(config: str | None, overrides: list[str] | None, name: str, no_gates: bool) -> None:
    from hoi.project.published import run_published

    start = time.monotonic()
    with pipeline(config, overrides, name) as settings:
        run_published(settings, heeds_gates=not no_gates)
    print(f"\ndone in {time.monotonic() - start:.0f} s")


world = group("The embedded world: its figures, its pictures, and the training of its models.")
app.add_typer(world, name="world")
Out = Annotated[Path | None, path_option("of the weights", "FOLDER")]
Seed = Annotated[int, option("of the drawn scenes")]
Part = Literal["clip", "detector", "captioner", "all"]


@verb("train", "hoi world train --part detector --out weights/", "hoi world train --check", of=world)
def train_world(
    part: Annotated[Part, option("what to train")] = "all",
    seed: Seed = 0,
    out: Out = None,
    check: Annotated[bool, option("train nothing; measure the weights in --out", name="--check")] = False,
    split: Annotated[Literal["validation", "test"], option("scenes of the check")] = "test",
) -> int:
    """Train the world's CLIP, detector and captioner again (CPU, about half an hour each), or measure them."""
    from hoi.world.models import WEIGHTS, check_world, train_world

    folder = WEIGHTS if out is None else out
    if not check:
        train_world(part, seed, folder)
        return 0
    table, passed = check_world(folder, split)
    print(table)
    return int(not passed)


@verb("statistics", "hoi world statistics --seed 1", of=world)
def statistics(seed: Seed = 0) -> None:
    """Print the world's statistics beside HICO-DET's."""
    from hoi.world.models.measure import statistics_table

    print(statistics_table(seed))


@verb("sheet", "hoi world sheet scenes.png --num 12", of=world)
def sheet(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a PNG")],
    seed: Seed = 0,
    split: Annotated[Literal["train", "validation", "test"], option("whose scenes")] = "test",
    num: Annotated[int, option("how many")] = 24,
) -> None:
    """Draw a sheet of scenes."""
    from PIL import Image

    from hoi.world.models.measure import contact_sheet

    Image.fromarray(contact_sheet(seed, split, num)).save(file)
