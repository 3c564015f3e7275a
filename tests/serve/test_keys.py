"""Keys: made once, written down as hashes, read again when their file changes."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from devil.errors import ConfigError
from serve import keys
from serve.app import with_whole_paths
from serve.keys import KeyLine, Keys, add_key, digest_of, environment_keys, new_key, read_keys
from serve.settings import Settings

NONE: dict[str, str] = {}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Changes are seen at once, and what Ray's logger says is caught."""
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    caplog.set_level(logging.INFO, "ray.serve")


def test_a_key_is_printed_once_and_never_written_down(file: Path) -> None:
    command = [sys.executable, "-m", "serve.keys", "new", "alice", "--file", str(file)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300)
    key = made.stdout.strip()
    assert made.returncode == 0 and key.startswith("devil_") and len(key) == 49
    assert file.stat().st_mode & 0o777 == 0o600
    assert key not in file.read_text() and key.removeprefix("devil_") not in file.read_text()
    found = Keys(str(file), NONE)
    assert found.configured and found.owner(key) == "alice"
    assert found.owner(key + "x") is None and found.owner("") is None
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 1 and "alice has a key" in again.stderr and not again.stdout
    assert "Traceback" not in again.stderr


def test_keys_differ_and_their_hashes_do_not_open(file: Path) -> None:
    assert new_key() != new_key()
    key = add_key(file, "alice")
    assert Keys(str(file), NONE).owner(digest_of(key)) is None


def test_each_name_has_its_own_key(file: Path) -> None:
    made = {name: add_key(file, name) for name in ("alice", "bob", "night.audit-2")}
    found = Keys(str(file), NONE)
    assert {name: found.owner(key) for name, key in made.items()} == {name: name for name in made}


def test_the_file_is_read_again_when_it_changes(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alice = add_key(file, "alice")
    found = Keys(str(file), NONE)
    bob = add_key(file, "bob")
    assert (found.owner(alice), found.owner(bob)) == ("alice", "bob")
    lines = file.read_text().splitlines()
    file.write_text(f"# alice has left\n\nwrong line\n{lines[1]}\n")
    assert (found.owner(alice), found.owner(bob)) == (None, "bob")
    assert "line 3: 2 words" in caplog.text
    file.rename(file.with_suffix(".old"))
    assert found.owner(bob) == "bob"  # what was read before stays, and it is said
    assert "cannot" in caplog.text or "No such file" in caplog.text
    file.write_text("")
    assert found.configured and found.owner(bob) is None


@pytest.mark.parametrize("damage", ["everyone may write", "cannot be read", "No such file"])
def test_a_file_that_cannot_be_used_is_told_once(
    damage: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alice = add_key(file, "alice")
    whole = file.read_text()
    found = Keys(str(file), NONE)
    for number in (1, 2):  # of times that the file is damaged
        if damage == "No such file":
            file.unlink()
        else:
            file.write_bytes(b"#" * number if damage == "everyone may write" else b"\xff" * number)
            file.chmod(0o602 if damage == "everyone may write" else 0o600)
        for _ in range(3):
            assert found.owner(alice) == "alice"
        assert caplog.text.count(damage) == number
        file.write_text(whole)
        file.chmod(0o600)
        assert found.owner(alice) == "alice" and "was read again" in caplog.text


def test_a_secret_of_kubernetes_changes_behind_its_link(tmp_path: Path) -> None:
    """keys.txt → ..data/keys.txt, ..data → a folder that goes away with the next version."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"name": "tiny"}')
    made = {}
    for name in ("alice", "bob"):
        (tmp_path / f"..of-{name}").mkdir()
        made[name] = add_key(tmp_path / f"..of-{name}" / "keys.txt", name)
    data, file = tmp_path / "..data", tmp_path / "keys.txt"
    data.symlink_to("..of-alice")
    file.symlink_to("..data/keys.txt")
    settings = Settings(model=str(tmp_path / "model"), keys=str(file))
    found = Keys(with_whole_paths(settings).keys, NONE)
    assert [found.owner(key) for key in made.values()] == ["alice", None]
    data.unlink()
    data.symlink_to("..of-bob")
    shutil.rmtree(tmp_path / "..of-alice")
    assert [found.owner(key) for key in made.values()] == [None, "bob"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("alice", "1 words"),
        ("alice " + "0" * 64, "2 words"),
        ("alice " + "0" * 64 + " today noon", "4 words"),
        ("alice " + "0" * 63 + " today", "63 characters"),
        ("alice " + "A" * 64 + " today", "hexadecimal"),
        ("-alice " + "0" * 64 + " today", "begin with"),
        ("a" * 65 + " " + "0" * 64 + " today", "1 to 64"),
        ("good " + "1" * 64 + " today", "stands there before"),
    ],
)
def test_wrong_lines_are_named(file: Path, line: str, words: str) -> None:
    file.write_text(f"good {'0' * 64} today\n{line}\n")
    with pytest.raises(ConfigError, match="line 2") as caught:
        Keys(str(file), NONE)
    assert words in str(caught.value)
    secret = line.split()[1:2]
    assert not secret or secret[0] not in str(caught.value)
    with pytest.raises(ConfigError, match="line 2"):
        add_key(file, "other")


def test_files_that_cannot_be_trusted(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="python -m"):
        Keys(str(file), NONE)
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(str(file), NONE)
    file.unlink()
    add_key(file, "alice")
    file.chmod(0o644)
    assert len(read_keys(file)[0]) == 1
    assert "everyone may read it" in caplog.text
    file.chmod(0o602)
    with pytest.raises(ConfigError, match="everyone may write"):
        Keys(str(file), NONE)
    with pytest.raises(ConfigError, match="cannot be written"):
        add_key(file.parent / "nowhere" / "keys.txt", "alice")
    with pytest.raises(ConfigError, match="begin with"):
        add_key(file.parent / "new.txt", "a b")


def test_a_file_without_an_end_of_line_goes_on(file: Path) -> None:
    file.write_text(str(KeyLine(name="alice", digest="0" * 64, created="today")))
    add_key(file, "bob")
    assert [key.name for key in read_keys(file)[0]] == ["alice", "bob"]


def test_keys_of_the_environment(file: Path) -> None:
    first, second = new_key(), new_key()
    value = f"{digest_of(first)}, bob:{digest_of(second)},"
    found = Keys("", {"DEVIL_API_KEYS": value})
    assert found.configured
    assert (found.owner(first), found.owner(second)) == ("key-1", "bob")
    assert not Keys("", NONE).configured and Keys("", NONE).owner(first) is None
    with pytest.raises(ConfigError, match="DEVIL_API_KEYS, entry 2"):
        environment_keys(f"{digest_of(first)},bob:{second}")
    add_key(file, "alice")
    assert Keys(str(file), {"DEVIL_API_KEYS": value}).owner(first) is None
