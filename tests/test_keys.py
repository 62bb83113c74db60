"""The key file: made for its owner only, changed as a whole, and refused in plain words; and `gapconn keygen`."""

from __future__ import annotations

import itertools
import os
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gapconn import keys
from gapconn.cli import main
from gapconn.errors import ConfigError
from gapconn.protocol.security import Keys

GOOD = f'use = 1\n[keys]\n1 = "{"a1" * 32}"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "orders.key"


def put(path: Path, text: str | bytes, mode: int = 0o600) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)


def keygen(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["keygen", *map(str, arguments)], prog_name="gapconn")


def test_a_new_file_has_one_key_and_is_private(path: Path) -> None:
    before = os.umask(0)
    try:
        made = keys.create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.load_keys(path) == made
    assert (made.use, list(made.secrets)) == (1, [1])
    assert len(made.secrets[1]) == 32
    assert keys.create(path.with_name("other")).secrets != made.secrets


@pytest.mark.parametrize("existing", [str.encode(GOOD), b"", None])
def test_an_existing_file_is_left_as_it_is(path: Path, existing: bytes | None) -> None:
    if existing is None:
        path.symlink_to(path.with_name("nowhere"))
    else:
        put(path, existing)
    with pytest.raises(ConfigError, match="exists already"):
        keys.create(path)
    assert path.is_symlink() if existing is None else path.read_bytes() == existing


def test_keys_are_added_put_into_use_and_removed(path: Path) -> None:
    first = keys.create(path).secrets[1]
    assert keys.add(path) == 2
    second = keys.load_keys(path).secrets[2]
    assert second != first
    assert keys.load_keys(path) == Keys(use=1, secrets={1: first, 2: second})
    keys.use(path, 2)
    assert keys.load_keys(path) == Keys(use=2, secrets={1: first, 2: second})
    keys.remove(path, 1)
    assert keys.load_keys(path) == Keys(use=2, secrets={2: second})
    assert keys.add(path) == 3, "not 1 again, which may still be in another copy"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [other.name for other in path.parent.iterdir()] == [path.name], "nothing is left beside it"


def test_ids_are_used_again_only_when_there_are_no_others(path: Path) -> None:
    put(path, f'use = 255\n[keys]\n255 = "{"a1" * 32}"\n')
    assert [keys.add(path) for _ in range(254)] == list(range(1, 255))
    with pytest.raises(ConfigError, match="all ids"):
        keys.add(path)


def test_a_changed_file_keeps_its_rights_and_a_link_to_it_stays_one(path: Path) -> None:
    keys.create(path)
    path.chmod(0o400)
    link = path.with_name("link.key")
    link.symlink_to(path)
    keys.add(link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert list(keys.load_keys(path).secrets) == [1, 2]


def test_every_change_gives_another_stamp(path: Path) -> None:
    assert keys.Stamp.of(path) is None
    keys.create(path)
    stamps = [keys.Stamp.of(path)]
    for change in (lambda: keys.add(path), lambda: keys.use(path, 2), lambda: keys.use(path, 1)):
        change()
        stamps.append(keys.Stamp.of(path))
    assert all(before != after for before, after in itertools.pairwise(stamps))


@pytest.mark.parametrize("mode", [0o601, 0o602, 0o604, 0o610, 0o620, 0o640, 0o644, 0o660, 0o666, 0o777])
def test_a_file_that_others_may_touch_is_refused(path: Path, mode: int) -> None:
    put(path, GOOD, mode)
    with pytest.raises(ConfigError) as caught:
        keys.load_keys(path)
    (problem,) = caught.value.problems
    assert problem == f"{path}: others may read or change this key file (mode 0{mode:o}): chmod 600 {path}"


def test_the_group_may_read_a_file_of_another_owner(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers get them: owned by root, and the process reads it by its group."""
    put(path, GOOD, 0o640)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert keys.load_keys(path).use == 1
    path.chmod(0o660)
    with pytest.raises(ConfigError, match="chmod 640"):
        keys.load_keys(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 640"):
        keys.load_keys(path)


ANOTHER = f'2 = "{"b2" * 32}"\n'

BAD_FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "no key is in it"),
    "no TOML": ("use = 1\n[keys]\n1 = " + "a1" * 32, "which is TOML: wrong (at line 3, column"),
    "not text": (b"\xff\xfe" + GOOD.encode("utf-16"), "not text"),
    "too long": (GOOD + "#" * 65_536, "longer than 65536 bytes"),
    "no keys": ("use = 1\n", "no key is in it"),
    "keys is no table": ('use = 1\nkeys = "a"\n', "no key is in it"),
    "no use": (GOOD.replace("use = 1\n", ""), "use: missing"),
    "use is text": (GOOD.replace("use = 1", 'use = "1"'), "use: not a whole number"),
    "use is true": (GOOD.replace("use = 1", "use = true"), "use: not a whole number"),
    "use of an absent key": (GOOD.replace("use = 1", "use = 9") + ANOTHER, "there is no key 9, only: 1, 2"),
    "id 0": (GOOD + f'0 = "{"b2" * 32}"\n', "'0' is not the id of a key, allowed: 1 to 255"),
    "id 256": (GOOD + f'256 = "{"b2" * 32}"\n', "'256' is not the id of a key"),
    "id with a zero in front": (GOOD + f'02 = "{"b2" * 32}"\n', "'02' is not the id of a key"),
    "id in words": (GOOD + f'two = "{"b2" * 32}"\n', "'two' is not the id of a key"),
    "short secret": (GOOD + f'2 = "{"b2" * 31}"\n', "key 2 is not 64 hexadecimal digits"),
    "long secret": (GOOD + f'2 = "{"b2" * 33}"\n', "key 2 is not 64 hexadecimal digits"),
    "secret of other letters": (GOOD + f'2 = "{"z2" * 32}"\n', "key 2 is not 64 hexadecimal digits"),
    "secret is a number": (GOOD + "2 = 12345\n", "key 2 is not 64 hexadecimal digits"),
    "the same secret twice": (GOOD + f'2 = "{"A1" * 32}"\n', "keys 1 and 2 are the same"),
    "an unknown key": ("version = 1\n" + GOOD, "unknown key 'version', allowed: use, keys"),
}


@pytest.mark.parametrize(("content", "words"), BAD_FILES.values(), ids=list(BAD_FILES))
def test_a_bad_file_is_refused_with_what_is_wrong(path: Path, content: str | bytes, words: str) -> None:
    put(path, content)
    with pytest.raises(ConfigError) as caught:
        keys.load_keys(path)
    assert all(problem.startswith(f"{path}: ") for problem in caught.value.problems)
    assert words in str(caught.value)
    for part in ("a1a1", "A1A1", "b2b2", "z2z2", "12345"):
        assert part not in str(caught.value), "a secret is shown"


def absent(path: Path) -> None:
    pass


def directory(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.parametrize(
    ("make", "words"),
    [(absent, "gapconn keygen"), (directory, "a directory, not a key file"), (device, "not a regular file")],
)
def test_what_is_no_file_is_refused(path: Path, make: Callable[[Path], None], words: str) -> None:
    make(path)
    with pytest.raises(ConfigError, match=words):
        keys.load_keys(path)


def test_a_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, GOOD)

    def denied(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ConfigError, match=f"user {os.geteuid()} may not read the key file: chown"):
        keys.load_keys(path)


def test_a_change_that_cannot_be_written_leaves_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, GOOD)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        keys.add(path)
    assert path.read_text() == GOOD
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_keys_do_not_show_their_secrets() -> None:
    assert "aa" not in repr(Keys(use=1, secrets={1: b"\xaa" * 32}))
    shown = keys.overview(Keys(use=2, secrets={2: b"\xaa" * 32, 1: b"\xbb" * 32}))
    assert list(shown) == [1, 2]
    assert len(set(shown.values())) == 2
    assert all("aa" * 4 not in text and len(text) == 19 for text in shown.values())


def test_keygen_from_the_first_key_to_the_next(path: Path) -> None:
    made = keygen(path)
    assert made.exit_code == 0
    assert made.stdout.split()[:2] == ["key", "1"]
    assert made.stdout.endswith("  in use\n")
    assert keygen("--add", path).stdout.count("key ") == 2
    used = keygen("--use", "2", path)
    assert [line.endswith("in use") for line in used.stdout.splitlines()] == [False, True]
    assert keygen("--remove", "1", path).stdout == keygen("--show", path).stdout
    secret = tomllib.loads(path.read_text())["keys"]["2"]
    assert all(secret[:8] not in result.output for result in (made, used))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "exists already, and is left as it is"),
        (["--use", "7"], "there is no key 7, only: 1"),
        (["--remove", "7"], "there is no key 7, only: 1"),
        (["--remove", "1"], "key 1 is in use"),
        (["--add", "--show"], "only one of"),
        (["--use", "1", "--remove", "1"], "only one of"),
        (["--use", "x"], "not a valid integer"),
    ],
)
def test_keygen_refuses(path: Path, arguments: list[str], words: str) -> None:
    put(path, GOOD)
    result = keygen(*arguments, path)
    assert result.exit_code == 2
    assert words in result.stderr
    assert path.read_text() == GOOD


def test_keygen_where_nothing_can_be_written(tmp_path: Path) -> None:
    result = keygen(tmp_path / "absent" / "orders.key")
    assert result.exit_code == 2
    assert "cannot be written: No such file or directory" in result.stderr
