"""Files of parameters and statistics: all or nothing, never pickled, whole or not there."""

import numpy as np
import pytest

import fastbn

SUFFIXES = [".npz", ".safetensors"]


def layers(rng=None):
    """Two layers; with a generator, of random state."""
    made = {"bn1": fastbn.BatchNorm(3), "block.bn2": fastbn.BatchNorm(5, dtype=np.float64, affine=False)}
    if rng is not None:
        for count, layer in enumerate(made.values(), 7):
            state = {name: rng.uniform(0.5, 2, value.shape) for name, value in layer.state_dict().items()}
            layer.load_state_dict(state | {"num_batches_tracked": np.array(count)})
    return made


def same(one, other):
    for name, layer in one.items():
        mine, its = layer.state_dict(), other[name].state_dict()
        assert mine.keys() == its.keys()
        for key, value in mine.items():
            np.testing.assert_array_equal(value, its[key])
            assert value.dtype == its[key].dtype


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    return tmp_path / f"net{request.param}"


def test_there_and_back(rng, path):
    saved, loaded = layers(rng), layers()
    fastbn.save(path, saved)
    before = loaded["bn1"].weight
    fastbn.load(str(path), loaded)
    same(saved, loaded)
    assert loaded["bn1"].weight is before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_one_layer_has_the_keys_of_its_state_dict(rng, path):
    saved, loaded = layers(rng)["bn1"], fastbn.BatchNorm(3)
    fastbn.save(path, saved)
    fastbn.load(path, loaded)
    same({"": saved}, {"": loaded})
    if path.suffix == ".npz":
        assert set(np.load(path)) == set(saved.state_dict())


def write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        import safetensors.numpy

        safetensors.numpy.save_file(arrays, path)


def content(rng):
    return {f"{name}.{key}": v for name, layer in layers(rng).items() for key, v in layer.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"block.bn2.running_var": None}, ValueError, r"state: .* missing \['block.bn2.running_var'\], unknown \[\]"),
        (
            {"fc.weight": np.ones(3)},
            ValueError,
            r"path: expected the keys .*, got \['fc.weight'\] besides; pass strict",
        ),
        (
            {"block.bn2.running_var": np.ones(4)},
            ValueError,
            r"state\['block.bn2.running_var'\]: expected shape \(5,\), got shape \(4,\)",
        ),
        (
            {"block.bn2.running_mean": np.arange(5)},
            TypeError,
            r"state\['block.bn2.running_mean'\]: expected real floating numbers, got an array of int64",
        ),
        (
            {"bn1.weight": np.full(3, 1e300)},
            ValueError,
            r"state\['bn1.weight'\]: expected values that float32 can hold",
        ),
        ({"block.bn2.num_batches_tracked": np.array(-1)}, ValueError, r"expected a count >= 0, got -1"),
        ({"block.bn2.num_batches_tracked": np.array(1.5)}, TypeError, "expected one integer"),
    ],
)
def test_all_or_nothing(rng, path, change, error, message):
    """The second layer does not fit; the first one stays as it was too."""
    write(path, {name: value for name, value in (content(rng) | change).items() if value is not None})
    loaded, untouched = layers(), layers()
    with pytest.raises(error, match=message):
        fastbn.load(path, loaded)
    same(loaded, untouched)


def test_other_tensors_of_a_net_are_left_alone(rng, path):
    arrays = content(rng)
    write(path, arrays | {"fc.weight": np.ones((2, 2), np.float32)})
    loaded = layers()
    fastbn.load(path, loaded, strict=False)
    for name, array in arrays.items():
        layer, _, key = name.rpartition(".")
        np.testing.assert_array_equal(loaded[layer].state_dict()[key], array)


class Trap:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


def test_nothing_is_unpickled(rng, tmp_path):
    np.savez(tmp_path / "objects.npz", **content(rng) | {"bn1.weight": np.array([Trap()] * 3, dtype=object)})
    np.array([Trap()], dtype=object).dump(tmp_path / "pickle.npz")
    for name in ("objects.npz", "pickle.npz"):
        loaded = layers()
        with pytest.raises(ValueError, match=rf"path: expected an npz file of plain arrays, {name} is not one"):
            fastbn.load(tmp_path / name, loaded)
        same(loaded, layers())


def test_a_file_cut_short(rng, path):
    fastbn.save(path, layers(rng))
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        loaded = layers()
        with pytest.raises(ValueError, match=r"path: expected an? (npz|safetensors) file"):
            fastbn.load(path, loaded)
        same(loaded, layers())


def test_what_was_there_stays_when_writing_fails(rng, path, monkeypatch):
    saved = layers(rng)
    fastbn.save(path, saved)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fastbn.save(path, layers())
    loaded = layers()
    fastbn.load(path, loaded)
    same(saved, loaded)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    for function in (fastbn.save, fastbn.load):
        with pytest.raises(ModuleNotFoundError, match="pip install safetensors"):
            function(tmp_path / "net.safetensors", fastbn.BatchNorm(2))


@pytest.mark.frameworks
def test_a_net_of_pytorch(rng, tmp_path):
    """Its batch norms are read from a safetensors file of the whole net, by the names that it has there."""
    torch = pytest.importorskip("torch")
    import safetensors.torch

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    x = rng.standard_normal((8, 3, 5, 5)).astype(np.float32)
    net(torch.from_numpy(x))
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    layer = fastbn.BatchNorm(4)
    fastbn.load(tmp_path / "net.safetensors", {"1": layer}, strict=False)
    np.testing.assert_array_equal(layer.running_var, net[1].running_var.numpy())
    assert layer.num_batches_tracked == 1
