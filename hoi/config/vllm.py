"""Which frozen vision language model is asked, in a further pass over a finished cache, and what of each image."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from hoi.config.section import Count, FolderName, Section


def _pass_name(name: str) -> str:
    if name == "shard" or name.startswith("shard-"):
        raise ValueError("the base pass's own files begin with 'shard'")
    return name


def _fields_of(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


PassName = Annotated[FolderName, AfterValidator(_pass_name)]
"""Of a further pass: its files begin with it, and its fields are `NAME/field` to students."""


class VllmConfig(Section):
    """A vision language model as a teacher: its fields lie in shards of their own beside the base pass's."""

    backend: Literal["coca", "transformers"]
    """`coca`: open_clip's CoCa, which captions; `transformers`: any image-text-to-text model of that package."""
    model: str
    """Of `coca`: open_clip's name, `hf-hub:owner/name` or `local-dir:folder`. Of `transformers`: a folder, or a name of
    its hub."""
    pretrained: str | None = None
    """Of `coca` alone: a tag, a weight file, or `random` for plumbing; null where `model` names weights itself."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the model computes in. Where it computes says `cache.device`."""
    batch_size: Count = 16
    """Images (or union crops) of one forward pass of the image side, and texts of one of the text side."""

    image_scores: bool = True
    """Whether the candidates of the whole image are scored: the interactions of every object that is in a pair."""
    pair_scores: bool = False
    """Whether the same is asked of the union crop of every pair, for its own object's interactions. The crop is the
    teacher's: its mode and first margin."""
    scoring: Literal["sum", "mean", "yes_no", "free_text"] = "sum"
    """How candidates are scored. `sum`, `mean`: by the log-probability of the phrase's tokens, or its mean over them;
    `yes_no`: p(yes) / (p(yes) + p(no)); `free_text`: 1 for candidates whose words are in the answer, for comparison."""
    phrase: str = "a person {verb_ing} {a_object}"
    """What a candidate says. `{verb_ing}`, `{object}`, `{a_object}` and `{phrase}` are filled in."""
    question: str | None = None
    """Put before every candidate, and asked for `free_text`; a CoCa takes it for the beginning of the caption. null for
    none: captions are then the free text."""
    yes_no_question: str = "Is there {phrase} in this picture? Answer yes or no."
    """For `yes_no`; `{phrase}` is the candidate."""
    caption_question: str = "Describe in a few sentences what each person in this picture is doing."
    """For captions of models that take instructions."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """What log-probabilities are divided by before candidates are compared."""
    group: Literal["object", "all", "none"] = "object"
    """What a candidate is compared with, of `sum` and `mean`: a softmax over those of its object or over all of the
    image's, or nothing, which leaves the probability itself."""
    prior_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of a candidate's log-probability on a blank image that is taken off: what the text says by itself."""
    no_interaction: Literal["skip", "asked", "product"] = "skip"
    """`skip`: it has no score; `asked`: it is a candidate like others, of `sum` and `mean`; `product`: the product of
    (1 - score) over the object's other candidates."""
    no_interaction_phrase: str = "a person and {a_object}"
    """What it says as a candidate. `{object}` and `{a_object}` are filled in."""
    synonyms: dict[str, list[str]] = {}
    """For `free_text`: further words for a verb or an object, by its name."""

    caption: bool = True
    """Whether a caption is generated, and its sentences embedded by the teacher's text side."""
    max_sentences: Count = 4
    max_new_tokens: Count = 64
    """Of a caption or an answer."""

    @model_validator(mode="after")
    def _fits(self) -> VllmConfig:
        if not (self.caption or self.image_scores or self.pair_scores):
            raise ValueError("caption, image_scores and pair_scores are all off, so nothing would be asked")
        unknown = _fields_of(self.phrase) - {"verb_ing", "object", "a_object", "phrase"}
        if unknown:
            raise ValueError(f"phrase asks for {', '.join(sorted(unknown))}")
        if _fields_of(self.no_interaction_phrase) - {"object", "a_object"}:
            raise ValueError("no_interaction_phrase may ask for {object} and {a_object} only")
        if _fields_of(self.yes_no_question) != {"phrase"}:
            raise ValueError("yes_no_question must have a place for {phrase}, and for nothing else")
        if self.no_interaction == "asked" and self.scoring not in ("sum", "mean"):
            raise ValueError("no_interaction is asked by its phrase's log-probability: it needs scoring: sum or mean")
        if self.prior_weight and self.scoring not in ("sum", "mean"):
            raise ValueError("prior_weight is of log-probabilities: it needs scoring: sum or mean")
        if self.backend == "transformers" and self.pretrained not in (None, "random"):
            raise ValueError("pretrained is of the backend coca; give the model's folder as model")
        return self
