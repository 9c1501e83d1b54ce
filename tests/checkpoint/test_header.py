"""Headers that lie: every claim is found out before anything is read."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniekit.checkpoint.files import open_tensors, write_file
from erniekit.checkpoint.header import num_bytes, read_header, write_header
from erniekit.errors import CheckpointError


def write_raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def entry(
    dtype: str = "F32", shape: tuple[int, ...] = (2,), offsets: tuple[int, int] = (0, 8)
) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DAMAGED = {
    "length beyond the file": (b"{}", b"", 1 << 40, "header would take"),
    "no JSON": (b"not json", b"", None, "damaged"),
    "a list": ([], b"", None, "damaged"),
    "not UTF-8": (b"\xff\xfe{}", b"", None, "damaged"),
    "deep nesting": (b'{"a":' + b"[" * 100_000, b"", None, "damaged"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), None, "damaged"),
    "negative shape": ({"a": entry(shape=(-2,))}, bytes(8), None, "whole numbers"),
    "shape of booleans": (
        {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        bytes(4),
        None,
        "whole",
    ),
    "shape that overflows": ({"a": entry(shape=(2**33, 2**31), offsets=(0, 0))}, b"", None, "takes"),
    "huge claim": ({"a": entry(shape=(2**40,), offsets=(0, 2**42))}, bytes(8), None, "truncated"),
    "too small": ({"a": entry(shape=(1,))}, bytes(8), None, "takes 4 bytes"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), None, "overlaps"),
    "gap": ({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17), None, "gap"),
    "bytes left over": ({"a": entry()}, bytes(9), None, "describes"),
    "unknown type": ({"a": entry(dtype="F4")}, bytes(8), None, "type F4"),
    "type that is no text": (
        {"a": {"dtype": [1], "shape": [2], "data_offsets": [0, 8]}},
        bytes(8),
        None,
        "type",
    ),
    "metadata that is no text": ({"__metadata__": {"a": 1}}, b"", None, "metadata"),
    "a name twice": (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":1}', b"", None, "twice"),
}


@pytest.mark.parametrize("case", sorted(DAMAGED))
def test_damaged_headers(tmp_path: Path, case: str) -> None:
    header, data, length, message = DAMAGED[case]
    write_raw(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_tensors(tmp_path)
    assert str(tmp_path / "model.safetensors") in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 300), byte=st.integers(0, 255))
def test_a_changed_byte_gives_our_error_or_a_valid_file(
    position: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "model.safetensors"
    write_file(
        path, [("a", "F32", np.zeros((4, 2), "<f4")), ("b", "U8", np.zeros(3, "u1"))], {"format": "pt"}
    )
    content = bytearray(path.read_bytes())
    content[position % len(content)] = byte
    path.write_bytes(bytes(content))
    try:
        infos, _ = read_header(path)
    except CheckpointError:
        return
    assert all(info.stop <= len(content) for info in infos.values())


def test_missing_file_is_our_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent.safetensors cannot be read"):
        read_header(tmp_path / "absent.safetensors")


def test_written_header_by_hand() -> None:
    first, offsets = write_header([("b", "BF16", (3,)), ("a", "F32", (2, 1))], {"format": "pt"})
    length = int.from_bytes(first[:8], "little")
    assert length % 8 == 0 and len(first) == 8 + length
    assert json.loads(first[8:]) == {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]},
    }
    assert offsets == [len(first) + 8, len(first)]
    assert num_bytes("F64", (2**40, 2**40)) == 2**83
