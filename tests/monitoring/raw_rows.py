"""Raw data that keeps a shard job busy."""

from pathlib import Path

from PIL import Image


def write_rows(folder: Path, count: int) -> None:
    """Write `train.csv` with the same two noisy images over and over, a file missing in a tenth."""
    folder.mkdir()
    for name in ("ground", "aerial"):
        Image.effect_noise((512, 512), 64).convert("RGB").save(folder / f"{name}.jpg")
    names = ["missing" if row % 10 == 0 else "ground" for row in range(count)]
    rows = ["ground,aerial", *(f"{name}.jpg,aerial.jpg" for name in names)]
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
