from smdt.telemetry.console import Display, ProgressBar


def test_the_bar_shows_how_far_and_what_was_said(capsys):
    with ProgressBar(10, "a-run") as bar:
        bar.step(4, {"loss": 0.5, "samples/s": 120.0})
        bar.say("step 4: R@1 0.5")
    shown = capsys.readouterr().err
    assert "a-run" in shown
    assert "4/10" in shown
    assert "step 4: R@1 0.5" in shown


def test_a_rank_that_nobody_watches_is_silent(capsys):
    with Display() as display:
        display.step(1, {"loss": 1.0})
        display.say("anything")
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
