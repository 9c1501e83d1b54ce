"""Files that several processes write: byte for byte those of one."""

import errno
import os

import numpy as np
import pytest

from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.checkpoint.shared_files import Part, plan_files

SHAPES = {"matrix": (6, 8), "cube": (4, 3, 5), "vector": (7,), "scalar": (), "empty": (0, 3)}


def tensors():
    rng = np.random.default_rng(0)
    return [(name, "F32", rng.normal(size=shape).astype("<f4")) for name, shape in SHAPES.items()]


def halves(items, axis):
    """Each tensor in two uneven parts along an axis, where it has the axis."""
    for name, _, array in items:
        if array.ndim <= axis:
            yield Part(name, (0,) * array.ndim, array), None
            continue
        middle = array.shape[axis] // 3
        start = tuple(middle if number == axis else 0 for number in range(array.ndim))
        first, second = np.split(array, [middle], axis=axis)
        yield Part(name, (0,) * array.ndim, first), Part(name, start, second)


@pytest.mark.parametrize("limit", [10**6, 300])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_bytes_are_those_of_one_process(tmp_path, axis, limit):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir(), together.mkdir()
    items = tensors()
    options = dict(max_shard_bytes=limit, metadata={"format": "pt"})
    write_tensors(alone, iter(items), **options)
    plan = plan_files([(name, dtype, array.shape) for name, dtype, array in items], **options)
    plan.lay_out(together)
    for rank in (1, 0):  # in any order
        plan.write(together, (part for pair in halves(items, axis) if (part := pair[rank]) is not None))
    names = sorted(path.name for path in alone.iterdir())
    assert names == sorted(path.name for path in together.iterdir())
    assert len(names) == (1 if limit > 1000 else 3)
    for name in names:
        assert (alone / name).read_bytes() == (together / name).read_bytes(), name


def test_blocks_in_the_middle_of_a_matrix(tmp_path):
    whole = np.arange(24, dtype="<u2").reshape(4, 6)
    plan = plan_files([("w", "BF16", (4, 6))], max_shard_bytes=10**6, metadata={})
    plan.lay_out(tmp_path)
    for rows in (slice(0, 1), slice(1, 4)):
        for columns in (slice(0, 2), slice(2, 5), slice(5, 6)):
            plan.write(tmp_path, [Part("w", (rows.start, columns.start), whole[rows, columns])])
    assert (open_tensors(tmp_path).read("w") == whole).all()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    plan = plan_files([("w", "F32", (4, 6))], max_shard_bytes=10**6, metadata={})
    with pytest.raises(OSError, match="No space"):
        plan.lay_out(tmp_path)


def test_a_part_beyond_the_tensor_or_of_another_width_is_an_error(tmp_path):
    plan = plan_files([("w", "F32", (4, 6))], max_shard_bytes=10**6, metadata={})
    plan.lay_out(tmp_path)
    with pytest.raises(AssertionError):
        plan.write(tmp_path, [Part("w", (2, 0), np.zeros([3, 6], "<f4"))])
    with pytest.raises(AssertionError, match="F32"):
        plan.write(tmp_path, [Part("w", (0, 0), np.zeros([4, 6], "<f8"))])
