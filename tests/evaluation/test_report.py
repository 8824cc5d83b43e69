"""The report's page as text: what stands on it, that it needs nothing else, that nothing in the data becomes markup."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nas_plugin.errors import PackageMissingError, RunFolderError
from nas_plugin.evaluation.logs import read_run
from nas_plugin.evaluation.report import details, tables, words, write_report
from nas_plugin.evaluation.report.runs import Run, arrange
from tests.evaluation.fake_runs import write_run

EVIL = "<script>alert(1)</script>\"'&"
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Tags, identifiers and headings of a page; complains about tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def drawn(folders: list[Path], out: Path) -> Page:
    assert write_report(folders, out) == out
    return Page(out.read_text(encoding="utf-8"))


def runs_of(*folders: Path) -> list[Run]:
    return arrange(read_run(folder) for folder in folders)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Page:
    folder = tmp_path_factory.mktemp("comparison")
    pairs = [("MEMIT", False), ("MEMIT", True), ("RECT", False), ("RECT", True)]
    folders = [write_run(folder / f"{method}-{nas}", method, nas, edits=240, every=60) for method, nas in pairs]
    return drawn(folders, folder / "report" / "index.html")


def test_the_page_needs_nothing_but_itself(comparison: Page) -> None:
    assert "default-src 'none'" in comparison.text
    assert not {tag for tag, _ in comparison.tags} & {
        "script",
        "link",
        "img",
        "image",
        "iframe",
        "object",
        "foreignobject",
    }
    links = [
        value for _, attributes in comparison.tags for name, value in attributes.items() if name in ("href", "src")
    ]
    assert links and all(value is not None and value.startswith("#") for value in links)
    without_namespaces = comparison.text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|@import|url\((?!#)", without_namespaces)


def test_identifiers_are_unique_and_references_lead_somewhere(comparison: Page) -> None:
    identifiers = [attributes["id"] for _, attributes in comparison.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    for _, attributes in comparison.tags:
        for name, value in attributes.items():
            if name in ("href", "clip-path", "aria-labelledby") and value is not None:
                used = re.findall(r"#([\w.-]+)", value) if name != "aria-labelledby" else value.split()
                assert used and set(used) <= set(identifiers), (name, value)


def test_headings_are_in_order_and_the_language_is_set(comparison: Page) -> None:
    assert comparison.named("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in comparison.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_every_chart_is_described_and_has_its_numbers(comparison: Page) -> None:
    charts = [attributes for attributes in comparison.named("svg") if attributes.get("class") == "chart"]
    figures = len(comparison.named("figure"))
    # Two methods in five sections, and six tasks.
    assert len(charts) == figures == 16
    assert all(attributes["role"] == "img" for attributes in charts)
    assert comparison.text.count("<summary>Numbers of this chart</summary>") == figures
    titles = re.findall(r'<title id="[\w-]+">([^<]+)</title>', comparison.text)
    assert len(set(titles)) == figures and "MEMIT: score and norm growth against edits" in titles
    descriptions = re.findall(r'<desc id="[\w-]+">([^<]+)</desc>', comparison.text)
    assert len(descriptions) == figures and any("MEMIT: collapse at 240." in text for text in descriptions)


def test_charts_have_no_colours_and_fonts_of_their_own(comparison: Page) -> None:
    charts = "".join(re.findall(r"<svg[^>]*chart.*?</svg>", comparison.text, re.DOTALL))
    assert "var(--hue-0)" in charts and "var(--ink)" in charts
    assert not re.search(r"#[0-9a-f]{6}\b|DejaVu", charts) and "system-ui, sans-serif" in charts
    assert not re.search(r"\d\.\d{3}", "".join(re.findall(r' d="([^"]*)"', charts)))


def test_the_same_folders_give_the_same_bytes(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a", edits=60), write_run(tmp_path / "b", use_nas=True, edits=60)]
    first, second = (write_report(folders, tmp_path / name).read_bytes() for name in ("1.html", "2.html"))
    assert first == second


def test_nothing_in_the_data_becomes_markup(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "a", edits=60, label=EVIL, method=EVIL, model=EVIL, command=EVIL, hparams={EVIL: [EVIL]},
        versions={EVIL: EVIL}, protocols={EVIL: EVIL}, status=EVIL,
        stream={"name": EVIL, "file": EVIL, "sha256": EVIL, "cases": 60, "family": EVIL},
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "checkpoints.jsonl").read_text().splitlines()]
    for line in lines:
        line["final"][f"efficacy/{EVIL}"] = {"mean": 1.0, "std": 0.0, "count": 1}
        line["capability"] = {EVIL: {EVIL: 1.0}}
        line["norm"]["layers"] = {EVIL: 1.0}
        if line["drift"]:
            line["drift"] = {EVIL: line["drift"]["10"]}
    (folder / "checkpoints.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = write_run(tmp_path / "b", method="$x_y$", label="$x_y$", unavailable=EVIL)
    page = drawn([folder, other], tmp_path / "report.html")
    assert "<script" not in page.text and "alert(1)" in page.text
    # An attribute that data closed would bring attributes that nobody wrote.
    assert {"class", "id", "style", "d"} <= {name for _, attributes in page.tags for name in attributes}
    assert not [name for _, attributes in page.tags for name in attributes if not re.fullmatch(r"[a-z:-]+[0-9]?", name)]
    assert not [value for tag, _ in page.tags if (value := tag) == "script"]


def test_plain_and_anchored_runs_stand_together(tmp_path: Path) -> None:
    runs = runs_of(
        write_run(tmp_path / "1", "RECT", True, edits=40),
        write_run(tmp_path / "2", "MEMIT", True, edits=40),
        write_run(tmp_path / "3", "RECT", False, edits=40),
        write_run(tmp_path / "4", "MEMIT", False, edits=40),
    )
    groups = [[row.head for row in group] for group in tables.headline(runs).groups]
    assert groups == [["RECT", "NAS-RECT"], ["MEMIT", "NAS-MEMIT"]]
    (rect, nas_rect, memit, _) = (run.style for run in runs)
    assert rect.hue == nas_rect.hue != memit.hue and rect.marker == nas_rect.marker != memit.marker
    assert rect.line != nas_rect.line == "-"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = runs_of(write_run(tmp_path / "one", edits=40), write_run(tmp_path / "two", edits=40, edits_per_step=10))
    assert [run.label for run in runs] == ["MEMIT (one)", "MEMIT (two)"]
    assert runs[0].style.line != runs[1].style.line
    assert words.notices(runs)[0] == "The runs differ in edits per step; compare them with that in mind."
    assert "one edit per step" not in words.conditions(runs) and "stream demo" in words.conditions(runs)


def test_more_methods_than_hues_differ_in_their_markers(tmp_path: Path) -> None:
    runs = runs_of(*(write_run(tmp_path / str(n), f"M{n}", unavailable="no") for n in range(20)))
    assert len({(run.style.hue, run.style.marker) for run in runs}) == 20


def test_the_headline_row(tmp_path: Path) -> None:
    folder = write_run(tmp_path, edits=100, every=50)
    line = json.loads((folder / "checkpoints.jsonl").read_text().splitlines()[-1])
    table = tables.headline(runs_of(folder))
    cells = dict(zip(table.columns[1:], table.groups[0][0].cells, strict=True))
    assert cells["collapse point"] == "none" and cells["edits"] == "100"
    for part in ("score", "efficacy", "generalization", "specificity"):
        assert cells[f"{part}, %"] == f"{line['final'][f'{part}/probability']['mean']:.1f}"
    assert cells["‖Wₙ‖/‖W₀‖"] == f"{line['norm']['total']:.2f}"
    assert "score/probability" in table.text


@pytest.mark.parametrize(
    ("plain", "anchored", "sentence"),
    [
        (
            (90, 55, 50),
            (95, 90, 85),
            "collapses at 20 edits; with norm anchoring it does not collapse in 30 edits (at least 1.5 times as long).",
        ),
        (
            (55, 50, 50),
            (95, 90, 40),
            "collapses at 10 edits; with norm anchoring it collapses at 30 edits (3.0 times as long).",
        ),
        ((90, 80, 55), (95, 90, 85), "collapses at 30 edits; with norm anchoring it does not collapse in 30 edits."),
        ((90, 80, 70), (95, 55, 50), "does not collapse in 30 edits; with norm anchoring it collapses at 20 edits."),
    ],
)
def test_verdicts(tmp_path: Path, plain, anchored, sentence) -> None:
    folders = []
    for nas, scores in ((False, plain), (True, anchored)):
        folder = write_run(tmp_path / str(nas), use_nas=nas, edits=30, every=10)
        lines = [json.loads(line) for line in (folder / "checkpoints.jsonl").read_text().splitlines()]
        for line, score in zip(lines[1:], scores, strict=True):
            line["final"]["score/probability"]["mean"] = score
        (folder / "checkpoints.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        folders.append(folder)
    (verdict,) = words.verdicts(runs_of(*folders))
    assert (verdict.label, verdict.remark) == ("MEMIT", sentence)


def test_a_stopped_and_torn_run_is_drawn_as_far_as_it_came(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", edits=300, stopped_after=70)
    with (folder / "checkpoints.jsonl").open("a") as file:
        file.write('{"edits": 80, "st')
    page = drawn([folder], tmp_path / "report.html")
    assert "MEMIT was stopped after 70 edits; its last checkpoint is after 60." in page.text
    assert "the last line of checkpoints.jsonl was only half written" in page.text
    (row,) = tables.headline(runs_of(folder)).groups[0]
    assert row.cells[-1] == "60"


def test_a_killed_run_is_not_called_done(tmp_path: Path) -> None:
    runs = runs_of(write_run(tmp_path, edits=40, status="running"))
    assert words.notices(runs) == [
        "MEMIT is still running or was killed; it is shown as it was after 40 edits; its last checkpoint is after 40."
    ]


def test_what_could_not_run_is_reported_with_its_reason(tmp_path: Path) -> None:
    page = drawn([write_run(tmp_path / "a", "WISE", unavailable="the host has no WISE")], tmp_path / "report.html")
    assert page.text.count("the host has no WISE") >= 3 and not page.named("figure")
    (row,) = tables.headline(runs_of(tmp_path / "a")).groups[0]
    assert row.note == "unavailable: the host has no WISE" and row.cells == ()


def test_optional_measures_leave_no_empty_sections(tmp_path: Path) -> None:
    page = drawn([write_run(tmp_path / "a", edits=40, extras=False)], tmp_path / "report.html")
    headings = re.findall("<h2>([^<]+)</h2>", page.text)
    assert headings[1:4] == ["Score and norm growth", "Are the first edits still there?", "Norms of the solved values"]
    assert headings[0] == "Summary" and headings[4:] == ["Runs", "Definitions"]


def test_an_editor_without_weights_values_and_scores(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "GRACE", edits=40)
    for name in ("edits.jsonl", "checkpoints.jsonl"):
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        lost: dict[str, Any] = {
            "value_norm": None,
            "written_norm": None,
            "norm": None,
            "final": {"fluency": None},
            "cohort": None,
        }
        kept = [line | {key: value for key, value in lost.items() if key in line} for line in lines]
        for line in kept:
            if "final" in line:
                line["final"] = {"fluency": {"mean": 600.0, "std": 1.0, "count": 20}}
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in kept))
    page = drawn([folder], tmp_path / "report.html")
    assert "GRACE: no score measured" in page.text and "600.0 ± 1.0 (20)" in page.text


def test_a_collapsed_model_breaks_no_chart(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", edits=60)
    lines = [json.loads(line) for line in (folder / "checkpoints.jsonl").read_text().splitlines()]
    lines[-1]["norm"] = {"layers": {"9": math.inf, "10": math.nan}, "total": math.inf}
    lines[-1]["perplexity"] = math.inf
    lines[-1]["final"]["score/probability"]["mean"] = math.nan
    lines[-1]["drift"]["10"] = {"pca_distance": None, "full_distance": None, "spread": None, "cloud": []}
    (folder / "checkpoints.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = drawn([folder], tmp_path / "report.html")
    assert "MEMIT: collapse at 60" in page.text and "not finite" in page.text


def test_settings_and_definitions_are_those_of_the_runs(tmp_path: Path) -> None:
    one = write_run(tmp_path / "1", edits=40, protocols={"fluency": "as A", "score": "as S"})
    two = write_run(tmp_path / "2", "RECT", edits=40, protocols={"fluency": "as B", "score": "as S"})
    runs = runs_of(one, two)
    rows = [(row.head, row.cells) for row in details.protocols(runs).groups[0]]
    assert rows == [("fluency (MEMIT)", ("as A",)), ("fluency (RECT)", ("as B",)), ("score", ("as S",))]
    settings = {row.head: row.cells[0] for group in details.settings(runs[0]).groups for row in group}
    assert settings["command"] == "nas-edit run demo --method MEMIT --edits 40"
    assert (
        settings["version of torch"] == "2.13.0" and settings["layers"] == "[9, 10]" and settings["stream: file"] == "–"
    )


def test_no_folders_and_no_matplotlib(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(RunFolderError, match="give at least one"):
        write_report([], tmp_path / "report.html")
    folder = write_run(tmp_path / "a", edits=20)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(PackageMissingError, match=r"nas-plugin\[eval\]"):
        write_report([folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
