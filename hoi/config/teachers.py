"""Which frozen model is asked, what, and of which crops."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from hoi.config.section import Count, Section


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
    """Factors on the union box; the first is the one that students learn from, the others are for comparison."""
    merge_px: Annotated[float, Field(ge=0.0, le=8.0)] = 0.0
    """Crops of an image share one forward pass where none of their edges differs by more than this many pixels of the
    teacher's input; 0 for equal ones only. At 0.5 a hundredth of the passes is saved, and embeddings move by up to 0.03
    in cosine."""

    @model_validator(mode="before")
    @classmethod
    def _tuple(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("margins"), list):
            data = {**data, "margins": tuple(data["margins"])}
        return data

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Caches that were begun before this key was there go on.
        return {key: value for key, value in serialize(self).items() if key != "merge_px" or value > 0}


class TeacherConfig(Section):
    """A frozen open_clip model: what it is, what it is asked, and how images reach it."""

    model: str
    """open_clip's name (`ViT-B-16-quickgelu`), `hf-hub:owner/name`, or `local-dir:folder`."""
    pretrained: str | None = None
    """A tag of open_clip's, a weight file, or `random` for plumbing; null where `model` names weights itself."""
    prompts: list[str] = ["a photo of a person {verb_ing} {a_object}."]
    """Templates whose embeddings are averaged. `{verb_ing}`, `{object}`, `{a_object}` and `{phrase}` are filled in."""
    no_interaction_prompts: list[str] = ["a photo of a person and {a_object}."]
    crop: CropConfig = CropConfig()
    image_size_px: Count | None = None
    """Side of the padded square whole image; null for the model's own. Positions are interpolated."""
    regions: Annotated[list[Literal["map", "crop"]], Field(min_length=1), AfterValidator(_in_order)] = ["crop"]
    """Levels of the region features of humans, objects and unions. `crop`: each box's own crop through the teacher,
    which suits any model; `map`: RoIAlign on the spatial map of the whole image, one forward pass for all boxes."""
    spatial_map: bool = False
    """Whether the teacher's last spatial map is cached as well."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """What the image tower computes in. A lower one is refused where it moves embeddings. `auto` takes the fastest that
    does not, if it is clearly faster than fp32 here; a cache that was begun goes on with what was found then."""
    batch_size: Count = 128
    """Crops of one forward pass; the last of a shard is padded to it."""
