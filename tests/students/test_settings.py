from typing import Any

import pytest

from hoi.config import parse_student
from hoi.students.multilevel.settings import MultiLevelConfig
from tests.fakes.pipelines import refused


@pytest.mark.parametrize(
    ("plain", "old", "new"),
    [
        ({"image_target": "pairs"}, "image_target", "targets.image"),
        ({"score_spatial_weight": 0.5}, "score_spatial_weight", "score.weights.spatial"),
        ({"gate": "best"}, "gate", "gate.kind"),
        ({"method": "hoiclip", "gate_exponent": 1.0}, "gate_exponent", "gate.exponent"),
        ({"method": "hoiclip", "target_top_share": 0.1}, "target_top_share", "targets.top_share"),
        ({"method": "clhoi", "score_form": "product"}, "score_form", "score.form"),
    ],
)
def test_a_flat_key_is_refused_with_its_new_place(plain: dict[str, Any], old: str, new: str) -> None:
    error = refused(parse_student, plain, "file.yaml", "students.mine")
    assert f"'{old}' is now '{new}'" in error.what
    assert f"students.mine.{old}" in str(error.where)


def test_keys_are_dotted_in_lists_of_settings() -> None:
    settings = MultiLevelConfig(score={"weights": {"global": 0.25}})
    assert settings.by_key()["score.weights.global"] == 0.25
    assert settings.by_key({"gate": {"kind": "best"}, "targets.pool": "linear"}) == {
        "gate.kind": "best",
        "targets.pool": "linear",
    }


def test_settings_of_the_score_alone_decide_no_weights() -> None:
    plain = MultiLevelConfig().training_settings()
    scored = MultiLevelConfig(
        score={"fusion": "sum", "weights": {"union": 2.0, "global": 1.0}}, gate={"kind": "best", "exponent": 1.0}
    )
    assert scored.training_settings() == plain
    for changed in ({"score": {"weights": {"spatial": 1.0}}}, {"score": {"form": "softmax"}}, {"width": 8}):
        assert MultiLevelConfig(**changed).training_settings() != plain
