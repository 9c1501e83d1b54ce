"""Native decoding against the whole sequence in numpy: shapes, types, levels of instructions, threads."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.ops import ccq
from erniekit.ops.fp8 import E4M3
from erniekit.ops.hadamard import hadamard
from erniekit.ops.kernels.library import Library, find_library, load
from erniekit.ops.native.decode import (
    HEAD_PANEL,
    CodedHead,
    DecoderTable,
    LayerTable,
    NativeDecoder,
    reads_codes,
    stream,
)
from erniekit.ops.quantised import QuantisedMatrix
from erniekit.ops.rounding import Rounding

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
BEST = load()
LEVELS = BEST.record["levels"][: BEST.record["levels"].index(BEST.level) + 1]
# Largest difference of logits relative to the largest logit: fp32 rounding, and that of bf16 operands.
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2}
EPSILON, THETA = 1e-5, 10000.0


@dataclass(frozen=True)
class Shape:
    hidden: int
    heads: int
    key_heads: int
    dim: int
    inner: int
    vocab: int
    bias: bool = False
    tied: bool = True
    layers: int = 2


SHAPES = [
    Shape(64, 4, 2, 16, 96, 50),
    Shape(40, 3, 1, 6, 37, 33, bias=True, tied=False),
    Shape(96, 2, 2, 64, 130, 70, bias=True),
    Shape(144, 9, 3, 64, 80, 100, tied=False, layers=1),
    Shape(72, 2, 1, 128, 100, 17, bias=True, tied=False, layers=1),
    Shape(33, 1, 1, 2, 3, 5, layers=1),
]
# Number format and group of matrices that are codes: whole columns, groups that end within a part, mixed.
CODES = [("int8", None), ("int4", None), ("int2", None), ("int8", 32), ("int4", 16), ("int2", 48), (None, 64)]
CODES += [("int4_full", 32)]
# Formats whose numbers are made in fp32.
MADE = [("nf4", 48), ("e4m3", None), ("ccq2", None), ("ccq2.5", None)]


@pytest.fixture(params=LEVELS)
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    """Every level of instructions that runs here, with two threads."""
    chosen = load(request.param)
    before = chosen.threads
    chosen.set_threads(2)
    yield chosen
    chosen.set_threads(before)


def random_words(
    rng: np.random.Generator, shape: tuple[int, int], number: str, dtype: str
) -> QuantisedMatrix:
    """A matrix of convolutional codes in which all bits are drawn."""
    two_bits, columns = number == "ccq2", shape[1]
    codes = rng.integers(0, 256 if two_bits else 1 << 16, ccq.codes_shape(shape, number))
    local = rng.integers(0, 256, ccq.locals_shape(shape, number)).astype(np.uint8)
    size = shape[0] ** -0.5 / (140 if two_bits else 9000)
    numbers = [np.full(columns, size), rng.uniform(100, 128, columns), rng.uniform(0, 100, columns)]
    return QuantisedMatrix.packed(
        codes.astype(np.uint8 if two_bits else np.uint16),
        local,
        np.stack(numbers[: ccq.COLUMN_NUMBERS[number]]).astype(np.float32),
        shape=shape,
        number=number,
        group=ccq.GROUP,
        dtype=dtype,
    )


def make(
    shape: Shape, dtype: str, seed: int = 0, codes: tuple[str | None, int | None] | None = None
) -> DecoderTable:
    """A decoder of random numbers; `codes` are format (None: a mixture) and group of its matrices."""
    rng = np.random.default_rng(seed)
    query, key = shape.heads * shape.dim, shape.key_heads * shape.dim

    def matrix(rows: int, columns: int) -> Any:
        drawn = rng.normal(0, rows**-0.5, (rows, columns)).astype("float32")
        if codes is not None:
            number = codes[0] or ("int4" if rows > shape.hidden else "int8")
            if number in ccq.NUMBERS:
                return random_words(rng, (rows, columns), number, dtype)
            scale_type = "bf16" if number == "int4_full" else "fp32"
            return QuantisedMatrix.of(drawn, number, codes[1], dtype, scale_type=scale_type)
        return paddle.to_tensor(drawn).astype(dtype)

    def vector(size: int, mean: float) -> paddle.Tensor:
        return paddle.to_tensor(rng.normal(mean, 0.3, size).astype("float32")).astype(dtype)

    def bias(size: int) -> paddle.Tensor | None:
        return vector(size, 0.0) if shape.bias else None

    layers = [
        LayerTable(
            attention_norm=vector(shape.hidden, 1.0),
            qkv=matrix(shape.hidden, query + 2 * key),
            qkv_bias=bias(query + 2 * key),
            out=matrix(query, shape.hidden),
            out_bias=bias(shape.hidden),
            mlp_norm=vector(shape.hidden, 1.0),
            gate_up=matrix(shape.hidden, 2 * shape.inner),
            gate_up_bias=bias(2 * shape.inner),
            down=matrix(shape.inner, shape.hidden),
            down_bias=bias(shape.hidden),
        )
        for _ in range(shape.layers)
    ]
    embedding = vector(shape.vocab * shape.hidden, 0.0).reshape([shape.vocab, shape.hidden])
    if codes is None:
        head: Any = embedding if shape.tied else matrix(shape.hidden, shape.vocab)
    else:
        numbers = rng.normal(0, shape.hidden**-0.5, (shape.hidden, shape.vocab)).astype("float32")
        head = CodedHead.of(wide(embedding).astype("float32").T if shape.tied else numbers)
    return DecoderTable(
        embedding=embedding,
        layers=layers,
        final_norm=vector(shape.hidden, 1.0),
        head=head,
        head_bias=bias(shape.vocab),
        tied=shape.tied,
        num_heads=shape.heads,
        num_kv_heads=shape.key_heads,
        head_dim=shape.dim,
        epsilon=EPSILON,
    )


def turns(num_columns: int, dim: int) -> np.ndarray:
    angles = np.arange(num_columns)[:, None] * THETA ** (-np.arange(0, dim, 2) / dim)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(num_columns, dim).astype(np.float32)


def wide(tensor: paddle.Tensor | QuantisedMatrix | None) -> Any:
    """In double precision; a missing bias is zero."""
    if isinstance(tensor, QuantisedMatrix):
        tensor.dtype = paddle.float32
        return tensor.numbers().numpy().astype(np.float64)
    return 0.0 if tensor is None else tensor.astype("float32").numpy().astype(np.float64)


def normed(x: np.ndarray, weight: paddle.Tensor) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * wide(weight)


def last_logits(table: DecoderTable, ids: np.ndarray) -> np.ndarray:
    """Logits after a sequence, by the definition."""
    length, dim, group = len(ids), table.head_dim, table.num_heads // table.num_kv_heads
    angles = turns(length, dim).astype(np.float64).reshape(length, 1, dim // 2, 2)

    def turned(x: np.ndarray) -> np.ndarray:
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = angles[..., 0], angles[..., 1]
        return np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)

    x = wide(table.embedding)[ids]
    for layer in table.layers:
        qkv = (normed(x, layer.attention_norm) @ wide(layer.qkv) + wide(layer.qkv_bias)).reshape(
            length, -1, dim
        )
        q, k, v = np.split(qkv, [table.num_heads, table.num_heads + table.num_kv_heads], axis=1)
        k, v = (np.repeat(part, group, axis=1) for part in (turned(k), v))
        scores = np.einsum("tnd,snd->nts", turned(q), k) / np.sqrt(dim)
        scores[:, np.triu(np.ones((length, length), dtype=bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("nts,snd->tnd", weights, v).reshape(length, -1)
        x = x + attended @ wide(layer.out) + wide(layer.out_bias)
        widened = normed(x, layer.mlp_norm) @ wide(layer.gate_up) + wide(layer.gate_up_bias)
        gate, up = np.split(widened, 2, axis=-1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ wide(layer.down) + wide(layer.down_bias)
    return normed(x[-1], table.final_norm) @ wide_head(table) + wide(table.head_bias)


def wide_head(table: DecoderTable) -> np.ndarray:
    """The output layer [H, V]."""
    if isinstance(table.head, CodedHead):
        panels = table.head.panels.view(np.int8).astype(np.float64)
        columns = np.concatenate(list(panels), axis=1) * table.head.scales
        return columns[:, : table.embedding.shape[0]]
    return wide(table.head).T if table.tied else wide(table.head)


class Decoding:
    """A decoder with a cache of its own."""

    def __init__(
        self,
        library: Library,
        table: DecoderTable,
        *,
        rows: int,
        columns: int,
        cache_dtype: str | None = None,
    ) -> None:
        shape = [rows, table.num_kv_heads, columns, table.head_dim]
        dtype = cache_dtype or table.embedding.dtype
        # What was not written must not be read: it is no number.
        self.keys, self.values = (
            [paddle.full(shape, float("nan"), "float32").astype(dtype) for _ in table.layers]
            for _ in range(2)
        )
        self.decoder = NativeDecoder(
            library,
            table,
            keys=self.keys,
            values=self.values,
            turns_SD=turns(columns, table.head_dim),
            most_rows=rows,
        )

    def feed(self, ids_BT: np.ndarray, padding: np.ndarray) -> np.ndarray:
        """Token after token, each row from its first real column on; logits after the last ones."""
        for column in range(ids_BT.shape[1]):
            rows = np.flatnonzero(padding <= column)
            logits = self.decoder.step(ids_BT[rows, column], rows, padding[rows], column=column)
        return logits.copy()


def tokens(shape: Shape, rows: int, length: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, shape.vocab, (rows, length))


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_the_whole_sequence(library: Library, shape: Shape, dtype: str) -> None:
    table = make(shape, dtype)
    for rows, length in ((1, 1), (1, 2), (3, 9)):
        ids = tokens(shape, rows, length)
        found = Decoding(library, table, rows=rows, columns=length).feed(ids, np.zeros(rows, dtype=int))
        expected = np.stack([last_logits(table, row) for row in ids])
        assert difference(found, expected) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("codes", CODES + MADE)
def test_matrices_of_codes(library: Library, codes: tuple[str | None, int | None], dtype: str) -> None:
    for shape in SHAPES:
        table = make(shape, dtype, codes=codes)
        for rows, length in ((1, 3), (9, 2)):
            ids = tokens(shape, rows, length)
            found = Decoding(library, table, rows=rows, columns=length).feed(ids, np.zeros(rows, dtype=int))
            expected = np.stack([last_logits(table, row) for row in ids])
            # A vector is rounded by 2^-16 of its largest number.
            assert difference(found, expected) < (3e-4 if dtype == "float32" else BOUNDS[dtype])


def test_a_head_of_codes_has_as_many_panels_as_it_needs() -> None:
    weight = np.random.default_rng(0).normal(size=(24, 2 * HEAD_PANEL + 3)).astype(np.float32)
    head = CodedHead.of(weight)
    assert head.panels.shape == (3, 24, HEAD_PANEL) and head.scales.shape == (3 * HEAD_PANEL,)
    numbers = np.concatenate(list(head.panels.view(np.int8)), axis=1) * head.scales
    assert np.abs(numbers[:, : weight.shape[1]] - weight).max() <= np.abs(weight).max() / 254 * 1.001
    assert not numbers[:, weight.shape[1] :].any()
    shape = Shape(40, 2, 1, 8, 48, 2 * HEAD_PANEL + 3, bias=True, layers=1)
    table = make(shape, "float32", codes=("int8", None))
    ids = tokens(shape, 1, 2)
    found = Decoding(BEST, table, rows=1, columns=2).feed(ids, np.zeros(1, dtype=int))
    assert difference(found[0], last_logits(table, ids[0])) < 3e-4


def rounded(x: np.ndarray, scale: float | np.ndarray) -> np.ndarray:
    return np.rint(np.clip(x / scale, -127, 127)) * scale


def one_token(
    table: DecoderTable, token: int, product: Callable[[np.ndarray, str], np.ndarray]
) -> np.ndarray:
    """Logits after a single token of one layer, whose attention is its value, with products as given."""
    layer = table.layers[0]
    x = wide(table.embedding)[token]
    value = product(normed(x, layer.attention_norm), "qkv")[-table.num_kv_heads * table.head_dim :]
    x = x + product(value, "out")
    gate, up = np.split(product(normed(x, layer.mlp_norm), "gate_up"), 2)
    x = x + product(gate / (1 + np.exp(-gate)) * up, "down")
    return normed(x, table.final_norm) @ wide_head(table)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("number", ["int4", "nf4"])
def test_inputs_rounded_to_int8(library: Library, dtype: str, number: str) -> None:
    table = make(Shape(48, 2, 2, 16, 80, 60, layers=1), dtype, codes=(number, None))
    layer = table.layers[0]
    scales = {"qkv": 0.02, "out": 0.01, "gate_up": 0.03, "down": 0.004}
    for name, scale in scales.items():
        getattr(layer, name).rounding = Rounding("int8", paddle.to_tensor([scale], dtype="float32"))
    found = Decoding(library, table, rows=1, columns=1).feed(np.array([[7]]), np.zeros(1, dtype=int))
    expected = one_token(table, 7, lambda x, name: rounded(x, scales[name]) @ wide(getattr(layer, name)))
    # A number near the middle of two may go either way.
    assert difference(found[0], expected) < 2e-2
    for name in scales:
        getattr(layer, name).rounding = None
    unrounded = Decoding(library, table, rows=1, columns=1).feed(np.array([[7]]), np.zeros(1, dtype=int))
    assert difference(unrounded[0], expected) > 4e-2


@pytest.mark.parametrize("way", ["tensor", "block", "int8 block"])
def test_inputs_rotated_and_rounded_to_float8(library: Library, way: str) -> None:
    """Parts of a product begin where a tile does; scales make small numbers fall below the normal ones."""
    table = make(Shape(192, 5, 5, 32, 640, 60, layers=1), "float32", codes=("e4m3", None))
    layer = table.layers[0]
    scales = {"qkv": 0.1, "out": 1.0, "gate_up": 0.004, "down": 0.3}
    for name, scale in scales.items():
        matrix = getattr(layer, name)
        weight = np.random.default_rng(5).normal(0, 0.1, matrix.shape).astype("float32")
        if way == "tensor":
            matrix = QuantisedMatrix.of(weight, "e4m3", None, "float32", outputs=None)
            matrix.rounding = Rounding("e4m3", paddle.to_tensor([scale], dtype="float32"))
            matrix.rotation = 32
        else:
            number, outputs = ("e4m3", 128) if way == "block" else ("int8", 1)
            matrix = QuantisedMatrix.of(weight, number, 128, "float32", outputs=outputs)
            matrix.rounding = Rounding("e4m3", None, tile=128)
        table.layers[0].__dict__[name] = matrix
    found = Decoding(library, table, rows=1, columns=1).feed(np.array([[7]]), np.zeros(1, dtype=int))

    def float8(x: np.ndarray, scale: Any) -> np.ndarray:
        return E4M3.values(E4M3.codes(np.clip(x / scale, -448, 448))) * scale

    def product(x: np.ndarray, name: str) -> np.ndarray:
        if way == "tensor":
            x = float8((x.reshape(-1, 32) @ hadamard(32)).reshape(-1), scales[name])
        else:
            tiles = np.split(x, range(128, len(x), 128))
            x = np.concatenate([float8(tile, np.abs(tile).max() / 448) for tile in tiles])
        return x @ wide(getattr(layer, name))

    expected = one_token(table, 7, product)
    assert difference(found[0], expected) < 3e-4
    for name in scales:
        getattr(layer, name).rounding = None
    unrounded = Decoding(library, table, rows=1, columns=1).feed(np.array([[7]]), np.zeros(1, dtype=int))
    assert difference(unrounded[0], expected) > 2e-2


def test_keys_and_values_rounded_to_int8(library: Library) -> None:
    shape = SHAPES[0]
    table = make(shape, "float32")
    ids = tokens(shape, 1, 3)
    scales = np.random.default_rng(0).uniform(0.005, 0.02, (2, 2, 16)).astype(np.float32)
    given = {
        name: paddle.to_tensor(each)
        for name, each in zip(("key_scales", "value_scales"), scales, strict=True)
    }
    rounding = replace(table, layers=[replace(layer, **given) for layer in table.layers])
    plain, decoding = (Decoding(library, each, rows=1, columns=3) for each in (table, rounding))
    plain.feed(ids, np.zeros(1, dtype=int))
    decoding.feed(ids, np.zeros(1, dtype=int))
    for name, each in zip(("keys", "values"), scales, strict=True):
        exact, found = (getattr(side, name)[0].numpy()[0] for side in (plain, decoding))
        expected = rounded(exact, each[:, None])
        assert np.abs(found - expected).max() < 0.021
        assert (np.abs(found - expected) < 1e-6).mean() > 0.99
        assert np.abs(found - exact).max() > 1e-3


def test_codes_that_the_kernels_do_not_read() -> None:
    weight = np.random.default_rng(0).normal(size=(96, 8)).astype(np.float32)

    def reads(number: str, group: int | None, **changes: Any) -> bool:
        matrix = QuantisedMatrix.of(weight, number, group, "float32")
        for name, value in changes.items():
            setattr(matrix, name, value)
        return reads_codes(matrix)

    assert reads("int4", 32) and reads("int8", None) and reads("int8", 100) and reads("nf4", 64)
    assert not reads("int4", 24)
    one, two = (paddle.to_tensor(np.ones(size, np.float32)) for size in (1, 2))
    assert reads("int8", None, rounding=Rounding("int8", one))
    assert reads("e4m3", None, rotation=32) and not reads("e4m3", None, rotation=64)
    assert reads("e4m3", 48, rounding=Rounding("e4m3", None, tile=128))
    assert not reads("int8", None, rounding=Rounding("int8", two))
    assert not reads("int8", None, rounding=Rounding("int8", None, tile=128))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_length_up_to_a_second_chunk(dtype: str) -> None:
    table = make(SHAPES[0], dtype)
    ids = tokens(SHAPES[0], 1, 70)
    decoding = Decoding(BEST, table, rows=1, columns=70)
    for column in range(70):
        found = decoding.decoder.step(ids[:, column], np.zeros(1), np.zeros(1), column=column)
        assert difference(found[0], last_logits(table, ids[0, : column + 1])) < BOUNDS[dtype]


@pytest.mark.parametrize("columns", [400, 1100, 2500])
def test_long_rows_are_joined_from_many_chunks(library: Library, columns: int) -> None:
    """One layer over a cache of random keys and values, against the definition of attention."""
    shape = Shape(32, 6, 2, 16, 8, 40, layers=1)
    table = make(shape, "float32")
    rng = np.random.default_rng(2)
    decoding = Decoding(library, table, rows=1, columns=columns + 1)
    keys, values = rng.normal(size=(2, 2, columns, 16))
    for whole, part in ((decoding.keys[0], keys), (decoding.values[0], values)):
        whole[:, :, :columns] = paddle.to_tensor(part[None].astype("float32"))
    found = decoding.decoder.step(np.array([7]), np.zeros(1), np.zeros(1), column=columns)

    layer = table.layers[0]
    x = wide(table.embedding)[7]
    q, k, v = np.split((normed(x, layer.attention_norm) @ wide(layer.qkv)).reshape(-1, 16), [6, 8])
    angles = turns(columns + 1, 16)[-1].astype(np.float64)
    cos, sin = angles[0::2], angles[1::2]
    q, k = (
        np.stack([p[:, 0::2] * cos - p[:, 1::2] * sin, p[:, 1::2] * cos + p[:, 0::2] * sin], -1).reshape(
            p.shape
        )
        for p in (q, k)
    )
    attended = []
    for head in range(6):
        scores = np.append(keys[head // 3] @ q[head], k[head // 3] @ q[head]) / 4.0
        weights = np.exp(scores - scores.max())
        attended.append(weights / weights.sum() @ np.concatenate([values[head // 3], v[head // 3][None]]))
    x = x + np.concatenate(attended) @ wide(layer.out)
    gate, up = np.split(normed(x, layer.mlp_norm) @ wide(layer.gate_up), 2)
    x = x + (gate / (1 + np.exp(-gate)) * up) @ wide(layer.down)
    expected = normed(x, table.final_norm) @ wide(table.embedding).T
    assert difference(found[0], expected) < 1e-5


@pytest.mark.parametrize("codes", [None, ("int4_full", 32)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padding_other_rows_and_threads_change_no_bit(library: Library, dtype: str, codes: Any) -> None:
    shape = SHAPES[3]
    table = make(shape, dtype, codes=codes)
    lengths = (9, 3, 75, 20, 1, 2, 5, 8, 13)  # nine rows: one more than share a pass
    longest = max(lengths)
    ids = tokens(shape, len(lengths), longest)
    padding = longest - np.array(lengths)
    together = {}
    for threads in (1, 2, 3, 7):
        library.set_threads(threads)
        decoding = Decoding(library, table, rows=len(lengths), columns=longest)
        together[threads] = decoding.feed(ids, padding)
        np.testing.assert_array_equal(together[threads], together[1])
    for row, length in enumerate(lengths):
        alone = Decoding(library, table, rows=1, columns=length)
        np.testing.assert_array_equal(
            alone.feed(ids[row : row + 1, -length:], np.zeros(1, int))[0], together[1][row]
        )


def test_rows_that_ended_are_left_out(library: Library) -> None:
    shape = SHAPES[1]
    table = make(shape, "float32")
    ids = tokens(shape, 3, 8)
    whole, part = (Decoding(library, table, rows=3, columns=8) for _ in range(2))
    expected = whole.feed(ids, np.zeros(3, dtype=int))
    for column in range(8):
        rows = np.arange(3) if column < 4 else np.array([0, 2])
        found = part.decoder.step(ids[rows, column], rows, np.zeros(len(rows)), column=column)
    np.testing.assert_array_equal(found, expected[[0, 2]])


def test_types_of_model_and_cache_may_differ(library: Library) -> None:
    shape = SHAPES[0]
    ids = tokens(shape, 2, 6)
    for dtype, cache_dtype in (("float32", "bfloat16"), ("bfloat16", "float32")):
        table = make(shape, dtype)
        decoding = Decoding(library, table, rows=2, columns=6, cache_dtype=cache_dtype)
        found = decoding.feed(ids, np.zeros(2, dtype=int))
        expected = np.stack([last_logits(table, row) for row in ids])
        assert difference(found, expected) < BOUNDS["bfloat16"]


def test_the_cache_holds_turned_keys_and_values(library: Library) -> None:
    """Against the projections of the first layer; columns behind the last one stay untouched."""
    shape = SHAPES[0]
    table = make(shape, "float32")
    ids = tokens(shape, 1, 3)
    decoding = Decoding(library, table, rows=1, columns=5)
    decoding.feed(ids, np.zeros(1, dtype=int))
    layer = table.layers[0]
    qkv = (normed(wide(table.embedding)[ids[0]], layer.attention_norm) @ wide(layer.qkv)).reshape(3, -1, 16)
    np.testing.assert_allclose(decoding.values[0].numpy()[0, :, :3].transpose(1, 0, 2), qkv[:, 6:], atol=1e-5)
    at = turns(3, 16).astype(np.float64)[:, None]
    k = qkv[:, 4:6]
    even = k[..., 0::2] * at[..., 0::2] - k[..., 1::2] * at[..., 1::2]
    np.testing.assert_allclose(
        decoding.keys[0].numpy()[0, :, :3].transpose(1, 0, 2)[..., 0::2], even, atol=1e-5
    )
    assert np.isnan(decoding.keys[0].numpy()[0, :, 3:]).all()


def test_reading_memory_takes_whole_mebibytes(library: Library) -> None:
    memory = np.zeros(3 << 20, dtype=np.uint8)
    stream(library, memory)
    assert not memory.any()
