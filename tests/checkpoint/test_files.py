import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from erniekit.checkpoint.files import Item, open_tensors, write_tensors
from erniekit.checkpoint.header import BITS
from erniekit.errors import CheckpointError

LARGE = 10**12


def items(count: int = 5) -> list[tuple[str, str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(f"t{i}.weight", "F32", rng.standard_normal((4, i + 1)).astype("<f4")) for i in range(count)]


def test_single_file_is_read_by_the_safetensors_library(tmp_path: Path) -> None:
    written = items()
    (path,) = write_tensors(tmp_path, written, max_shard_bytes=LARGE, metadata={"format": "pt"})
    assert path.name == "model.safetensors"
    loaded = load_file(path)
    assert set(loaded) == {name for name, _, _ in written}
    for name, _, array in written:
        assert np.array_equal(loaded[name], array)
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_files_of_the_safetensors_library_are_read(tmp_path: Path) -> None:
    arrays = {name: array for name, _, array in items()} | {
        "scalar": np.array(3, dtype="<i8"),
        "none": np.zeros((0, 3)),
    }
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "np"})
    tensors = open_tensors(tmp_path)
    assert tensors.metadata == {"format": "np"}
    assert set(tensors.names()) == set(arrays)
    for name, array in arrays.items():
        assert np.array_equal(tensors.read(name), array) and tensors.read(name).shape == array.shape


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_every_type_keeps_its_bits(tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(BITS[dtype])
    bits = (
        np.random.default_rng(1)
        .integers(0, 2 if dtype == "BOOL" else 256, 6 * kind.itemsize)
        .astype(np.uint8)
    )
    array = bits.view(kind).reshape(2, 3)
    write_tensors(tmp_path, [("x", dtype, array)], max_shard_bytes=LARGE, metadata={})
    tensors = open_tensors(tmp_path)
    assert tensors.info("x").dtype == dtype
    assert tensors.read("x").tobytes() == array.tobytes()


def test_wider_numbers_come_first_so_that_all_are_aligned(tmp_path: Path) -> None:
    mixed: list[Item] = [
        ("odd", "U8", np.arange(3, dtype=np.uint8)),
        ("half", "BF16", np.arange(3, dtype=np.uint16)),
        ("wide", "F32", np.arange(3, dtype=np.float32)),
    ]
    write_tensors(tmp_path, mixed, max_shard_bytes=LARGE, metadata={})
    tensors = open_tensors(tmp_path)
    assert tensors.names() == ["wide", "half", "odd"]
    for name, dtype, array in mixed:
        assert tensors.info(name).start % np.dtype(BITS[dtype]).itemsize == 0
        assert np.array_equal(tensors.read(name), array)


@pytest.mark.parametrize("limit", [1, 40, 64, 100, 10_000])
@pytest.mark.parametrize("announced", [False, True])
def test_shards(tmp_path: Path, limit: int, announced: bool) -> None:
    written = items()
    specs = [(name, dtype, array.shape) for name, dtype, array in written] if announced else None
    paths = write_tensors(
        tmp_path, iter(written), max_shard_bytes=limit, metadata={"format": "pt"}, specs=specs
    )
    sizes = [array.nbytes for _, _, array in written]
    if sum(sizes) <= limit:
        assert [path.name for path in paths] == ["model.safetensors"]
    else:
        shards = paths[:-1]
        assert [p.name for p in shards] == [
            f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
        ]
        index = json.loads(paths[-1].read_text())
        assert index["metadata"]["total_size"] == sum(sizes)
        for shard in shards:
            held = load_file(shard)
            assert len(held) == 1 or sum(array.nbytes for array in held.values()) <= limit
            assert all(index["weight_map"][name] == shard.name for name in held)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    tensors = open_tensors(tmp_path)
    for name, _, array in written:
        assert np.array_equal(tensors.read(name), array)


def test_bytes_do_not_depend_on_announcing(tmp_path: Path) -> None:
    written = items()
    specs = [(name, dtype, array.shape) for name, dtype, array in written]
    for name, announced in (("a", None), ("b", specs)):
        (tmp_path / name).mkdir()
        write_tensors(
            tmp_path / name, iter(written), max_shard_bytes=50, metadata={"format": "pt"}, specs=announced
        )
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert len(first) > 3
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}


def test_announced_tensors_are_held_one_at_a_time(tmp_path: Path) -> None:
    """The stream may not be asked for a tensor while the one before it is alive."""
    alive: list[weakref.ref[np.ndarray]] = []

    def stream() -> Iterator[Item]:
        for index in range(6):
            assert all(ref() is None for ref in alive)
            array = np.full((3, 3), index, dtype="<f4")
            alive.append(weakref.ref(array))
            item = (f"t{index}", "F32", array)
            del array
            yield item
            del item

    specs = [(f"t{index}", "F32", (3, 3)) for index in range(6)]
    write_tensors(tmp_path, stream(), max_shard_bytes=80, metadata={}, specs=specs)
    assert len(alive) == 6
    assert np.array_equal(open_tensors(tmp_path).read("t5"), np.full((3, 3), 5))


def test_announcing_something_else_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="announced"):
        write_tensors(
            tmp_path, items(1), max_shard_bytes=LARGE, metadata={}, specs=[("other", "F32", (4, 1))]
        )
    with pytest.raises(AssertionError, match="twice"):
        write_tensors(tmp_path, items(1) * 2, max_shard_bytes=1, metadata={})


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_rows_are_those_of_the_whole(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 5))
    array = np.arange(rows * columns, dtype="<f4").reshape(rows, columns)
    folder = tmp_path_factory.mktemp("rows")
    write_tensors(folder, [("x", "F32", array)], max_shard_bytes=LARGE, metadata={})
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    assert np.array_equal(open_tensors(folder).read_rows("x", start, stop), array[start:stop])


@pytest.mark.parametrize("keep", [0, 4, 8, 30, -1])
def test_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    (path,) = write_tensors(tmp_path, items(), max_shard_bytes=LARGE, metadata={})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="model.safetensors.*truncated"):
        open_tensors(tmp_path)


def test_file_truncated_after_it_was_opened(tmp_path: Path) -> None:
    (path,) = write_tensors(tmp_path, items(), max_shard_bytes=LARGE, metadata={})
    tensors = open_tensors(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="model.safetensors is truncated"):
        tensors.read(tensors.names()[-1])


def shard(tmp_path: Path) -> tuple[Path, dict[str, object]]:
    folder = tmp_path / "model"
    folder.mkdir()
    paths = write_tensors(folder, items(), max_shard_bytes=50, metadata={})
    return paths[-1], json.loads(paths[-1].read_text())


@pytest.mark.parametrize(
    "name",
    [
        "../other.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..",
        "",
        "x.bin",
        "..\\x.safetensors",
    ],
)
def test_index_may_not_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    index, content = shard(tmp_path)
    write_tensors(tmp_path, items(1), max_shard_bytes=LARGE, metadata={}, basename="other")
    content["weight_map"]["t0.weight"] = name  # type: ignore[index]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="refused"):
        open_tensors(index.parent)


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    index, _ = shard(tmp_path)
    first = index.parent / sorted(path.name for path in index.parent.glob("*.safetensors"))[0]
    first.rename(tmp_path / "secret.safetensors")
    first.symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match="outside the folder"):
        open_tensors(index.parent)


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_tensors(snapshot, items(), max_shard_bytes=50, metadata={})
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / f"blob{number}")
        path.symlink_to(Path("../../blobs") / f"blob{number}")
    tensors = open_tensors(snapshot)
    for name, _, array in items():
        assert np.array_equal(tensors.read(name), array)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{"])
def test_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="index.json is no index"):
        open_tensors(tmp_path)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    index, content = shard(tmp_path)
    weight_map: dict[str, str] = content["weight_map"]  # type: ignore[assignment]
    for changed in (
        weight_map | {"absent": weight_map["t0.weight"]},
        {k: v for k, v in weight_map.items() if k != "t1.weight"},
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(CheckpointError, match="disagree about (absent|t1.weight)"):
            open_tensors(index.parent)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    index, content = shard(tmp_path)
    name = content["weight_map"]["t3.weight"]  # type: ignore[index]
    (index.parent / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        open_tensors(index.parent)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model_state.pdparams", "model.pt"])
def test_formats_that_run_code_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=f"{name}.*can run code"):
        open_tensors(tmp_path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_tensors(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="neither model.safetensors"):
        open_tensors(tmp_path)
    write_tensors(tmp_path, items(1), max_shard_bytes=LARGE, metadata={})
    with pytest.raises(CheckpointError, match="no tensor 'x'"):
        open_tensors(tmp_path).read("x")


def test_import_needs_no_paddle() -> None:
    code = "import sys, erniekit.checkpoint.files; sys.exit('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
