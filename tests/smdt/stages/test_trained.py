from dataclasses import replace

import pytest

from data_shards.base.errors import InputError
from smdt.evaluation.protocol import PROTOCOLS
from smdt.stages import config as configuration
from smdt.stages.evaluation import evaluate_stage
from smdt.stages.trained import EvaluationOverrides, evaluate_trained
from tests.checkpoints import save_untrained


@pytest.fixture
def config(world, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
        stage: retrieval
        run: {{name: test, out: {tmp_path / "run"}}}
        data: {{shards: {world}}}
        geometry: {{panorama_size: [32, 128]}}
        model: {{width: 32, layers: 2}}
        """
    )
    return configuration.load(path)


@pytest.fixture
def saved(config, tmp_path):
    """A checkpoint of an untrained stage; and the stage."""
    folder = tmp_path / "step-00000001"
    return folder, save_untrained(folder, config)


def test_a_checkpoint_scores_as_the_stage_that_it_holds(config, saved, world):
    folder, stage = saved
    expected = evaluate_stage(config, stage, str(world), "val")
    found = evaluate_trained(folder, str(world), "val", 0)
    assert found == replace(expected, details={"step": 1, **expected.details})


def test_published_scores_of_images_are_asked_of_a_stage_that_makes_images(saved, world):
    with pytest.raises(InputError, match="is of stage 'retrieval'"):
        evaluate_trained(saved[0], str(world), "val", 0, panogan_compat=True)


def test_the_rules_that_are_asked_for_are_those_of_the_scores(saved, world):
    narrow = EvaluationOverrides("cvusa", 90.0, unknown_heading=True)
    evaluation = evaluate_trained(saved[0], str(world), "val", 0, asked=narrow)
    assert evaluation.protocol == "cvusa-fov90-unknown-heading"
    again = evaluate_trained(saved[0], str(world), "val", 0, asked=narrow)
    assert again == evaluation
    whole = evaluate_trained(saved[0], str(world), "val", 0)
    assert whole.protocol == "pairs"
    seen = [row["true_score"] for row in sorted(whole.details["retrievals"], key=query)]
    narrowed = [row["true_score"] for row in sorted(evaluation.details["retrievals"], key=query)]
    assert seen != pytest.approx(narrowed, abs=1e-4)


def query(row) -> int:
    return row["query"]


def test_a_known_heading_leaves_a_whole_panorama_as_it_is(saved, world):
    whole = evaluate_trained(saved[0], str(world), "val", 0)
    known = evaluate_trained(
        saved[0], str(world), "val", 0, asked=EvaluationOverrides(None, 360.0, False)
    )
    assert known == whole


def test_the_split_is_that_of_the_protocol_or_of_the_data_set(world):
    assert EvaluationOverrides().split(str(world)) == "val"
    assert EvaluationOverrides("cvact_test").split(str(world)) == "test"
    assert {name: PROTOCOLS[name].split for name in PROTOCOLS} == {
        "pairs": "val",
        "cvusa": "val",
        "cvact_val": "val",
        "cvact_test": "test",
        "vigor_same": "test",
        "vigor_cross": "test",
    }


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (EvaluationOverrides("cvusb"), "--protocol: .*'cvusa'"),
        (EvaluationOverrides(fov_deg=0.0), "--fov: .*greater than 0"),
        (EvaluationOverrides(fov_deg=400.0), "--fov: .*360"),
    ],
)
def test_rules_that_there_are_not_are_a_sentence(config, asked, sentence):
    with pytest.raises(InputError, match=sentence):
        asked.apply(config)


def test_rules_of_retrieval_are_not_asked_of_another_stage(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
        stage: alignment
        run: {{name: test, out: {tmp_path / "run"}}}
        data: {{shards: none}}
        """
    )
    config = configuration.load(path)
    assert EvaluationOverrides().apply(config) == config
    with pytest.raises(InputError, match="stage 'alignment'"):
        EvaluationOverrides("cvusa").apply(config)
