"""The command `devil`: here with a tiny model, remotely against a scripted server."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripted_server import (
    MODEL,
    Asked,
    Reply,
    audit,
    document,
    finished,
    form,
    problem,
    scripted,
    small_explanation,
)
from tiny import encoded, picture, tiny_model

from devil import DecodingConfig, DeViL
from devil.command import main
from devil.explanation import Explanation
from devil.report.text import explanation_text


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a photo."""
    folder = tmp_path_factory.mktemp("here")
    tiny_model(folder).save_pretrained(folder / "model")
    (folder / "photo.jpg").write_bytes(encoded(picture("a red circle on the left side", side=96)))
    return folder


@pytest.fixture(scope="module")
def model(here: Path) -> DeViL:
    return DeViL.from_pretrained(here / "model")


def test_explain_here(
    here: Path, model: DeViL, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    photo = str(here / "photo.jpg")
    asked = ["--query", "red", "--query", "a circle", "--layer", "layer4", "--layer", "all"]
    others = ["--calibration", "contrast", "--prompt", "a", "--smoothing", "3"]
    asked += [*others, "--max-new-tokens", "4", "--grid", "--words", "2"]
    files = ["--html", str(here / "a.html"), "--png", str(here / "a.png")]
    main(["explain", photo, "--model", str(here / "model"), *asked, *files])
    expected = model.explain(
        photo,
        queries=("red", "a circle"),
        layers=("layer4", "all"),
        calibration="contrast",
        prompt="a",
        smoothing=3,
        words=2,
        decoding=DecodingConfig(max_new_tokens=4),
    )
    assert capsys.readouterr().out == explanation_text(expected, width=70) + "\n"
    assert "<html" in (here / "a.html").read_text()
    assert (here / "a.png").read_bytes().startswith(b"\x89PNG")


def test_explain_here_as_json(
    here: Path, model: DeViL, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    main(["explain", "photo.jpg", "--model", "model", "--json", "--point", "0.1", "0.9"])
    found = Explanation.from_json(capsys.readouterr().out)
    assert found == model.explain("photo.jpg", points=[(0.1, 0.9)])
    main(["explain", "photo.jpg", "--model", "model", "--json"])
    assert Explanation.from_json(capsys.readouterr().out) == model.explain("photo.jpg", dense=False)


def test_explain_by_a_service(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reply = document(small_explanation((96, 96)).to_dict())
    with scripted([reply, reply]) as server:
        where = ["--server", server.address, "--model", "other"]
        main(["explain", str(here / "photo.jpg"), *where, "--query", "dog", "--point", "0", "1"])
        assert "layer4  1 × 2  0.607  a dog" in capsys.readouterr().out
        html = here / "served.html"
        main(["explain", str(here / "photo.jpg"), *where, "--json", "--html", str(html)])
        printed = json.loads(capsys.readouterr().out)
    assert printed["source"] == str(here / "photo.jpg")
    assert "data:image/jpeg" in html.read_text()
    sent = form(server.asked[0])
    assert (sent["model"], sent["points"], "dense" in sent) == ([b"other"], [b"0.0,1.0"], False)
    assert form(server.asked[1])["dense"] == [b"false"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "missing.jpg"], "missing.jpg does not exist"),
        (["explain", "photo.jpg", "--layer", "layer9"], "layer9"),
        (["explain", "photo.jpg", "--html", "missing/a.html"], "missing/a.html cannot be used"),
        (["explain", "photo.jpg", "--model", "./nowhere"], "nowhere"),
        (
            ["explain", "photo.jpg", "--server", "http://127.0.0.1:1", "--tries", "1"],
            "ConnectError",
        ),
        (["audit", "--server", "http://127.0.0.1:1", "--output", "o"], "--id"),
        (["audit", "photo.jpg", "--server", "http://127.0.0.1:1", "--output", "o"], "no archive"),
        (["models", "--model", "./nowhere"], "nowhere"),
    ],
)
def test_errors_are_one_line(
    here: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setattr("devil.command.MODEL", "model")
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err
    assert captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize("arguments", [[], ["explain"], ["explain", "p.jpg", "--colour", "red"]])
def test_a_command_line_that_is_not_understood(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2


def audited(asked: Asked) -> Reply:
    """A service whose audits are finished at once."""
    if asked.path == "/v1/audits":
        return document(audit())
    progress = {"pictures": 3, "explained": 2, "failed": 1, "failures": {"not a picture": 1}}
    if asked.path == "/v1/audits/a1":
        files = json.loads(finished().body)["results"]
        return document(audit("finished", progress=progress, results=files))
    if asked.path.startswith("/v1/audits/a1/files/"):
        return Reply(body=b"content")
    return (
        document(audit("failed", id="a2", problem="no disk"))
        if "a2" in asked.path
        else problem(404)
    )


def test_audit(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes((here / "photo.jpg").read_bytes())
    output = tmp_path / "audit"
    with scripted(audited) as server:
        where = ["--server", server.address, "--output", str(output)]
        main(["audit", str(tmp_path / "photos"), *where, "--query", "dog", "--no-dense"])
        captured = capsys.readouterr()
        assert captured.out.splitlines() == [
            "2 pictures explained, 1 failed",
            "  1 not a picture",
            str(output / "index.html"),
        ]
        assert "audit a1 has started" in captured.err and "3/3" in captured.err
        sent = form(server.asked[0])
        assert sent["queries"] == [b"dog"] and sent["dense"] == [b"false"] and "archive" in sent
        main(["audit", "--id", "a1", *where])
        main(["audit", "s3://bucket/photos", *where[:-1], str(tmp_path / "another")])
        posts = [asked for asked in server.asked if asked.method == "POST"]
        assert len(posts) == 2 and json.loads(posts[1].body)["images"] == "s3://bucket/photos"
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(["audit", "--id", "a2", *where[:-1], str(tmp_path / "failed")])
    assert exit.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: audit a2 ended as failed: no disk") and "--resume" in error


def test_an_audit_that_is_not_seen_to_its_end_is_found_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devil.client.audits.AWAY_SECONDS", 0)
    script = [document(audit()), problem(503, "away")]
    script += [document(audit()), finished(), finished(), problem(500, "no file")]
    with scripted(script) as server:
        where = ["--server", server.address, "--output", str(tmp_path / "audit"), "--tries", "1"]
        for reason in ("away", "no file"):
            with pytest.raises(SystemExit) as exit:
                main(["audit", "s3://bucket/photos", *where])
            assert exit.value.code == 1
            *_, hint, error = capsys.readouterr().err.splitlines()
            assert f"--output {tmp_path / 'audit'} --id a1" in hint
            assert error.startswith(f"error: {reason}")


@pytest.mark.parametrize("place", ["mine", "mine/notes.txt"])
def test_an_output_that_cannot_be_used_begins_no_audit(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    output = str(tmp_path / place)
    with scripted([]) as server:
        for asked in (["s3://bucket/photos"], ["--id", "a1"]):
            with pytest.raises(SystemExit):
                main(["audit", *asked, "--server", server.address, "--output", output])
            assert output in capsys.readouterr().err
    assert not server.asked


def test_models(here: Path, model: DeViL, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted([document({"models": [MODEL]})]) as server:
        main(["models", "--server", server.address])
    assert "a/b    01       timm:x    y               layer4 2×3" in capsys.readouterr().out
    main(["models", "--model", str(here / "model")])
    printed = capsys.readouterr().out
    assert model.version in printed and "timm:test_resnet" in printed
    assert f"layer4 {model.shapes['layer4'].height}×" in printed


def test_it_is_installed_and_knows_no_ray(here: Path) -> None:
    program = "import sys, devil.command; print({'ray', 'torch', 'pipelines'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
    command: Any = Path(sys.executable).with_name("devil")
    result = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "explain" in result.stdout
