"""How a score is written for a person."""


def score_text(name: str, value: float) -> str:
    """Return a recall or an IoU in percent, PSNR and SD in decibels, any other as it is."""
    if name.startswith("R@") or "IoU" in name or name == "hit rate":
        return f"{value:.2%}"
    if name in ("PSNR", "SD"):
        return f"{value:.2f} dB"
    return f"{value:.4f}"
