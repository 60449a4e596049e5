import pytest

from smdt.evaluation.outcomes import score_text


@pytest.mark.parametrize(
    ("name", "text"),
    [("R@1%", "12.35%"), ("IoU sky", "12.35%"), ("PSNR", "0.12 dB"), ("SSIM", "0.1235")],
)
def test_a_score_is_written_in_its_unit(name, text):
    assert score_text(name, 0.12346) == text
