"""Paths cross byte by byte, and only plain relative ones are taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapconn.filetree import UnsafePathError, open_directory, path_attributes, path_of, printable

names = st.binary(min_size=1, max_size=40).filter(lambda name: not {0, 0x2F} & set(name) and name not in {b".", b".."})


@given(st.lists(names, min_size=1, max_size=6))
def test_every_path_crosses_unchanged(components: list[bytes]) -> None:
    assert path_of(path_attributes(b"/".join(components))) == tuple(components)


@given(st.dictionaries(st.sampled_from(["path", "path_hex"]), st.none() | st.integers() | st.booleans() | st.text()))
def test_any_other_attribute_is_refused_or_a_plain_path(attributes: dict[str, str | int | bool | None]) -> None:
    try:
        components = path_of(attributes)
    except UnsafePathError:
        return
    assert components
    for name in components:
        assert name not in {b"", b".", b".."}
        assert b"/" not in name
        assert b"\0" not in name


def test_a_path_is_printable_whatever_its_bytes() -> None:
    assert printable(b"a/\xff") == printable((b"a", b"\xff")) == "a/\\xff"


def test_a_directory_is_opened_below_the_root_only(tmp_path: Path) -> None:
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    (tmp_path / "root" / "file").touch()
    root = os.open(tmp_path / "root", os.O_RDONLY)
    try:
        inner = open_directory(root, [b"a", b"b"])
        assert os.path.samestat(os.fstat(inner), (tmp_path / "root" / "a" / "b").stat())
        os.close(inner)
        with pytest.raises(FileNotFoundError):
            open_directory(root, [b"new", b"er"])
        os.close(open_directory(root, [b"new", b"er"], create=True))
        assert (tmp_path / "root" / "new" / "er").is_dir()
        for refused in ([b"out"], [b"out", b"root"], [b"file"]):
            with pytest.raises(UnsafePathError, match="symbolic link, or not a directory"):
                open_directory(root, refused)
    finally:
        os.close(root)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to("/")
    root = os.open(tmp_path, os.O_RDONLY)
    before = os.listdir("/proc/self/fd")
    for components in ([b"a", b"link"], [b"a", b"missing"]):
        with pytest.raises((UnsafePathError, FileNotFoundError)):
            open_directory(root, components)
    assert os.listdir("/proc/self/fd") == before
    os.close(root)
