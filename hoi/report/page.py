"""Everything that the page says to one HTML text: the template, its style and its script lie beside this file.

The page may load nothing: its content security policy allows its own style, the one script by its hash, and embedded
pictures. All text is escaped by the template; plots come as escaped markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hoi.evaluation.table import COLUMNS
from hoi.report.gallery import Exhibit
from hoi.report.tables import ClassLine, ResultLine

PACKAGE = "hoi.report"


@dataclass(frozen=True)
class VariantLine:
    """The shown student with another set of branches in its score.

    Args:
        name: What differs.
        full: Mean over seeds, percent.
        difference: To the student as it is, and its 95 % interval, percent; None for the student itself.
    """

    name: str
    full: float
    difference: tuple[float, float, float] | None


@dataclass(frozen=True)
class AblationLine:
    """One row of a sweep; `num_seeds`, `cells` and `difference` as in `ResultLine`.

    Args:
        name: Of the row.
        changes: What it changes.
    """

    name: str
    changes: str
    num_seeds: int | None
    cells: dict[str, tuple[float, float] | None]
    difference: tuple[float, float, float] | None


@dataclass(frozen=True)
class AblationTable:
    """A sweep.

    Args:
        name: Of the sweep.
        against: The row that differences are to.
        notes: What must be known to read it, such as failed runs.
        lines: Baselines, then students.
    """

    name: str
    against: str
    notes: list[str]
    lines: list[AblationLine]


@dataclass(frozen=True)
class Graded:
    """What only labels can tell.

    Args:
        results: The result table.
        against: The row that its differences are to.
        spread: Plot of all methods.
        comparisons: Of summary.json.
        variants: What each branch adds.
        recall: Plots of precision over recall, with their captions.
        calibration: Plot.
        calibration_errors: By method.
        ahead, behind: Plots of the classes in which the student leads and trails most.
        classes, verbs: AP by interaction and by verb.
        audit: audit.json.
    """

    results: list[ResultLine]
    against: str
    spread: Markup
    comparisons: list[dict[str, Any]]
    variants: list[VariantLine]
    recall: list[tuple[str, Markup]]
    calibration: Markup
    calibration_errors: dict[str, float]
    ahead: Markup
    behind: Markup
    classes: list[ClassLine]
    verbs: list[ClassLine]
    audit: dict[str, Any]


@dataclass(frozen=True)
class Page:
    """All that the page shows.

    Args:
        title: Name of the pipeline.
        facts: What was evaluated, name and value.
        student, teacher: Names of the two methods that stand side by side, and `seed` of the student.
        methods: Columns of the tables by class.
        graded: None without annotations.
        ablations: Sweeps.
        agreement: Of summary.json.
        exhibits: Heading, explanation and images of each part of the gallery.
        no_pictures: Why there are none; empty where there are.
        settings: The resolved pipeline file, as YAML.
        versions: Of the libraries.
        commands: That make the results again.
    """

    title: str
    facts: list[tuple[str, str]]
    student: str
    teacher: str
    seed: int
    methods: list[str]
    graded: Graded | None
    ablations: list[AblationTable]
    agreement: Mapping[str, Mapping[str, float]]
    exhibits: list[tuple[str, str, list[Exhibit]]]
    no_pictures: str
    settings: str
    versions: Mapping[str, str]
    commands: str
    notes: Sequence[str] = field(default_factory=list)


def render(page: Page) -> str:
    """The page as HTML, one file that needs no other."""
    environment = Environment(
        loader=PackageLoader(PACKAGE, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(signed=_signed, percent=_percent, minus=_minus)
    style, script = (files(PACKAGE).joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    # The hash is of the very characters between the tags.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("template.html").render(
        page=page, columns=COLUMNS, style=Markup(style), script=Markup(script), script_hash=digest
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else _minus(text)


def _minus(text: str) -> str:
    """A text with real minus signs, as wide as the plus."""
    return text.replace("-", "−")
