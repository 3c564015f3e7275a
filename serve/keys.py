"""API keys: random, written down as hashes, and taken from a file that may change while we run.

`python -m serve.keys new NAME --file keys.txt` prints a key, once, and adds a line to the file:

    NAME SHA256 CREATED

A key has 256 random bits, so its plain hash cannot be turned back, and needs no salt. To withdraw a
key, delete its line. Who may ask without one is the business of `serve.access`.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import tyro

from devil.errors import ConfigError

ENVIRONMENT = "DEVIL_API_KEYS"
"""Hashes, comma-separated, each with `NAME:` before it if it has a name."""
PREFIX = "devil_"
"""Keys begin so, and are found by programs that look for secrets in the wrong place."""
LOOK_SECONDS = 1.0
"""How often the file is asked whether it has changed."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, kw_only=True)
class KeyLine:
    """A key as it is written down."""

    name: str
    """Who has it; stands in the log of requests."""
    digest: str
    """SHA-256 of the key, in lower-case hexadecimal."""
    created: str
    """Date, for the reader of the file."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"key name {self.name[:80]!r}: use 1 to 64 letters, digits, '.', '_' and '-', and "
                "begin with a letter or digit."
            )
        if not _DIGEST.fullmatch(self.digest):
            # Not repeated: whoever confuses hash and key would find the key in the log.
            raise ConfigError(
                f"key {self.name}: the hash is not 64 digits of lower-case hexadecimal (it has "
                f"{len(self.digest)} characters); `python -m serve.keys new` writes right lines."
            )

    def __str__(self) -> str:
        return f"{self.name} {self.digest} {self.created}"


def new_key() -> str:
    """A key that nobody has."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """What is written down of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def parsed_line(text: str) -> KeyLine:
    """A line of a keys file.

    Raises:
        ConfigError: it is none.
    """
    parts = text.split()
    if len(parts) != 3:
        raise ConfigError(f"{len(parts)} words; a line is NAME SHA256 CREATED.")
    return KeyLine(name=parts[0], digest=parts[1], created=parts[2])


def read_keys(file: str | os.PathLike[str]) -> tuple[list[KeyLine], list[str]]:
    """The lines of a keys file, and what is wrong with the others.

    Empty lines, and lines that begin with `#`, are left out.

    Raises:
        ConfigError: there is no such file, it cannot be read, or everyone may write to it.
    """
    path = Path(file)
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"keys file {path} cannot be read ({error}); make one with "
            f"`python -m serve.keys new NAME --file {path}`."
        ) from error
    if mode & stat.S_IWOTH:
        raise ConfigError(f"keys file {path}: everyone may write to it; chmod 600 {path}.")
    if mode & stat.S_IROTH:
        logger.warning("keys file %s: everyone may read it; chmod 600 %s", path, path)
    found: dict[str, KeyLine] = {}
    wrong: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = parsed_line(line)
            if key.name in found:
                raise ConfigError(f"the name {key.name} stands there before.")
            found[key.name] = key
        except ConfigError as error:
            wrong.append(f"keys file {path}, line {number}: {error}")
    return list(found.values()), wrong


def environment_keys(value: str) -> list[KeyLine]:
    """The keys of `DEVIL_API_KEYS`.

    Raises:
        ConfigError: an entry is no hash, or its name is no name.
    """
    keys = []
    for number, entry in enumerate(filter(None, map(str.strip, value.split(","))), 1):
        name, colon, digest = entry.rpartition(":")
        name = name if colon else f"key-{number}"
        try:
            keys.append(KeyLine(name=name, digest=digest, created="environment"))
        except ConfigError as error:
            raise ConfigError(f"{ENVIRONMENT}, entry {number}: {error}") from None
    return keys


class Keys:
    """The keys that are accepted now."""

    def __init__(self, file: str = "", environment: Mapping[str, str] = os.environ) -> None:
        """Read the keys.

        Args:
            file: keys file; it is read again when it changes.
            environment: where `DEVIL_API_KEYS` may stand; looked at without a file alone.

        Raises:
            ConfigError: the file cannot be read, or holds wrong lines.
        """
        self._file = file
        self._seen: object = None
        self._complaint: object = None
        self._looked = float("-inf")
        self.configured = bool(file or environment.get(ENVIRONMENT))
        """Whether keys are asked for; a file without any lets nobody in."""
        if not file:
            self._keys = environment_keys(environment.get(ENVIRONMENT, ""))
            return
        self._keys, wrong = read_keys(file)
        self._seen = self._state()
        if wrong:
            raise ConfigError("; ".join(wrong))
        if not self._keys:
            logger.warning("keys file %s holds no key: nobody is let in", file)

    def owner(self, key: str) -> str | None:
        """The name that a key goes by; None: it is none of ours.

        As long for a wrong key as for a right one.
        """
        self._look()
        digest, found = digest_of(key), None
        for line in self._keys:
            if hmac.compare_digest(line.digest, digest):
                found = line.name
        return found

    def _state(self) -> object:
        status = os.stat(self._file)
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _look(self) -> None:
        """Read the file again if it has changed; wrong lines count for nothing, and are logged."""
        if not self._file or time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        state = None
        try:
            state = self._state()
            if state == self._seen:
                return
            keys, wrong = read_keys(self._file)
        except (OSError, ConfigError) as error:
            self._seen = None  # tried again each time, for the disk may be to blame
            if self._complaint != (complaint := (state, str(error))):
                logger.error("the keys that were read before stay: %s", error)
            self._complaint = complaint
            return
        self._seen, self._complaint = state, None
        for text in wrong:
            logger.error(text)
        self._keys = keys
        logger.info("keys file %s was read again: %d keys", self._file, len(keys))


def add_key(file: str | os.PathLike[str], name: str) -> str:
    """Make a key, write down its hash, and return it.

    Args:
        file: keys file; made, for its owner alone, if there is none.
        name: who will have the key.

    Raises:
        ConfigError: the name is no name, or has a key; or the file cannot be read or written.
    """
    key = new_key()
    line = KeyLine(name=name, digest=digest_of(key), created=datetime.now(UTC).date().isoformat())
    path = Path(file)
    lead = ""
    if path.exists():
        keys, wrong = read_keys(path)
        if wrong:
            raise ConfigError("; ".join(wrong))
        if name in {key.name for key in keys}:
            raise ConfigError(f"{name} has a key in {path}; delete its line, or take another name.")
        lead = "" if path.read_bytes()[-1:] in (b"", b"\n") else "\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(handle, "w", encoding="utf-8") as stream:
            stream.write(f"{lead}{line}\n")
    except OSError as error:
        raise ConfigError(f"keys file {path} cannot be written ({error}).") from error
    return key


def new(name: tyro.conf.Positional[str], file: Path) -> None:
    """Make a key, write its hash to the file, and print it, once.

    Args:
        name: who will have it; stands in the log of requests.
        file: keys file; made if there is none.
    """
    try:
        key = add_key(file, name)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(key)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"new": new}, description=__doc__)
