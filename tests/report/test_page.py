"""The page: what it carries, hostile text stays text, and its script computes the same."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from devil.errors import DataError
from devil.explanation import Caption, Explanation, LayerExplanation
from devil.report.heatmap import colour_table, normalise, scale_of, upsample
from devil.report.page import TEMPLATES, explanation_html, report_html, write_report
from devil.report.table import ReportTable

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>'\"&amp;<!--{{ 7*7 }}"


def explanation(text: str = "a bird", size: tuple[int, int] = (900, 300)) -> Explanation:
    said = Caption(text=text, log_probability=-2.5, tokens=3)
    values = np.random.default_rng(0).normal(-8, 2, (2, 3)).astype(np.float32)
    one = LayerExplanation(
        layer=f"blocks {text}",
        grid=(2, 3),
        caption=said,
        captions=((said,) * 3,) * 2,
        saliency={f"query {text}": values},
    )
    return Explanation(
        image_size=size,
        region=(300.0, 0.0, 600.0, 300.0),
        layers={one.layer: one},
        queries=(f"query {text}",),
        calibration="mean",
        model=f"model {text}",
        version=f"version {text}",
        source=f"{text}.jpg",
        image=Image.new("RGB", size, (10, 200, 30)),
    )


class Page(HTMLParser):
    """Tags and their text, as a browser would split them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words = ""
        self.style = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(tag)
            if tag == "script":
                self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.inside.pop()

    def handle_data(self, data):
        if self.inside == ["script"]:
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        elif self.inside == ["style"]:
            self.style += data
        else:
            self.words += data

    def data(self) -> list[str]:
        return [text for attributes, text in self.scripts if attributes.get("class") == "data"]

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def test_the_data_parses_back_to_the_same_explanation():
    before = explanation()
    (data,) = Page(explanation_html(before)).data()
    assert Explanation.from_json(data) == before


def test_hostile_text_adds_no_tag_and_loses_no_character():
    def shape(text: str) -> list[tuple[str, list[str]]]:
        one = explanation(text)
        table = ReportTable(title=text, caption=text, columns=(text, "n"), rows=((text, 1),))
        page = report_html(
            title=text, introduction=text, tables=[table], explanations=[one], notes=[text]
        )
        parsed = Page(page)
        assert Explanation.from_json(parsed.data()[0]) == one
        assert parsed.words.count(text) >= 8
        alt = parsed.images()[0]["alt"]
        assert alt is not None and text in alt
        return [(tag, sorted(attributes)) for tag, attributes in parsed.tags]

    assert shape(HOSTILE) == shape("harmless")


def test_data_in_scripts_has_no_character_that_html_reads():
    (data,) = Page(explanation_html(explanation(HOSTILE + "\u2028"))).data()
    assert data.isascii()
    assert not set("<>&") & set(data)


def test_nothing_comes_from_elsewhere_and_the_policy_admits_only_our_script():
    page = Page(explanation_html(explanation()))
    for _, attributes in page.tags:
        assert not {"href", "srcset", "style", "onclick", "onerror"} & set(attributes)
        source = attributes.get("src")
        assert source is None or source.startswith("data:image/jpeg;base64,")
    assert "url(" not in page.style and "@import" not in page.style
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy is not None and "default-src 'none'" in policy
    programs = [text for attributes, text in page.scripts if "type" not in attributes]
    assert len(programs) == 1
    for kind, text in (("script", programs[0]), ("style", page.style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_pictures_are_reduced_and_keep_their_shape():
    (image,) = Page(explanation_html(explanation())).images()
    source = image["src"]
    assert source is not None
    with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (448, 149))
        assert np.abs(np.asarray(picture).mean(axis=(0, 1)) - (10, 200, 30)).max() < 4
    assert (image["width"], image["height"]) == ("448", "149")


def test_a_picture_that_was_not_kept_is_said_so():
    kept = explanation()
    gone = Explanation.from_json(kept.to_json())
    assert "was not kept" in Page(explanation_html(gone)).words
    assert "was not kept" not in Page(explanation_html(kept)).words


def test_one_script_serves_all_cards():
    page = Page(report_html(title="t", explanations=[explanation(f"text {i}") for i in range(9)]))
    assert len(page.data()) == 9
    assert len([a for a, _ in page.scripts if "type" not in a]) == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_layers_are_readable_without_the_script():
    words = " ".join(Page(explanation_html(explanation())).words.split())
    assert "blocks a bird a bird 43 %" in words  # exp(-2.5 / 3) = 0.4346


def test_tables_show_scores_beside_controls():
    table = ReportTable(
        title="Pointing",
        caption="How often",
        columns=("layer", "score", "control", "n"),
        rows=(("a", 0.74123, None, 200), ("b", -0.5, 0.25, 1000)),
    )
    words = Page(report_html(title="t", tables=[table])).words.split()
    start = words.index("layer")
    assert words[start : start + 12] == (
        ["layer", "score", "control", "n", "a", "0.741", "–", "200", "b", "−0.500", "0.250", "1000"]
    )
    assert table.numeric == [False, True, True, True]
    with pytest.raises(DataError, match=r"has 1 columns, row .* has 2"):
        ReportTable(title="t", caption="", columns=("a",), rows=(("x", 1),))


def test_a_report_is_written_whole(tmp_path):
    path = write_report(tmp_path / "new" / "folder", title="T", explanations=[explanation()])
    assert path == tmp_path / "new" / "folder" / "index.html"
    assert path.read_text("utf-8") == report_html(title="T", explanations=[explanation()])
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]


def test_a_failure_leaves_the_old_page_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "index.html"
    path.write_text("old")

    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr("devil.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        explanation().to_html(path)
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]
    assert path.read_text() == "old"


def test_file_names_that_are_no_unicode_can_be_written(tmp_path):
    explanation("caf\udce9").to_html(tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text("utf-8")
    assert "caf?.jpg" in Page(text).words


def run_script(expression: str, *arguments) -> object:
    """Evaluate an expression over the page's own geometry functions; `x` holds the arguments."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the page's script is not checked against Python")
    program = (
        (TEMPLATES / "geometry.js").read_text("utf-8")
        + "const x = JSON.parse(require('fs').readFileSync(0));"
        + f"console.log(JSON.stringify({expression}));"
    )
    done = subprocess.run(
        [node, "-e", program],
        input=json.dumps(arguments),
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    return json.loads(done.stdout)


def test_the_script_draws_the_same_map():
    values = np.random.default_rng(1).normal(-8, 2, (3, 5)).astype(np.float32)
    drawn = run_script(
        "Array.from(upsampleMap(normaliseMap(x[0]).unit, x[1], x[2]))", values.tolist(), 17, 11
    )
    expected = upsample(normalise(values), 11, 17)
    np.testing.assert_allclose(np.reshape(drawn, (11, 17)), expected, atol=1e-12)  # pyright: ignore


@pytest.mark.parametrize("offset", [0.0, 4e-7, 0.001, 3.0])
def test_the_script_states_the_same_range(offset):
    values = np.full((2, 2), -7.25, np.float32)
    values[0, 1] += offset
    assert run_script("formatRange(normaliseMap(x[0]))", values.tolist()) == scale_of(values).label


def test_the_script_finds_the_cells_where_they_lie():
    one = explanation()
    (layer,) = one.layers.values()
    cells = [(r, c) for r in range(2) for c in range(3)]
    boxes = [one.cell(layer.layer, *cell) for cell in cells]
    points = [(left + 1e-6, bottom - 1e-6) for left, _, _, bottom in boxes]
    points += [(299.9, 10), (600.0, 10), (400, -0.1)]
    found = run_script("x[2].map((p) => cellAt(x[0], x[1], ...p))", one.region, (2, 3), points)
    assert found == [list(cell) for cell in cells] + [None] * 3
    centres = run_script("x[2].map((p) => cellCentre(x[0], x[1], ...p))", one.region, (2, 3), cells)
    assert centres == [[(b[0] + b[2]) / 2, (b[1] + b[3]) / 2] for b in boxes]


def test_the_page_carries_the_colours_of_the_figures():
    match = re.search(r'id="colours">"([0-9a-f]+)"<', explanation_html(explanation()))
    assert match is not None
    assert bytes.fromhex(match[1]) == colour_table().tobytes()
