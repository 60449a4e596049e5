import shutil

import pytest

from data_shards.base.errors import DataInputError, InputError
from data_shards.build.finalize import sha256
from smdt.stages import config as configuration
from smdt.stages.evaluation import evaluate_stage
from smdt.stages.retrieval.aligned import FrozenAlignment, find_alignment, pin_alignment_weights
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.stages.trained import evaluate_trained
from tests.checkpoints import UntrainedAlignment, save_untrained

OTHER = "0" * 64


@pytest.fixture
def make_config(tmp_path):
    def make(shards, *overrides: str) -> configuration.RetrievalConfig:
        path = tmp_path / "run.yaml"
        path.write_text(
            f"""
            stage: retrieval
            run: {{name: test, out: {tmp_path / "run"}}}
            data: {{shards: {shards}}}
            aerial: aligned
            geometry: {{panorama_size: [32, 128]}}
            model: {{width: 32, layers: 1}}
            """
        )
        config = configuration.load(path, overrides)
        assert isinstance(config, configuration.RetrievalConfig)
        return config

    return make


@pytest.fixture
def weights_sha256(alignment):
    return sha256(alignment.folder / "weights.safetensors")


def run_of(alignment):
    return alignment.folder.parent.parent


def test_a_run_remembers_which_weights_make_its_images(
    make_config, world, alignment, weights_sha256
):
    config = pin_alignment_weights(make_config(world, f"alignment.checkpoint={run_of(alignment)}"))
    assert config.alignment.checkpoint == str(run_of(alignment))
    assert config.alignment.sha256 == weights_sha256
    assert pin_alignment_weights(config) == config


def test_a_run_remembers_whose_images_its_shards_have(make_config, aligned_world, weights_sha256):
    config = pin_alignment_weights(make_config(aligned_world))
    assert config.alignment.checkpoint is None
    assert config.alignment.sha256 == weights_sha256


def test_a_run_that_sees_no_aligned_images_remembers_nothing(make_config, world):
    config = make_config(world, "aerial=polar")
    assert pin_alignment_weights(config) is config


def test_a_run_goes_on_with_the_weights_that_it_began_with(
    make_config, world, alignment, tmp_path, weights_sha256
):
    run = shutil.copytree(run_of(alignment), tmp_path / "alignment")
    plain = make_config(world, f"alignment.checkpoint={run}")
    resumed = tmp_path / "step-00000007"
    save_untrained(resumed, pin_alignment_weights(plain))
    # The alignment was trained on; the same command still means the same generators.
    newer = UntrainedAlignment.save(world, tmp_path / "other", seed=2).folder
    shutil.copytree(newer, run / "checkpoints" / "step-00000009")
    assert pin_alignment_weights(plain, resumed).alignment.sha256 == weights_sha256
    assert pin_alignment_weights(plain).alignment.sha256 == sha256(newer / "weights.safetensors")
    shutil.rmtree(run / "checkpoints" / "step-00000001")
    with pytest.raises(InputError, match=f"has no weights with SHA-256 {weights_sha256}"):
        pin_alignment_weights(plain, resumed)


def test_an_evaluation_finds_moved_generators_and_refuses_others(
    make_config, world, alignment, tmp_path
):
    run = shutil.copytree(run_of(alignment), tmp_path / "alignment")
    config = pin_alignment_weights(make_config(world, f"alignment.checkpoint={run}"))
    folder = tmp_path / "step-00000003"
    save_untrained(folder, config)
    expected = evaluate_trained(folder, str(world), "val", 0).scores
    moved = run.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"restore that checkpoint, or name it"):
        evaluate_trained(folder, str(world), "val", 0)
    assert evaluate_trained(folder, str(world), "val", 0, alignment=moved).scores == expected
    other = UntrainedAlignment.save(world, tmp_path / "other", seed=2).folder
    with pytest.raises(InputError, match=r"has no weights with SHA-256"):
        evaluate_trained(folder, str(world), "val", 0, alignment=other)


def test_towers_that_see_no_aligned_images_take_no_alignment(
    make_config, world, alignment, tmp_path
):
    folder = tmp_path / "step-00000003"
    save_untrained(folder, make_config(world, "aerial=polar"))
    with pytest.raises(InputError, match=r"--alignment: .* sees no aligned images"):
        evaluate_trained(folder, str(world), "val", 0, alignment=alignment.folder)


def test_images_of_other_generators_are_no_held_out_images(make_config, aligned_world):
    config = make_config(aligned_world, f"alignment.sha256='{OTHER}'")
    with pytest.raises(DataInputError, match=r"make them again with `smdt align`"):
        evaluate_stage(config, RetrievalStage(config), str(aligned_world), "val")
    with pytest.raises(DataInputError, match=r"make them again with `smdt align`"):
        pin_alignment_weights(config)


def test_what_is_no_alignment_is_refused(make_config, world, tmp_path):
    folder = tmp_path / "step-00000003"
    save_untrained(folder, make_config(world, "aerial=polar"))
    with pytest.raises(InputError, match=r"is of stage 'retrieval'"):
        FrozenAlignment(folder)
    with pytest.raises(InputError, match=r"neither a checkpoint nor a run"):
        find_alignment(tmp_path / "nothing", None)
