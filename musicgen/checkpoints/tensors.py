"""safetensors files: written one tensor at a time, read by mapping them into memory."""

import hashlib
import json
import mmap
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from musicgen.errors import WeightsError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 64  # bytes; the first tensor begins at a multiple
READ_SIZE = 8 * 2**20  # bytes
RELEASE = 64 * 2**20  # bytes of tensors returned, after which their pages are unmapped


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each a view of the mapped file: nothing is copied.

    After every RELEASE bytes of returned tensors, all pages are unmapped from this process; they
    stay in the page cache. So a loop that copies tensors to a GPU or to another file never holds
    the whole file in memory. A view stays valid: the next access maps its pages again.
    """

    def __init__(self, path: Path) -> None:
        """Raises WeightsError for a file that is truncated or not a safetensors file."""
        try:
            if not path.is_file():  # opening a pipe would block for ever
                raise ValueError("not a regular file")
            with safe_open(path, framework="pt"):
                pass  # checks that the header is valid and describes the whole file
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (SafetensorError, OSError, ValueError, RecursionError) as exc:
            raise WeightsError(
                f"{path} is not a complete safetensors file ({exc}); fetch or convert it again."
            ) from exc
        self.path = path
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self._header: dict[str, dict[str, Any]] = header
        self._start = 8 + size
        self._returned = 0

    def __getitem__(self, key: str) -> Tensor:
        entry = self._header[key]
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise WeightsError(
                f"{self.path}: {key} has dtype {entry['dtype']}, which is not supported."
            )
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        self._release(end - begin)
        offset, count = self._start + begin, prod(shape)
        if offset % dtype.itemsize:  # other writers may not align tensors; torch requires it
            return torch.frombuffer(
                bytearray(self._map[offset : self._start + end]), dtype=dtype
            ).view(shape)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)

    def __contains__(self, key: object) -> bool:
        return key in self._header

    def _release(self, size: int) -> None:
        """Count `size` returned bytes; unmap all pages once in RELEASE bytes.

        All pages, because a tensor may be read long after it was returned.
        """
        self._returned += size
        if self._returned > RELEASE:
            self._returned = 0
            self._map.madvise(mmap.MADV_DONTNEED)


def read_ahead(path: Path) -> None:
    """Read a file into the page cache in the background, at the speed of the disk.

    Page faults of a mapped file reach half of that speed, and start at the first access.
    """

    def read() -> None:
        buffer = bytearray(READ_SIZE)
        with suppress(OSError), path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    threading.Thread(target=read, daemon=True).start()


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: Callable[[str, Tensor], torch.dtype],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write `tensors` in order, each converted to `dtype(name, tensor)`; returns the file's sha256.

    Unlike the library's `save_file`, it holds one tensor at a time in memory and computes the hash
    while writing. Raises WeightsError naming a tensor whose values do not fit its dtype.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    targets, offset = {}, 0
    for name, tensor in tensors.items():
        targets[name] = dtype(name, tensor)
        size = tensor.numel() * targets[name].itemsize
        header[name] = {
            "dtype": NAMES[targets[name]],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for name, target in targets.items():
            data = _bytes(path, name, tensors[name], target)
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def _bytes(path: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> Any:
    converted = tensor.to(dtype).contiguous()
    narrower = dtype.itemsize < tensor.dtype.itemsize
    if narrower and not converted.isfinite().all():
        raise WeightsError(f"{path.name}: {name} has values that are not finite as {dtype}.")
    return converted.reshape(-1).view(torch.uint8).numpy()
