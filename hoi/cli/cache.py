"""Plan, inspect and mend a teacher cache: `hoi cache VERB`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hoi.cli.program import Config, Overrides, app, group, option, path_option, pipeline, verb

verbs = group("Plan, inspect and mend a teacher cache.")
app.add_typer(verbs, name="cache")
To = Annotated[Path, path_option("folder of the new cache", "FOLDER")]
WRONG = 1
"""Exit code where something is wrong with a cache; a mistake on the command line or in a file is 2."""


@verb("plan", "hoi cache plan --sample 8 --config mine.yaml", of=verbs)
def plan(
    config: Config = None,
    overrides: Overrides = None,
    sample: Annotated[int | None, option("run N images through the models to measure", "N", least=1)] = None,
) -> int:
    """Say what a build would take: shards, bytes, minutes."""
    from hoi.cache.tools.estimate import plan as plan_build

    with pipeline(config, overrides) as settings:
        estimate = plan_build(settings, sample)
    print(estimate)
    return 0 if estimate.fits else WRONG


@verb("info", "hoi cache info --config mine.yaml", of=verbs)
def info(config: Config = None, overrides: Overrides = None) -> None:
    """Say what the cache is: fingerprint, counts, unreadable images, versions."""
    from hoi.cache.tools.describe import info as describe

    with pipeline(config, overrides) as settings:
        print(describe(settings))


@verb("verify", "hoi cache verify --recompute 8", of=verbs)
def verify(
    config: Config = None,
    overrides: Overrides = None,
    recompute: Annotated[int | None, option("run N images per split through the models again", "N", least=1)] = None,
    seed: Annotated[int, option("of their choice")] = 0,
) -> int:
    """Check sizes, hashes and tables of every file."""
    from hoi.cache.tools.verify import verify as verify_cache

    with pipeline(config, overrides) as settings:
        report = verify_cache(settings, recompute, seed)
        print(report)
    return 0 if report.is_good else WRONG


@verb("repair", "hoi cache repair --config mine.yaml", of=verbs)
def repair(config: Config = None, overrides: Overrides = None) -> None:
    """Make missing, bad and failed parts again, and nothing else."""
    from hoi.cache.tools.repair import repair as repair_cache

    with pipeline(config, overrides) as settings:
        print(repair_cache(settings))


@verb("rescore", "hoi cache rescore --to cache/other 'teacher.prompts=[a {noun}]'", of=verbs)
def rescore(to: To, config: Config = None, overrides: Overrides = None) -> None:
    """Make a cache with other prompts or another vocabulary from the cached embeddings; no image is read."""
    from hoi.cache.tools.rescore import rescore as rescore_cache

    with pipeline(config, overrides) as settings:
        print(rescore_cache(settings, to))


@verb("export", "hoi cache export 000017 --top 3 --config mine.yaml", of=verbs)
def export(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="its id")],
    config: Config = None,
    overrides: Overrides = None,
    top: Annotated[int, option("interactions listed", "K", least=1)] = 5,
    split: Annotated[str | None, option("where to look (default: in all splits)", "NAME")] = None,
    json: Annotated[Path | None, path_option("write there instead of printing")] = None,
) -> None:
    """Print one image's records as JSON."""
    from hoi.cache.tools.describe import export as export_image
    from hoi.files import write_atomically

    with pipeline(config, overrides) as settings:
        text = str(export_image(settings, image, top, split))
    if json is None:
        print(text)
    else:
        write_atomically(json, f"{text}\n".encode())


@verb("pull", "hoi cache pull s3://bucket/cache --to cache/mine --config mine.yaml", of=verbs)
def pull(
    url: Annotated[str, typer.Argument(metavar="URL", help="any location that fsspec knows")],
    to: To,
    config: Config = None,
    overrides: Overrides = None,
    split: Annotated[list[str] | None, option("(default: the config's splits)", "NAME")] = None,
    passes: Annotated[
        list[str] | None, option("an extra pass (default: the config's vlms)", "NAME", name="--pass")
    ] = None,
) -> None:
    """Copy a finished cache from any location, verified."""
    from hoi.cache.tools.pull import pull as pull_cache

    with pipeline(config, overrides) as settings:
        print(pull_cache(settings, url, to, split, passes))
