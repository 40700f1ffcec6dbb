"""The sections `teacher` and `vlms`: which frozen model is asked what, of which crops."""

from __future__ import annotations

from pathlib import Path
from string import Formatter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from hoi.config.section import Count, FolderName, Section
from hoi.errors import nearest
from hoi.registry import VLM_BACKENDS, load_target


def _in_order(regions: list[str]) -> list[str]:
    if len(set(regions)) < len(regions):
        raise ValueError("a region is there twice")
    # Levels of the map come first in every cache, so that equal content has one fingerprint.
    return [region for region in ("map", "crop") if region in regions]


class CropConfig(Section):
    """How the union of a pair becomes a square input of the teacher."""

    mode: Literal["square", "pad", "squash", "model"] = "square"
    """`square`: widened to a square with image context, padded where the image ends; `pad`: the box alone, padded to
    a square; `squash`: the box stretched; `model`: the model's own resize and centre crop."""
    margins: tuple[Annotated[float, Field(ge=1.0, le=4.0)], ...] = (1.15,)
    """Factors on the sides of the union box; students learn from the first, the others are for comparison."""
    merge_px: Annotated[float, Field(ge=0.0, le=8.0)] = 0.0
    """Crops of an image share one forward pass if their edges differ by at most this many pixels of the teacher's
    input; 0 for equal crops only. At 0.5 this saves a hundredth of the passes and moves embeddings by up to 0.03 in
    cosine."""

    @model_validator(mode="before")
    @classmethod
    def _tuple(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("margins"), list):
            data = {**data, "margins": tuple(data["margins"])}
        return data

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Caches from before this key stay valid.
        return {key: value for key, value in serialize(self).items() if key != "merge_px" or value > 0}


def _template(text: str) -> str:
    list(Formatter().parse(text))
    return text


Template = Annotated[str, Field(min_length=1), AfterValidator(_template)]
"""A prompt with fields in braces; which ones a key may use, `hoi.prompts` knows."""


class TeacherConfig(Section):
    """A frozen open_clip model: what it is, what it is asked, and how images reach it.

    A teacher of another kind derives from this class and is named in `hoi.registry.TEACHERS`.
    """

    IMPLEMENTATION: ClassVar[str] = "hoi.teachers.open_clip_teacher:OpenClipTeacher"
    """`module:attribute` of a `hoi.teachers.Teacher`, called with these settings and a device."""
    TEXT_SIDE: ClassVar[str] = "hoi.teachers.loading:TextSide"
    """`module:attribute` of its text encoder alone, which embeds the captions of extra passes."""
    SIZES: ClassVar[str] = "hoi.cache.tools.estimate:open_clip_sizes"
    """`module:attribute` of a function that returns the axes of what is cached without loading weights."""

    kind: str = "open_clip"
    model: str
    """open_clip's name (`ViT-B-16-quickgelu`), `hf-hub:owner/name`, or `local-dir:folder`."""
    pretrained: str | None = None
    """A tag of open_clip's, a weight file, or `random` for plumbing; null where `model` names weights itself.

    A file is a state dict (`.safetensors`, `.pt`, `.pth`) as any program writes it, or OpenAI's TorchScript archive.
    """
    prompts: list[Template] = ["a photo of a person {verb_ing} {a_object}."]
    """Templates whose embeddings are averaged. `{verb_ing}`, `{object}`, `{a_object}` and `{phrase}` are filled in."""
    no_interaction_prompts: list[Template] = ["a photo of a person and {a_object}."]
    crop: CropConfig = CropConfig()
    image_size_px: Count | None = None
    """Side of the padded square whole image; null for the model's own. Positions are interpolated."""
    regions: Annotated[list[Literal["map", "crop"]], Field(min_length=1), AfterValidator(_in_order)] = ["crop"]
    """Levels of the region features of humans, objects and unions. `crop`: each box's own crop through the teacher,
    which suits any model; `map`: RoIAlign on the spatial map of the whole image, one forward pass for all boxes."""
    spatial_map: bool = False
    """Whether the teacher's last spatial map is cached as well."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Precision of the image tower. A lower one is refused if it changes embeddings. `auto` takes the fastest that does
    not, if it is clearly faster than fp32 on this machine; an unfinished cache keeps what was found first."""
    batch_size: Count = 128
    """Crops per forward pass; the last batch of a shard is padded."""

    def may_download(self) -> bool:
        """Return whether loading the model might download its weights."""
        return load_target("hoi.teachers.loading:may_download")(self)

    def activation_notice(self) -> str | None:
        """Return what to look at where a weight file may have been trained with another activation."""
        is_file = self.pretrained is not None and Path(self.pretrained).is_file()
        return load_target("hoi.teachers.loading:activation_notice")(self) if is_file else None

    @model_serializer(mode="wrap")
    def _without_the_usual_kind(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Settings recorded before there were other kinds stay the same.
        return {key: value for key, value in serialize(self).items() if key != "kind" or value != "open_clip"}


def _pass_name(name: str) -> str:
    if name == "shard" or name.startswith("shard-"):
        raise ValueError("the base pass's own files begin with 'shard'")
    return name


def _fields_of(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def _backend(name: str) -> str:
    if name not in VLM_BACKENDS:
        raise ValueError(f"there is no vlm backend of this name; {nearest(name, VLM_BACKENDS)}")
    return name


PassName = Annotated[FolderName, AfterValidator(_pass_name)]
"""Of an extra pass: its files begin with it, and its fields are `NAME/field` to students."""


class VlmConfig(Section):
    """A vision language model as a teacher; its fields are in shards of their own beside the base pass's."""

    backend: Annotated[str, AfterValidator(_backend)]
    """`coca`: open_clip's CoCa, which captions; `transformers`: any image-text-to-text model of that package. Others
    are named in `hoi.registry.VLM_BACKENDS`."""
    model: str
    """Of `coca`: open_clip's name, `hf-hub:owner/name` or `local-dir:folder`. Of `transformers`: a folder, or a name of
    its hub."""
    pretrained: str | None = None
    """Of `coca` alone: a tag, a weight file, or `random` for plumbing; null where `model` names weights itself."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the model; its device is `cache.device`."""
    batch_size: Count = 16
    """Images (or union crops) per forward pass of the image side, and texts per pass of the text side."""

    image_scores: bool = True
    """Whether to score the whole image's candidates: the interactions of every object in a pair."""
    pair_scores: bool = False
    """Whether to score each pair's union crop as well, for its own object's interactions. The crop has the teacher's
    mode and first margin."""
    scoring: Literal["sum", "mean", "yes_no", "free_text"] = "sum"
    """How candidates are scored. `sum`, `mean`: by the log-probability of the phrase's tokens, or its mean over them;
    `yes_no`: p(yes) / (p(yes) + p(no)); `free_text`: 1 for candidates whose words are in the answer, for comparison."""
    phrase: str = "a person {verb_ing} {a_object}"
    """The text of a candidate. `{verb_ing}`, `{object}`, `{a_object}` and `{phrase}` are filled in."""
    question: str | None = None
    """Asked before every candidate, and for `free_text`; a CoCa takes it as the beginning of the caption. null for
    none: captions are then the free text."""
    yes_no_question: str = "Is there {phrase} in this picture? Answer yes or no."
    """For `yes_no`; `{phrase}` is the candidate."""
    caption_question: str = "Describe in a few sentences what each person in this picture is doing."
    """For captions of models that take instructions."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Log-probabilities are divided by this before candidates are compared."""
    group: Literal["object", "all", "none"] = "object"
    """With `sum` and `mean`, the candidates of a softmax: those of the same object, all of the image, or none, which
    leaves the probability itself."""
    prior_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of a candidate's log-probability on a blank image to subtract: how likely the text is by itself."""
    no_interaction: Literal["skip", "asked", "product"] = "skip"
    """`skip`: it has no score; `asked`: it is a candidate like others (`sum` and `mean`); `product`: the product of
    (1 - score) over the object's other candidates."""
    no_interaction_phrase: str = "a person and {a_object}"
    """Its text as a candidate. `{object}` and `{a_object}` are filled in."""
    synonyms: dict[str, list[str]] = {}
    """For `free_text`: more words for a verb or an object, by its name."""

    caption: bool = True
    """Whether to generate a caption and embed its sentences with the teacher's text side."""
    max_sentences: Count = 4
    max_new_tokens: Count = 64
    """Of a caption or an answer."""

    @model_validator(mode="after")
    def _fits(self) -> VlmConfig:
        if not (self.caption or self.image_scores or self.pair_scores):
            raise ValueError("caption, image_scores and pair_scores are all off, so nothing would be asked")
        unknown = _fields_of(self.phrase) - {"verb_ing", "object", "a_object", "phrase"}
        if unknown:
            raise ValueError(f"phrase asks for {', '.join(sorted(unknown))}")
        if _fields_of(self.no_interaction_phrase) - {"object", "a_object"}:
            raise ValueError("no_interaction_phrase may ask for {object} and {a_object} only")
        if _fields_of(self.yes_no_question) != {"phrase"}:
            raise ValueError("yes_no_question must have a place for {phrase}, and for nothing else")
        if self.scoring not in ("sum", "mean") and (self.no_interaction == "asked" or self.prior_weight):
            raise ValueError("no_interaction: asked and prior_weight need log-probabilities, so scoring: sum or mean")
        return self
