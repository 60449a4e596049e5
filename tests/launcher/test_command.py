from pathlib import Path

from launcher.command import LocalPlan, local_command, local_environment, train_arguments

PLAN = LocalPlan(
    module="smdt.train",
    arguments=train_arguments(
        Path("run.yaml"), Path("zero2.json"), "auto", ["run.seed=3", "schedule.length=20 steps"]
    ),
    ranks=2,
    port=29511,
    cores=5,
    has_gpu=False,
)


def test_the_module_comes_after_the_launchers_own_flags():
    argv = local_command(PLAN)
    launcher, rank = argv[: argv.index("--module")], argv[argv.index("--module") :]
    assert launcher[launcher.index("--num_gpus") + 1] == "2"
    assert launcher[launcher.index("--master_port") + 1] == "29511"
    assert rank[:4] == ["--module", "smdt.train", "--config", "run.yaml"]
    assert rank[rank.index("--deepspeed_config") + 1] == "zero2.json"
    assert rank[-2:] == ["run.seed=3", "schedule.length=20 steps"]


def test_ranks_share_the_cores_unless_the_user_says_otherwise():
    assert local_environment(PLAN, {}, 17)["OMP_NUM_THREADS"] == "2"
    assert local_environment(PLAN, {"OMP_NUM_THREADS": "4"}, 17)["OMP_NUM_THREADS"] == "4"


def test_the_ranks_know_whose_death_ends_them():
    stale = {"SMDT_LAUNCHER_PID": "1"}
    assert local_environment(PLAN, stale, 17)["SMDT_LAUNCHER_PID"] == "17"
