"""Shard files: the tensors of some items as safetensors, a WebDataset tar, Parquet or Arrow.

    .safetensors   tensors "<key>.features", "<key>.kept", "<key>.position", ...
    .tar           for each item <key>.json, its row, and <key>.safetensors, its tensors by name
    .parquet       a record for each item: "key", "row" (JSON), and for each tensor a struct of
    .arrow         "data" (bytes, little endian), "dtype" and "shape"; .arrow is the file format

A file's bytes depend on nothing but its items: no times, no owners, no compression.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from mmtok.errors import InputError
from mmtok.io.files import reason
from mmtok.serving.rows import Row, damaged

Tensors = dict[str, Tensor]
_Item = tuple[str, Callable[[], Tensors]]
_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float16, torch.bfloat16)}
_DTYPES["int64"] = torch.int64


def write(path: Path, form: str, rows: Sequence[Row], made: Mapping[str, Tensors]) -> None:
    """Write items to one file.

    Args:
        path: the file.
        form: one of `FORMATS`.
        rows: of the items in `made`, in the order to write.
        made: key -> tensors by name.
    """
    FORMATS[form][0](path, rows, made)


def read(path: Path, keys: Collection[str]) -> Iterator[tuple[str, Tensors]]:
    """The tensors of some items, in one pass; the format is told by the file's suffix.

    Yields:
        Key and tensors of each that is there, in the order of the file.

    Raises:
        InputError: the file is gone or damaged, or its format needs a package that is not there.
    """
    form = path.suffix.removeprefix(".")
    try:
        if form not in FORMATS:
            raise ValueError(f"no format has the suffix {path.suffix!r}")
        for key, tensors in FORMATS[form][1](path):
            if key in keys:
                yield key, tensors()
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        RuntimeError,
        SafetensorError,
        tarfile.TarError,
    ) as error:
        raise damaged(str(path), reason(error)) from None


def _write_safetensors(path: Path, rows: Sequence[Row], made: Mapping[str, Tensors]) -> None:
    save_file({f"{key}.{name}": x for key, own in made.items() for name, x in own.items()}, path)


def _read_safetensors(path: Path) -> Iterator[_Item]:
    with safe_open(path, "pt") as shard:
        own: dict[str, dict[str, str]] = {}
        for full in shard.keys():  # noqa: SIM118
            key, _, name = full.partition(".")
            own.setdefault(key, {})[name] = full
        for key, names in own.items():
            yield key, partial(_pick, shard, names)


def _pick(shard: Any, names: Mapping[str, str]) -> Tensors:
    return {name: shard.get_tensor(full) for name, full in names.items()}


def _write_tar(path: Path, rows: Sequence[Row], made: Mapping[str, Tensors]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for row in rows:
            parts = {"json": json.dumps(row).encode(), "safetensors": save(made[row["key"]])}
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"{row['key']}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _read_tar(path: Path) -> Iterator[_Item]:
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            key, _, suffix = member.name.partition(".")
            if suffix == "safetensors":
                yield key, partial(_unpack, archive, member)


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Tensors:
    file = archive.extractfile(member)
    return {} if file is None else dict(load(file.read()))


def _table(rows: Sequence[Row], made: Mapping[str, Tensors]) -> Any:
    pa = need_pyarrow()
    names = sorted({name for own in made.values() for name in own})
    cell = pa.struct(
        [("data", pa.large_binary()), ("dtype", pa.string()), ("shape", pa.list_(pa.int64()))]
    )
    columns = {
        "key": pa.array([row["key"] for row in rows], pa.string()),
        "row": pa.array([json.dumps(row) for row in rows], pa.string()),
    }
    for name in names:
        own = [made[row["key"]].get(name) for row in rows]
        columns[name] = pa.array([None if x is None else _cell(x) for x in own], cell)
    return pa.table(columns)


def _cell(x: Tensor) -> dict[str, Any]:
    dtype = str(x.dtype).removeprefix("torch.")
    data = x.contiguous().flatten().view(torch.uint8).numpy().tobytes() if x.numel() else b""
    return {"data": data, "dtype": dtype, "shape": list(x.shape)}


def _write_parquet(path: Path, rows: Sequence[Row], made: Mapping[str, Tensors]) -> None:
    table = _table(rows, made)
    from pyarrow import parquet

    parquet.write_table(table, path, compression="none")


def _read_parquet(path: Path) -> Iterator[_Item]:
    need_pyarrow()
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        yield from _records(file.read())


def _write_arrow(path: Path, rows: Sequence[Row], made: Mapping[str, Tensors]) -> None:
    table = _table(rows, made)
    from pyarrow import ipc

    with ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)


def _read_arrow(path: Path) -> Iterator[_Item]:
    pa = need_pyarrow()
    from pyarrow import ipc

    with pa.memory_map(str(path)) as file:
        yield from _records(ipc.open_file(file).read_all())


def _records(table: Any) -> Iterator[_Item]:
    columns = {n: table[n] for n in table.schema.names if n not in ("key", "row")}
    for index, key in enumerate(table["key"].to_pylist()):
        yield key, partial(_record, columns, index)


def _record(columns: Mapping[str, Any], index: int) -> Tensors:
    found = {}
    for name, column in columns.items():
        cell = column[index].as_py()
        if cell is not None:
            flat = torch.frombuffer(bytearray(cell["data"]), dtype=_DTYPES[cell["dtype"]])
            found[name] = flat.reshape(cell["shape"])
    return found


def need_pyarrow() -> Any:
    """The package behind Parquet and Arrow.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise InputError("Parquet and Arrow need pyarrow: pip install 'mmtok[tables]'") from None
    return pyarrow


_Write = Callable[[Path, Sequence[Row], Mapping[str, Tensors]], None]
_Read = Callable[[Path], Iterator[_Item]]

FORMATS: dict[str, tuple[_Write, _Read]] = {
    "safetensors": (_write_safetensors, _read_safetensors),
    "tar": (_write_tar, _read_tar),
    "parquet": (_write_parquet, _read_parquet),
    "arrow": (_write_arrow, _read_arrow),
}
"""By suffix: how to write a shard, and how to read it."""
