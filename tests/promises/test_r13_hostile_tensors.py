"""R13: safetensors and `.npz` files may hold anything; checked statistics or a named error come out, and nothing expands."""

from __future__ import annotations

import copy
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas_plugin.editors import kept_prior
from nas_plugin.errors import StatisticsError
from nas_plugin.files import write_tensors
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.npz import read_npz
from nas_plugin.model.editable import EditableModel
from tests.conftest import build_model
from tests.promises.hostile import FUZZ, damaged, little_memory, mangled, survives
from tests.support import moments, tiny_hparams

WIDTH = 16
# Where a file lies about types, shapes and places, beside the types that safetensors knows.
TYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "I64",
    "I8",
    "U64",
    "U8",
    "BOOL",
    "C64",
    "E",
    "",
]
NUMBERS = st.sampled_from(
    [0, 1, 2, 16, 2**20, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**400, -1, 1.5, "1", None]
)
NAMES = [
    "layer.²",
    "layer.1 ",
    "layer.-1",
    "layer." + "1" * 5000,
    "1",
    "layer.01",
    "layer.1",
    "prior",
    "",
    "\0",
    "x" * 5000,
]


def file_of(header: Any, body: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def split(data: bytes) -> tuple[Any, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@st.composite
def hostile_tensors(draw: st.DrawFn, good: bytes) -> bytes:
    """A good file of which the header lies, or that is damaged in its bytes or its length."""
    kind = draw(
        st.sampled_from(["bytes", "mangled", "header", "tensor", "tensor", "consistent", "consistent", "length"])
    )
    if kind == "bytes":
        return draw(st.binary(max_size=60))
    if kind == "mangled":
        return draw(mangled(good))
    header, body = split(good)
    if kind == "length":
        return file_of(header, body, draw(st.sampled_from([0, 1, 2**31, 2**32, 2**63, 2**64 - 1, len(good)])))
    if kind == "header":
        return file_of(draw(damaged(header)), body)
    names = [name for name in header if name != "__metadata__"]
    entry = copy.deepcopy(header.pop(draw(st.sampled_from(names))))
    if kind == "tensor":
        entry["dtype"] = draw(st.sampled_from(TYPES))
        entry["shape"] = draw(st.lists(NUMBERS, max_size=4))
        entry["data_offsets"] = draw(st.lists(NUMBERS, max_size=3) | st.just(entry["data_offsets"]))
    else:
        # Well-formed for safetensors, and not what the reader wants: another type, shape or name.
        dtype, size = draw(
            st.sampled_from([("F64", 8), ("F32", 4), ("BF16", 2), ("F8_E4M3", 1), ("I64", 8), ("BOOL", 1), ("C64", 8)])
        )
        shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, WIDTH]), max_size=4))
        body = draw(st.binary(max_size=4)) * (8 * int(np.prod(shape))) + b"\0" * (8 * int(np.prod(shape)))
        body = body[: size * int(np.prod(shape))]
        header = {"__metadata__": header["__metadata__"]}
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(body)]}
    header[draw(st.sampled_from(NAMES))] = entry
    if draw(st.booleans()):
        header["__metadata__"][draw(st.sampled_from(["format", "tokens", "model", "dtype"]))] = draw(
            st.sampled_from(["", "-1", "²", "1" * 5000, "x" * 5000, "nan"]) | st.text(max_size=4)
        )
    return file_of(header, body)


@st.composite
def hostile_npz(draw: st.DrawFn) -> bytes:
    """An archive of arrays of which headers lie about types, shapes and sizes."""
    out = BytesIO()
    compression = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name in ("mom2.mom2", "mom2.count"):
            shape = draw(
                st.sampled_from(
                    [(), (1,), (3, 3), (3, 3), (0, 0), (2, 3), (3, 3, 3), (10**6, 10**6), (2**40, 2**40), (-1, -1)]
                )
            )
            descr = draw(
                st.sampled_from(
                    ["<f4", ">f8", "<f2", "<f16", "<c8", "<i8", "<u8", "|b1", "|O", "<U3", "|S5", "<M8[D]", "|V9"]
                )
            )
            if name == "mom2.count" and draw(st.booleans()):
                shape, descr = draw(st.sampled_from([(), (1,)])), draw(st.sampled_from(["<i8", "<f8"]))
            header = draw(
                st.sampled_from([
                    f"{{'descr': {descr!r}, 'fortran_order': {draw(st.booleans())}, 'shape': {shape}, }}",
                    f"{{'descr': {descr!r}, 'fortran_order': 1, 'shape': {shape}, }}",
                    f"{{'descr': [('a', {descr!r})], 'fortran_order': False, 'shape': {shape}, }}",
                    f"{{'descr': {descr!r}, 'shape': {shape}}}", "(" * 500, "[" * 9000, "-" * 9000 + "1",
                    "__import__('os')", "", "{}" + " " * 70_000,
                ])
            )  # fmt: skip
            text = header.encode() + b"\n"
            version = draw(st.sampled_from([b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\7\0"]))
            packed = struct.pack("<I", len(text)) if version[0] > 1 else struct.pack("<H", min(len(text), 65_535))
            body = draw(
                st.sampled_from(
                    [
                        b"\0" * 80,
                        b"\1" * 144,
                        np.arange(9.0).tobytes(),
                        np.full(9, np.nan).tobytes(),
                        np.full(9, np.inf).tobytes(),
                    ]
                )
            )
            archive.writestr(
                f"{name}{draw(st.sampled_from(['.npy', '.npy', '.npy', '']))}",
                b"\x93NUMPY" + version + packed + text + body,
            )
    return draw(mangled(out.getvalue())) if draw(st.booleans()) else out.getvalue()


def em() -> EditableModel:
    return EditableModel(build_model("llama", torch.float32, 0), tiny_hparams("MEMIT"))


@pytest.fixture(autouse=True, scope="module")
def memory() -> Iterator[None]:
    moments("llama", (0, 1), torch.float32, 0)
    with little_memory():
        yield


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return em()


@FUZZ
@given(data=st.data())
def test_second_moments(tmp_path: Path, model: EditableModel, data: st.DataObject) -> None:
    path = tmp_path / "moments.safetensors"
    moments("llama", (0, 1), torch.float32, 0).save(path)
    good = path.read_bytes()
    path.write_bytes(data.draw(hostile_tensors(good)))

    def read() -> SecondMoments:
        found = SecondMoments.load(path)
        assert found.tokens >= 0 and all(matrix.dim() == 2 for matrix in found.matrices.values())
        found.check(model, found.provenance.get("model", ""))
        return found

    survives(read)


@FUZZ
@given(data=st.data())
def test_a_prior(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "prior.safetensors"
    write_tensors(path, {"prior": torch.eye(WIDTH, dtype=torch.float64)}, {"format": "nas-plugin-prior-1"})
    path.write_bytes(data.draw(hostile_tensors(path.read_bytes())))
    prior = survives(lambda: kept_prior(path, WIDTH, lambda: torch.zeros(0)))
    assert prior is None or (prior.shape == (WIDTH, WIDTH) and prior.dtype == torch.float64)


@FUZZ
@given(data=st.data())
def test_npz(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "stats.npz"
    np.savez(path, **{"mom2.mom2": np.eye(3, dtype=np.float32), "mom2.count": np.array(7)})
    path.write_bytes(data.draw(hostile_npz() | mangled(path.read_bytes()) | st.binary(max_size=60)))
    found = survives(lambda: read_npz(path))
    if found is not None:
        matrix, count = found
        assert matrix.dim() == 2 and matrix.shape[0] == matrix.shape[1] and matrix.is_floating_point() and count > 0


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_good_npz_are_read(tmp_path: Path, dtype: str, save: Callable[..., None]) -> None:
    matrix = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(dtype)
    save(tmp_path / "stats.npz", **{"mom2.mom2": matrix, "mom2.count": np.array(5), "mom2.constructor": np.array("x")})
    found, count = read_npz(tmp_path / "stats.npz")
    assert count == 5 and torch.allclose(found, torch.from_numpy((matrix / 5).astype(dtype.replace(">", "<"))))


def test_a_small_archive_of_a_large_array_is_not_unpacked(tmp_path: Path) -> None:
    path, side = tmp_path / "stats.npz", 8_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("mom2.mom2.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (side, side)})
            for _ in range(side):
                file.write(bytes(4 * side))
        with archive.open("mom2.count.npy", "w") as file:
            np.lib.format.write_array(file, np.array(3))
    assert path.stat().st_size < 2 * 2**20
    with pytest.raises(StatisticsError, match="would grow to"):
        read_npz(path)


@pytest.mark.parametrize("name", ["numbers.npy", "text.npz", "empty.npz", "folder.npz", "gone.npz", "locked.npz"])
def test_what_is_no_archive(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "numbers.npy":
        np.save(path, np.eye(3))
    elif name == "text.npz":
        path.write_text("text")
    elif name == "empty.npz":
        path.write_bytes(b"")
    elif name == "folder.npz":
        path.mkdir()
    elif name == "locked.npz":
        np.savez(path, **{"mom2.mom2": np.eye(3), "mom2.count": np.array(7)})
        data = bytearray(path.read_bytes())
        # The flag of an entry that is encrypted, in both places that have it.
        for sign, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            start = -1
            while (start := data.find(sign, start + 1)) >= 0:
                data[start + offset] |= 1
        path.write_bytes(bytes(data))
    with pytest.raises(StatisticsError):
        read_npz(path)
    if path.exists():
        for read in (SecondMoments.load, lambda file: kept_prior(file, 3, lambda: torch.zeros(0))):
            with pytest.raises(StatisticsError):
                read(path)


@pytest.mark.parametrize("shape", [[0, 2**62], [2**62, 0], [2**31, 2**31, 0], [0], [], [1] * 70])
@pytest.mark.parametrize("dtype", ["F32", "F8_E8M0", "F4", "C64"])
def test_shapes_that_torch_cannot_make(tmp_path: Path, shape: list[int], dtype: str) -> None:
    size = {"F32": 4, "F8_E8M0": 1, "F4": 1, "C64": 8}[dtype] * int(0 not in shape)
    header = {"__metadata__": {"format": "nas-plugin-second-moments-1", "tokens": "1"}}
    (tmp_path / "x.safetensors").write_bytes(
        file_of(header | {"layer.0": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}, bytes(size))
    )
    with pytest.raises(StatisticsError):
        SecondMoments.load(tmp_path / "x.safetensors").check(em(), "")
