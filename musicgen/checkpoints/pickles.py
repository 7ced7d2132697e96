"""Files written by torch.save, read without executing the code that a pickle can contain.

torch's own reader (weights_only=True) executes no code, but calls a few classes whose arguments can
ask for any amount of memory. Therefore the pickle is scanned before it is loaded: it may refer to
nothing but the functions and classes listed here and by the caller.
"""

import pickle
import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from musicgen.checkpoints.reading import damage_reported
from musicgen.errors import WeightsError

# What the pickle of tensors and plain data refers to.
TENSOR_NAMES = {
    "collections.OrderedDict",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    *(
        f"torch.{kind}Storage"
        for kind in ["BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half"]
    ),
    *(f"torch.{kind}Storage" for kind in ["Int", "Long", "Short"]),
}
# Operations that name something to be called in another way. torch.save writes none of them.
FOREIGN_OPERATIONS = {"EXT1", "EXT2", "EXT4", "INST", "NEWOBJ_EX", "OBJ", "STACK_GLOBAL"}
# Names that pickle protocol 2 uses for those of Python 3.
PYTHON2_NAMES = {f"__builtin__.{name}": f"builtins.{name}" for name in ("dict", "int", "list")}
PYTHON2_NAMES["__builtin__.long"] = "builtins.int"
# A published checkpoint's pickle has less than a tenth: about 25 for each tensor.
MAX_OPERATIONS = 1_000_000
LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
EXPORT = (
    "This is a checkpoint of training. Export it with audiocraft.utils.export.export_lm("
    "'checkpoint.th', 'state_dict.bin'), and an EnCodec with export_encodec."
)


def read_package(path: Path, allowed: tuple[Any, ...] = ()) -> dict[Any, Any]:
    """The dictionary that torch.save wrote to `path`, memory-mapped.

    `allowed` lists the classes and functions that it may refer to besides tensors and plain data. A
    file that would become larger in memory than it is on the disk is refused.
    """
    try:
        with damage_reported(path), torch.serialization.safe_globals(list(allowed)):
            _check_format(path)
            _check_stored(path)
            _check_pickle(path, allowed)
            package = _load(path)
    except WeightsError as exc:
        raise WeightsError(
            f"{exc} Only tensors and plain data are loaded: code in it is never executed."
        ) from exc.__cause__
    if not isinstance(package, dict):
        raise WeightsError(f"{path} holds a {type(package).__name__}, not a checkpoint.")
    with damage_reported(path):  # looking at a damaged object may raise
        _check_tensors(path, package, path.stat().st_size)
    return package


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as exc:  # its message advises to execute the code
        raise ValueError("its pickle is not one of tensors and plain data") from exc


def _check_format(path: Path) -> None:
    """Refuse torch's format before version 1.6, which is a series of pickles and not a zip."""
    with path.open("rb") as file:
        if file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC:
            raise WeightsError(
                f"{path} has PyTorch's format before version 1.6, which is not read. Convert it: "
                "torch.save(torch.load(PATH, weights_only=True), PATH)."
            )


def _check_stored(path: Path) -> None:
    """torch does not compress, so a compressed part means a zip bomb or another program's zip."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("it is compressed")
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise ValueError("its parts are larger than the file")


def _check_pickle(path: Path, allowed: Iterable[Any]) -> None:
    """Raise WeightsError for a pickle that refers to anything that is not allowed."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".pkl")]
        if len(names) != 1:
            raise ValueError(f"it has {len(names)} pickles, not one")
        with archive.open(names[0]) as file:
            found = _references(file)
    unknown = sorted(found - TENSOR_NAMES - {_name(item) for item in allowed})
    if unknown:
        training = any(name.startswith("omegaconf.") for name in unknown)
        hint = EXPORT if training else "Fetch or convert it again."
        raise WeightsError(
            f"{path} refers to {unknown[0]}, which a checkpoint does not need. {hint}"
        )


def _references(file: IO[bytes]) -> set[str]:
    """The full names of everything that a pickle imports."""
    found = set()
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if count > MAX_OPERATIONS:
            raise ValueError(f"its pickle has more than {MAX_OPERATIONS} operations")
        if operation.name in FOREIGN_OPERATIONS:
            raise ValueError(f"its pickle has the operation {operation.name}")
        if operation.name == "GLOBAL":
            name = ".".join(str(argument).split(" ", 1))
            found.add(PYTHON2_NAMES.get(name, name))
    return found


def _name(item: Any) -> str:
    """The full name of a class or function, or of what a pair (function, name) replaces."""
    return item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__name__}"


def _check_tensors(path: Path, package: dict[Any, Any], size: int) -> None:
    """Refuse tensors that claim more bytes than the file has (by stride 0), or are not strided."""
    # Each object once: dictionaries that share their values could take for ever.
    seen: dict[int, Any] = {}
    left: list[Any] = [package]
    while left:
        found = left.pop()
        if id(found) in seen:
            continue
        seen[id(found)] = found
        if isinstance(found, dict):  # not OmegaConf's mappings: reading those would resolve them
            left.extend(found.values())
        elif isinstance(found, list | tuple):
            left.extend(found)
        elif isinstance(found, Tensor) and (
            found.layout != torch.strided
            or found.is_quantized
            or found.is_meta
            or found.nbytes > size
        ):
            raise WeightsError(
                f"{path} holds a tensor that is larger than the file, or not a plain one."
            )
