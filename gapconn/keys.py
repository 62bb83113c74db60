"""The key file of a sealed link: read, checked, written (docs/operations.md, "Keys").

    use = 2

    [keys]
    1 = "9f2c..."
    2 = "03ab..."

An ingress seals with the key `use`; an egress opens with every key in the file. So a new key is put into the file of
the egress first, and into use at the ingress later. The file is only ever replaced as a whole: a program that reads it
while it is changed sees the old or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self, TextIO

import attrs

from gapconn.errors import ConfigError
from gapconn.private_file import read_private
from gapconn.protocol.security import KEY_ID_MAX, SECRET_BYTES, Keys

_PLAIN_SECRET: Final = re.compile(rf"[0-9a-fA-F]{{{2 * SECRET_BYTES}}}")
_IDS: Final = f"1 to {KEY_ID_MAX}"

_INTRODUCTION: Final = """\
# The secrets of a gapconn link. Whoever reads them can read and forge what crosses: keep this file private.
# Changed by `gapconn keygen`; both ends notice a change while they run.
"""


@attrs.frozen
class Stamp:
    """Tells one content of a file from another without reading it."""

    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """The stamp of the file that is there now; None if none can be seen."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def load_keys(path: Path) -> Keys:
    """The keys in the file at `path`.

    Raises:
        ConfigError: it cannot be read, others can read it, or it is not a key file. No secret is in the message.
    """
    return _parse(path, read_private(path, "key file", remedy=_make_one(path)))


def create(path: Path) -> Keys:
    """A new key file with one new key, for its owner only.

    Raises:
        ConfigError: there is a file already, or it cannot be written.
    """
    keys = Keys(use=1, secrets={1: secrets.token_bytes(SECRET_BYTES)})
    try:
        # Neither replaces a file nor follows a link, and nobody else can open it before its mode is set.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            os.fchmod(descriptor, 0o600)
            _write_durably(file, keys)
        _sync_directory(path.parent)
    except FileExistsError:
        raise ConfigError(
            [f"{path}: exists already, and is left as it is; to add a key to it: gapconn keygen --add {path}"]
        ) from None
    except OSError as error:
        raise _not_written(path, error) from error
    return keys


def add(path: Path) -> int:
    """Put a new key into the file, which is not used yet; its id.

    Raises:
        ConfigError: the file cannot be used or written, or is full.
    """
    keys = load_keys(path)
    # Above all others where possible: the id of a removed key may still be in somebody's copy of the file.
    above = max(keys.secrets) + 1
    free = [above] if above <= KEY_ID_MAX else [i for i in range(1, KEY_ID_MAX + 1) if i not in keys.secrets]
    if not free:
        raise ConfigError(
            [f"{path}: all ids from {_IDS} are taken; remove a key by: gapconn keygen --remove ID {path}"]
        )
    _write(path, Keys(use=keys.use, secrets={**keys.secrets, free[0]: secrets.token_bytes(SECRET_BYTES)}))
    return free[0]


def use(path: Path, key_id: int) -> None:
    """Make `key_id` the key with which an ingress seals.

    Raises:
        ConfigError: the file cannot be used or written, or has no such key.
    """
    keys = load_keys(path)
    _require(path, keys, key_id)
    _write(path, Keys(use=key_id, secrets=keys.secrets))


def remove(path: Path, key_id: int) -> None:
    """Take a key out of the file.

    Raises:
        ConfigError: the file cannot be used or written, has no such key, or the key is in use.
    """
    keys = load_keys(path)
    _require(path, keys, key_id)
    if key_id == keys.use:
        raise ConfigError(
            [f"{path}: key {key_id} is in use; first put another one into use by: gapconn keygen --use ID {path}"]
        )
    _write(path, Keys(use=keys.use, secrets={i: secret for i, secret in keys.secrets.items() if i != key_id}))


def fingerprint(secret: bytes) -> str:
    """What two people can compare to know that they have the same key. The secret cannot be found from it."""
    digest = hashlib.sha256(b"gapconn key fingerprint" + secret).hexdigest()[:16]
    return ":".join(digest[i : i + 4] for i in range(0, 16, 4))


def _make_one(path: Path) -> str:
    return f"make one by: gapconn keygen {path}, and carry it to the other end"


def _require(path: Path, keys: Keys, key_id: int) -> None:
    if key_id not in keys.secrets:
        raise ConfigError([f"{path}: there is no key {key_id}, only: {', '.join(map(str, sorted(keys.secrets)))}"])


def _parse(path: Path, text: str) -> Keys:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # The message names line and column; what stands there may be a part of a secret.
        place = re.search(r"\(at .*\)$", str(error))
        raise ConfigError(
            [f"{path}: not a key file, which is TOML: wrong {place[0] if place else 'somewhere'}"]
        ) from None
    problems = [f"{path}: unknown key {name!r}, allowed: use, keys" for name in table if name not in ("use", "keys")]
    found = _secrets(path, table.get("keys"), problems)
    chosen = table.get("use")
    if "use" not in table:
        problems.append(f"{path}: use: missing: the id of the key with which the ingress seals")
    elif isinstance(chosen, bool) or not isinstance(chosen, int):
        problems.append(f"{path}: use: not a whole number, allowed: the id of one of the keys")
    elif not problems and chosen not in found:
        ids = ", ".join(map(str, sorted(found)))
        problems.append(f"{path}: use: there is no key {chosen}, only: {ids}")
    if problems or not isinstance(chosen, int):
        raise ConfigError(problems)
    return Keys(use=chosen, secrets=found)


def _secrets(path: Path, table: Any, problems: list[str]) -> dict[int, bytes]:
    if not isinstance(table, dict) or not table:
        problems.append(f"{path}: [keys]: no key is in it; make a new file by: gapconn keygen FILE")
        return {}
    found: dict[int, bytes] = {}
    for name, text in table.items():
        if re.fullmatch(r"[1-9][0-9]{0,2}", name) is None or int(name) > KEY_ID_MAX:
            problems.append(f"{path}: [keys]: {name!r} is not the id of a key, allowed: {_IDS}")
        elif not isinstance(text, str) or _PLAIN_SECRET.fullmatch(text) is None:
            problems.append(f"{path}: [keys]: key {name} is not {2 * SECRET_BYTES} hexadecimal digits in quotes")
        else:
            found[int(name)] = bytes.fromhex(text)
    problems += [
        f"{path}: [keys]: keys {a} and {b} are the same" for a in found for b in found if a < b and found[a] == found[b]
    ]
    return found


def _write(path: Path, keys: Keys) -> None:
    """Put the file in the place of the old one, whole and durable, with the rights and the owner of the old one."""
    target = path.resolve()  # a link to the file stays one
    temporary = ""
    try:
        before = target.stat()
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # mode 0600
        with open(descriptor, "w") as file:
            os.fchown(descriptor, before.st_uid, before.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            _write_durably(file, keys)
        os.replace(temporary, target)
        _sync_directory(target.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # gone already, if all went well


def _write_durably(file: TextIO, keys: Keys) -> None:
    lines = [f'{key_id} = "{secret.hex()}"' for key_id, secret in sorted(keys.secrets.items())]
    file.write("\n".join([_INTRODUCTION + f"use = {keys.use}", "", "[keys]", *lines, ""]))
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(path: Path, error: OSError) -> ConfigError:
    remedy = "its directory must exist and be writable"
    return ConfigError([f"{path}: the key file cannot be written: {error.strerror}; {remedy}"])


def overview(keys: Keys) -> Mapping[int, str]:
    """The fingerprint of each key, by id: all that may be shown."""
    return {key_id: fingerprint(secret) for key_id, secret in sorted(keys.secrets.items())}
