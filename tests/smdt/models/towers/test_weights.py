import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import zoom

from data_shards.base.errors import InputError
from smdt.models.towers.hybrid import HybridTower, R50VitB16Config, TinyConfig
from smdt.models.towers.stem import ConvStemConfig, ResNetStemConfig
from smdt.models.towers.two_tower import TwoTower
from smdt.models.towers.weights import load_tensors, load_towers, read, resize_positions
from tests.google_weights import google_arrays

SMALL_FILE = {
    "stem_width": 8, "blocks": (2, 1, 2), "width": 12, "layers": 3, "heads": 2, "hidden": 20,
    "grid": 4, "classes": 5,
}  # fmt: skip
SMALL = R50VitB16Config(
    backbone="r50_vit_b16",
    stem=ResNetStemConfig(width=8, blocks=(2, 1, 2), groups=4),
    width=12, layers=3, heads=2, hidden=20,
)  # fmt: skip
SIZE = (32, 96)
HEAD = {"pre_logits/kernel", "pre_logits/bias", "head/kernel", "head/bias"}


@pytest.fixture
def google(tmp_path):
    path = tmp_path / "R50+ViT-B_16.npz"
    np.savez(path, **google_arrays(**SMALL_FILE))
    return path


def towers(seed: int = 0, size: tuple[int, int] = SIZE, **changes: object) -> TwoTower:
    torch.manual_seed(seed)
    return TwoTower(SMALL.model_copy(update=changes), size, size)


def expected_tensor(file: dict[str, np.ndarray], name: str, grid: tuple[int, int]) -> np.ndarray:
    """What Google's file has for one of our names, from its layout, a name at a time."""
    parts = name.split(".")
    affine = {"weight": "scale", "bias": "bias"}.get(parts[-1], "")
    match parts:
        case ["stem", "root", _]:
            return np.einsum("hwio->oihw", file["conv_root/kernel"])
        case ["stem", "root_norm", _]:
            return file[f"gn_root/{affine}"].reshape(-1)
        case ["stem", "stages", stage, unit, "shortcut", kind, _]:
            at = f"block{int(stage) + 1}/unit{int(unit) + 1}"
            if kind == "conv":
                return np.einsum("hwio->oihw", file[f"{at}/conv_proj/kernel"])
            return file[f"{at}/gn_proj/{affine}"].reshape(-1)
        case ["stem", "stages", stage, unit, inner, _]:
            at, number = f"block{int(stage) + 1}/unit{int(unit) + 1}", inner[-1]
            if inner.startswith("conv"):
                return np.einsum("hwio->oihw", file[f"{at}/conv{number}/kernel"])
            return file[f"{at}/gn{number}/{affine}"].reshape(-1)
        case ["project", "weight"]:
            return np.einsum("hwio->oihw", file["embedding/kernel"])
        case ["project", "bias"]:
            return file["embedding/bias"]
        case ["encoder", "class_token"]:
            return file["cls"]
        case ["encoder", "class_position"]:
            return file["Transformer/posembed_input/pos_embedding"][:, :1]
        case ["encoder", "positions"]:
            flat = file["Transformer/posembed_input/pos_embedding"][0, 1:]
            side = int(len(flat) ** 0.5)
            square = flat.reshape(side, side, -1)
            return zoom(square, (grid[0] / side, grid[1] / side, 1), order=1)[None]
        case ["encoder", "norm", _]:
            return file[f"Transformer/encoder_norm/{affine}"]
        case ["encoder", "layers", layer, "attention", projection, part]:
            kernel_or_bias = "kernel" if part == "weight" else "bias"
            value = file[
                f"Transformer/encoderblock_{layer}/MultiHeadDotProductAttention_1/"
                f"{projection}/{kernel_or_bias}"
            ]
            if part == "bias":
                return value.reshape(-1)
            equation = "hdo->ohd" if projection == "out" else "ihd->hdi"
            matrix = np.einsum(equation, value)
            return (
                matrix.reshape(len(matrix), -1)
                if projection == "out"
                else matrix.reshape(-1, matrix.shape[-1])
            )
        case ["encoder", "layers", layer, inner, part]:
            at = f"Transformer/encoderblock_{layer}"
            if inner in ("expand", "contract"):
                dense = f"{at}/MlpBlock_3/Dense_{int(inner == 'contract')}"
                return file[f"{dense}/kernel"].T if part == "weight" else file[f"{dense}/bias"]
            return file[f"{at}/LayerNorm_{2 if inner == 'norm3' else 0}/{affine}"]
    raise AssertionError(name)


def check_every_tensor(model: TwoTower, file: dict[str, np.ndarray], grid: tuple[int, int]) -> None:
    for tower in (model.ground, model.aerial):
        for name, value in tower.state_dict().items():
            expected = expected_tensor(file, name, grid)
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("attention", ["cross_layer", "self"])
@pytest.mark.parametrize("wrapper", ["", "opt/target/", "params/"])
def test_google_s_file_fills_every_tensor_of_both_towers(tmp_path, wrapper, attention):
    file = google_arrays(**SMALL_FILE)
    np.savez(tmp_path / "weights.npz", **{f"{wrapper}{k}": v for k, v in file.items()})
    model = towers(attention=attention)
    fits = load_towers(model, read(tmp_path / "weights.npz"), "weights.npz")
    check_every_tensor(model, file, (2, 6))
    for view in ("ground", "aerial"):
        assert fits[view].fresh == []
        assert set(fits[view].unused) == {f"{wrapper}{name}" for name in HEAD}
        assert fits[view].resized == ["encoder.positions"]
        assert sorted(fits[view].loaded) == sorted(model.ground.state_dict())


@pytest.mark.slow
def test_google_s_file_of_full_size_fills_every_tensor(tmp_path):
    file = google_arrays()
    # timm's vit_base_r50_s16_224, the layer before the classifier, and the classifier
    assert sum(array.size for array in file.values()) == 97_890_112 + 590_592 + 16_797_267
    np.savez(tmp_path / "weights.npz", **file)
    size = (128, 512)
    model = TwoTower(R50VitB16Config(backbone="r50_vit_b16"), size, size)
    fits = load_towers(model, read(tmp_path / "weights.npz"), "weights.npz")
    check_every_tensor(model, file, (8, 32))
    assert all(report.fresh == [] and set(report.unused) == HEAD for report in fits.values())


def test_positions_of_the_same_grid_are_copied(google):
    model = towers(size=(64, 64))
    fits = load_towers(model, read(google), "weights.npz")
    assert fits["ground"].resized == []
    file = google_arrays(**SMALL_FILE)["Transformer/posembed_input/pos_embedding"]
    np.testing.assert_array_equal(
        model.ground.encoder.positions.detach().numpy().reshape(16, 12), file[0, 1:]
    )


@pytest.mark.parametrize("grid", [(2, 6), (4, 4), (7, 1), (1, 9)])
def test_positions_are_interpolated_as_google_does(grid):
    positions = torch.randn(1, 4, 4, 3)
    expected = zoom(positions[0].numpy(), (grid[0] / 4, grid[1] / 4, 1), order=1)
    np.testing.assert_allclose(
        resize_positions(positions, grid)[0].numpy(), expected, rtol=1e-5, atol=1e-6
    )


def test_towers_of_ours_go_on_with_another_panorama(tmp_path):
    trained = towers(seed=1)
    save_file(
        {f"two_tower.{name}": tensor for name, tensor in trained.state_dict().items()},
        tmp_path / "weights.safetensors",
    )
    model = towers(seed=2, size=(48, 160))
    fits = load_towers(model, read(tmp_path / "weights.safetensors"), "weights.safetensors")
    for view in ("ground", "aerial"):
        assert fits[view].fresh == fits[view].unused == []
        assert fits[view].resized == ["encoder.positions"]
        before, after = getattr(trained, view), getattr(model, view)
        for name, tensor in after.state_dict().items():
            source = before.state_dict()[name]
            if name == "encoder.positions":
                source = torch.from_numpy(zoom(source[0].numpy(), (3 / 2, 10 / 6, 1), order=1))[
                    None
                ]
            torch.testing.assert_close(tensor, source, rtol=1e-5, atol=1e-6)
    assert not torch.equal(model.ground.project.weight, model.aerial.project.weight)


def test_shared_and_separate_towers_take_each_other_s_weights():
    apart, together = towers(seed=1), towers(seed=2, shared=True)
    fits = load_towers(towers(shared=True), apart.state_dict(), "apart")
    assert len(fits) == 1
    assert set(fits["ground"].unused) == {n for n in apart.state_dict() if n.startswith("aerial.")}
    model = towers(seed=3)
    load_towers(model, together.state_dict(), "together")
    for tower in (model.ground, model.aerial):
        assert torch.equal(tower.project.weight, together.ground.project.weight)


def test_what_has_no_counterpart_is_fresh_or_unused():
    trained = towers(seed=1, attention="self", layers=2)
    model = towers(seed=2, pooling="gem")
    fitted = load_towers(model, trained.state_dict(), "trained")["aerial"]
    assert "encoder.pool.power" in fitted.fresh
    assert {n for n in fitted.fresh if "layers.0" in n} == {
        "encoder.layers.0.norm2.weight",
        "encoder.layers.0.norm2.bias",
    }
    assert any("layers.2" in name for name in fitted.fresh)
    fitted = load_towers(trained, model.state_dict(), "model")["ground"]
    assert "encoder.pool.power" in fitted.unused


def test_a_learned_temperature_goes_on_where_there_is_one():
    trained, model = (TwoTower(TinyConfig(), SIZE, SIZE, start) for start in (0.02, 0.07))
    fits = load_towers(model, trained.state_dict(), "file")
    assert (fits["loss"].loaded, fits["loss"].fresh) == (["log_scale"], [])
    assert model.log_scale.item() == pytest.approx(np.log(50))
    without = TwoTower(TinyConfig(), SIZE, SIZE)
    assert load_towers(model, without.state_dict(), "file")["loss"].fresh == ["log_scale"]
    assert set(load_towers(without, trained.state_dict(), "file")) == {"ground", "aerial"}


def test_weights_of_another_network_are_refused(google):
    tiny = TwoTower(TinyConfig(), SIZE, SIZE)
    with pytest.raises(InputError, match=r"file: 'embedding/kernel' of shape \[1, 1, 128, 12\]"):
        load_towers(tiny, read(google), "file")
    with pytest.raises(InputError, match="file: nothing fits; its 1 tensors are called other"):
        load_towers(tiny, {"other": torch.zeros(3)}, "file")
    wider = towers(width=24)
    with pytest.raises(InputError, match=r"project.weight has shape \[24, 128, 1, 1\]"):
        load_towers(wider, read(google), "file")
    oblong = {"Transformer/posembed_input/pos_embedding": torch.zeros(1, 1 + 6, 12)}
    with pytest.raises(InputError, match="6 positions do not form a square grid"):
        load_towers(towers(), {"embedding/kernel": torch.zeros(1, 1, 128, 12), **oblong}, "file")


def test_files_that_cannot_be_read_are_refused(tmp_path):
    np.savez(tmp_path / "pickled.npz", thing=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match=r"pickled.npz: .*allow_pickle"):
        read(tmp_path / "pickled.npz")
    for name in ("broken.npz", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)
    with pytest.raises(InputError, match=r"missing.npz"):
        read(tmp_path / "missing.npz")
    with pytest.raises(InputError, match=r"neither a folder nor an .npz or .safetensors"):
        read(tmp_path / "weights.pth")


def test_any_module_can_be_filled_by_its_own_names():
    source, module = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    fitted = load_tensors(module, source.state_dict() | {"more": torch.zeros(1)}, "file")
    assert (fitted.loaded, fitted.unused) == (["weight", "bias"], ["more"])
    assert torch.equal(module.weight, source.weight)


def test_the_stem_s_kind_is_part_of_the_network():
    assert isinstance(TwoTower(TinyConfig(), SIZE, SIZE).ground, HybridTower)
    other = TwoTower(TinyConfig(stem=ConvStemConfig(width=16)), SIZE, SIZE)
    with pytest.raises(InputError, match=r"stem.0.weight"):
        load_towers(TwoTower(TinyConfig(), SIZE, SIZE), other.state_dict(), "other")
