"""Results on disk: a folder each, written whole or not at all, and never read back wrong.

A result is `arrays.npz` and `manifest.json`. The manifest says where the arrays come from and
holds a SHA-256 of them and of itself. Nothing is pickled.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
ARRAYS = "arrays.npz"
MANIFEST = "manifest.json"

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_TEMPORARY = re.compile(r"\.tmp-.+-[0-9a-f]{16}")
_MANIFEST_LIMIT = 1 << 24
# Fixed, so that the same arrays are the same bytes whenever they are written.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


class ResultError(RuntimeError):
    """A result on disk that is absent, damaged, or not the one asked for."""


def check_name(name: Any, what: str = "name") -> str:
    """Return a name that is safe as one folder on every system, or refuse it.

    Args:
        name: The name.
        what: What is named, for the error text.

    Returns:
        The name, unchanged.

    Raises:
        ValueError: If it is anything but 1 to 100 of the characters `A-Z a-z 0-9 . _ -`, begins
            with a mark, ends with a dot, or is a device of Windows.

    >>> check_name("jacobians_through_depth")
    'jacobians_through_depth'
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _DEVICE.fullmatch(name):
        raise ValueError(
            f"{what} {name!r} cannot be a folder: use 1 to 100 of A-Z a-z 0-9 . _ -, "
            "a letter or digit first, no dot last, and none of CON, PRN, AUX, NUL, COM1, LPT1"
        )
    return name


def check_dtype(name: str, dtype: Any) -> None:
    """Refuse an array that a result cannot hold.

    Args:
        name: The array's name, for the error text.
        dtype: Its dtype.

    Raises:
        TypeError: Unless it is one of numpy's own booleans, integers, floats or complex numbers.
    """
    if getattr(dtype, "isbuiltin", 0) != 1 or dtype.kind not in "biufc":
        raise TypeError(
            f"array {name!r} is of dtype {dtype}: results hold booleans, integers, floats and "
            "complex numbers of numpy's own; convert bfloat16 to float32"
        )


def canonical(value: Any) -> str:
    """Write a configuration as the one JSON text that stands for it.

    Args:
        value: A dataclass, or None, bool, int, float, str, and tuples, lists and dicts of them.

    Returns:
        JSON with sorted keys and no spaces; floats to the last bit.

    Raises:
        TypeError: If a leaf is of another type.
        ValueError: If a number is not finite.

    >>> canonical({"width": 64, "weight_var": 1.5})
    '{"weight_var":1.5,"width":64}'
    """
    return json.dumps(_plain(value, "config"), sort_keys=True, separators=(",", ":"))


def fingerprint(value: Any) -> str:
    """Hash a configuration.

    Args:
        value: As `canonical` takes it.

    Returns:
        The SHA-256 of its canonical JSON, in 64 hexadecimal digits.
    """
    return _sha256(canonical(value).encode())


def save(folder: Path, arrays: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Write a result whole or not at all.

    The files are written beside `folder` under a temporary name, synced, and renamed. An error of
    the last step, the sync of the parent folder, may come when the result is already complete;
    trying again then raises `FileExistsError`.

    Args:
        folder: The folder to create.
        arrays: Arrays of booleans, integers, floats or complex numbers, by name.
        manifest: What the arrays are and where they come from, as `canonical` takes it.

    Raises:
        FileExistsError: If the folder is there already, or another process was faster.
        OSError: If the disk fails; the text names the path, and nothing is left behind.
        TypeError: If an array is of objects, text or a type that numpy does not own (bfloat16).
        ValueError: If a name is refused, or the manifest holds a number that is not finite.
    """
    folder = Path(folder)
    check_name(folder.name, "result")
    packed = _pack(arrays)
    entry = {"bytes": len(packed), "sha256": _sha256(packed)}
    sealed = _seal({**_plain(manifest, "manifest"), "format": FORMAT, "files": {ARRAYS: entry}})
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists: a result is written once, remove it to replace it")

    temporary = _temporary(folder)
    try:
        make_folder(folder.parent)
        temporary.mkdir()
        _write(temporary / ARRAYS, packed)
        _write(temporary / MANIFEST, sealed)
        _sync(temporary)
        try:
            # POSIX refuses to rename over a folder that is not empty, so one of many writers wins.
            temporary.rename(folder)
        except OSError as error:
            if os.path.lexists(folder):
                raise FileExistsError(f"{folder} was written by another process") from error
            raise
        _sync(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            error.filename = str(folder)
        raise


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, so that they survive a power loss.

    Args:
        folder: The folder; it may be there.

    Raises:
        OSError: If it cannot be made.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def load(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a result, every byte of it checked.

    Args:
        folder: A folder that `save` wrote.

    Returns:
        The manifest, and the arrays by name (read-only).

    Raises:
        ResultError: If a file is absent, damaged or hostile; the text names it.
    """
    manifest = load_manifest(folder)
    path = Path(folder) / ARRAYS
    try:
        entry = manifest["files"][ARRAYS]
        size, digest = int(entry["bytes"]), entry["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise ResultError(f"{Path(folder) / MANIFEST} does not describe {ARRAYS}") from error
    data = _read(path, size)
    if len(data) != size or _sha256(data) != digest:
        raise ResultError(f"{path} is damaged: its bytes are not those that were written")
    return manifest, _unpack(path, data)


def load_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest of a result alone.

    Args:
        folder: A folder that `save` wrote.

    Returns:
        The manifest.

    Raises:
        ResultError: If it is absent or damaged; the text names it.
    """
    path = Path(folder) / MANIFEST
    data = _read(path, _MANIFEST_LIMIT)
    try:
        manifest = json.loads(data)
        # Written again, an undamaged manifest is the same to the byte, its own hash included.
        intact = isinstance(manifest, dict) and _seal(manifest) == data
    except (ValueError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise ResultError(f"{path} is damaged: its bytes are not those that were written")
    if manifest.get("format") != FORMAT:
        raise ResultError(
            f"{path} is of format {manifest.get('format')}, this version reads {FORMAT}"
        )
    return manifest


def leftovers(root: Path, age: float) -> list[Path]:
    """Find what writers have left behind that were killed before they could rename it.

    Args:
        root: Folder of results; all folders below it are searched, links are not followed.
        age: Seconds since the last change; a writer that lives is done within moments.

    Returns:
        Folders as `save` and `discard` make them, with no other files in them, sorted.
    """
    found, now = [], time.time()
    for parent, folders, _ in os.walk(root):
        for folder in (Path(parent, name) for name in folders if _TEMPORARY.fullmatch(name)):
            files = {path.name for path in folder.rglob("*") if not path.is_dir()}
            old = now - folder.lstat().st_mtime >= age
            if old and not folder.is_symlink() and files <= {ARRAYS, MANIFEST}:
                found.append(folder)
    return sorted(found)


def discard(folder: Path) -> None:
    """Remove a folder whole or not at all: under its name nothing is ever half there.

    Args:
        folder: The folder; it may be absent.
    """
    doomed = _temporary(folder)
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed)


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".tmp-{folder.name}-{secrets.token_hex(8)}")


def _plain(value: Any, path: str) -> Any:
    """Turn a configuration into JSON's own types, exactly."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}: a configuration holds finite numbers only")
        return value
    if type(value) in (tuple, list):
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}: keys are text")
        return {key: _plain(item, f"{path}.{key}") for key, item in value.items()}
    raise TypeError(
        f"{path} is a {type(value).__name__}: a configuration holds None, bool, int, float, str, "
        "tuples, lists, dicts and dataclasses; convert numpy scalars with .item()"
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _seal(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's bytes, with the hash of those bytes inside (of an empty hash, that is)."""

    def text(digest: str) -> bytes:
        sealed = {**manifest, "sha256": digest}
        return (json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    return text(_sha256(text("")))


def _pack(arrays: Mapping[str, Any]) -> bytes:
    """A `.npz` file whose bytes depend on nothing but the arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            check_name(name, "array")
            array = np.asarray(arrays[name], order="C")
            check_dtype(name, array.dtype)
            with archive.open(
                zipfile.ZipInfo(f"{name}.npy", _ZIP_DATE), "w", force_zip64=True
            ) as f:
                np.lib.format.write_array(f, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _unpack(path: Path, data: bytes) -> dict[str, np.ndarray]:
    """Read what `_pack` wrote; every size is compared with the bytes at hand before it is used."""
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED for m in members):
                raise ValueError("a member is compressed")
            if sum(m.file_size for m in members) > len(data):
                raise ValueError("its members claim more bytes than it has")
            for member in members:
                name = check_name(member.filename.removesuffix(".npy"), "array")
                with archive.open(member) as file:
                    arrays[name] = _array(name, file, member.file_size)
    except ResultError:
        raise
    except Exception as error:
        # Zip and npy readers fail in many ways on hostile bytes; all of them are this one.
        raise ResultError(f"{path} is no result: {error}") from error
    return arrays


def _array(name: str, file: Any, size: int) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"array {name!r} is of npy version {version}, want (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    check_dtype(name, dtype)
    claimed = math.prod(shape) * dtype.itemsize
    if fortran_order or min(shape, default=0) < 0 or file.tell() + claimed != size:
        raise ValueError(f"array {name!r} claims shape {shape}, its bytes say otherwise")
    return np.frombuffer(file.read(), dtype).reshape(shape)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path, limit: int) -> bytes:
    """Read a plain file of at most `limit` bytes; a link is not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ResultError(f"{path} is absent") from error
    except OSError as error:
        raise ResultError(f"{path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise ResultError(f"{path} is no plain file of at most {limit} bytes")
        return file.read()
