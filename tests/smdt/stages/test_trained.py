import pytest

from data_shards.errors import InputError
from smdt import config as configuration
from smdt.stages.trained import evaluate_stage, evaluate_trained
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
    assert evaluate_trained(folder, str(world), "val", 0) == expected


def test_published_scores_of_images_are_asked_of_a_stage_that_makes_images(saved, world):
    with pytest.raises(InputError, match="is of stage 'retrieval'"):
        evaluate_trained(saved[0], str(world), "val", 0, panogan_compat=True)
