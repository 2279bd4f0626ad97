"""A result that is damaged or hostile is refused by name, before anything is allocated."""

import hashlib
import io
import os
import re
import zipfile

import numpy as np
import pytest

from dltheory.experiment import store

ARRAYS = {"values": np.arange(6.0).reshape(2, 3), "flag": np.array(True)}
MANIFEST = {"config": {"width": 4}}


@pytest.mark.parametrize("name", [store.ARRAYS, store.MANIFEST])
def test_every_flip_and_every_truncation_is_detected_by_name(tmp_path, name):
    store.save(tmp_path / "r", ARRAYS, MANIFEST)
    path = tmp_path / "r" / name
    whole = path.read_bytes()
    flips = [
        whole[:i] + bytes([byte ^ 1 << i % 8]) + whole[i + 1 :] for i, byte in enumerate(whole)
    ]
    cuts = [whole[:i] for i in range(len(whole))]
    for damaged in [*flips, *cuts, whole + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(store.ResultError, match=re.escape(str(path))):
            store.load(tmp_path / "r")
    path.write_bytes(whole)
    np.testing.assert_array_equal(store.load(tmp_path / "r")[1]["values"], ARRAYS["values"])


def test_an_absent_file_is_named(tmp_path):
    for name in (store.ARRAYS, store.MANIFEST):
        store.save(tmp_path / name.removesuffix(".npz"), ARRAYS, MANIFEST)
        (tmp_path / name.removesuffix(".npz") / name).unlink()
        with pytest.raises(store.ResultError, match=f"{name} is absent"):
            store.load(tmp_path / name.removesuffix(".npz"))


def forge(folder, data, **entries):
    """Write a folder whose hashes are right, as an adversary could."""
    folder.mkdir()
    (folder / store.ARRAYS).write_bytes(data)
    files = {store.ARRAYS: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    manifest = {"format": store.FORMAT, "files": files, **entries}
    (folder / store.MANIFEST).write_bytes(store._seal(manifest))


def npz(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(header, payload=b""):
    text = (header + " " * (-(len(header) + 11) % 64) + "\n").encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + payload


def header(shape, descr="<f8", order="False"):
    return f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"


PICKLE = io.BytesIO()
np.lib.format.write_array(PICKLE, np.array([{}], object), allow_pickle=True)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (npz({"a.npy": npy(header((2**40,)))}), r"claims shape \(1099511627776,\), its bytes say"),
        (npz({"a.npy": npy(header((-1, -8)), b"\0" * 64)}), "its bytes say otherwise"),
        (npz({"a.npy": npy(header((2, 2), order="True"), b"\0" * 32)}), "its bytes say otherwise"),
        (npz({"a.npy": npy(header((1,)), b"\0" * 9)}), "its bytes say otherwise"),
        (npz({"a.npy": PICKLE.getvalue()}), "is of dtype object"),
        (npz({"a.npy": b"\0" * 10**6}, zipfile.ZIP_DEFLATED), "a member is compressed"),
        (npz({"../a.npy": npy(header((1,)), b"\0" * 8)}), "'../a' cannot be a folder"),
        (npz({"a.npy": b"hello"}), "is no result"),
        (b"hello", "not a zip file"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_hostile_arrays_with_right_hashes_are_refused(tmp_path, data, text):
    forge(tmp_path / "r", data)
    with pytest.raises(store.ResultError, match=text) as caught:
        store.load(tmp_path / "r")
    assert str(tmp_path / "r" / store.ARRAYS) in str(caught.value)


def test_hostile_manifests_are_refused(tmp_path):
    forge(tmp_path / "a", b"", files={})
    with pytest.raises(store.ResultError, match=r"manifest.json does not describe arrays.npz"):
        store.load(tmp_path / "a")
    forge(tmp_path / "b", b"", format=99)
    with pytest.raises(store.ResultError, match="is of format 99, this version reads 1"):
        store.load(tmp_path / "b")
    forge(tmp_path / "c", b"")
    (tmp_path / "c" / store.MANIFEST).write_bytes(b"[" * 10**6)
    with pytest.raises(store.ResultError, match=r"manifest.json is damaged"):
        store.load(tmp_path / "c")


def test_a_link_is_not_followed(tmp_path):
    store.save(tmp_path / "r", ARRAYS, MANIFEST)
    (tmp_path / "r" / store.ARRAYS).rename(tmp_path / "elsewhere")
    (tmp_path / "r" / store.ARRAYS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(store.ResultError, match=r"arrays.npz cannot be read"):
        store.load(tmp_path / "r")


def test_a_file_that_never_ends_is_refused(tmp_path):
    store.save(tmp_path / "r", ARRAYS, MANIFEST)
    (tmp_path / "r" / store.ARRAYS).unlink()
    os.mkfifo(tmp_path / "r" / store.ARRAYS)
    with pytest.raises(store.ResultError, match=r"arrays.npz is no plain file of at most"):
        store.load(tmp_path / "r")
