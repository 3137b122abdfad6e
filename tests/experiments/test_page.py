"""The page against a parser of HTML, and the CSV against the reader of the standard library."""

import csv
import math
from html.parser import HTMLParser

import numpy as np
import pytest

from molrmog import pictures
from molrmog.experiments.page import Card, Figure, Section, Table, cell, mean_spread, number, write_csv, write_page


class Elements(HTMLParser):
    """Tags with their attributes, text, and whether every tag that is opened is closed."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def a_page(folder, **given):
    fig, (axis,) = pictures.figure(4, 2)
    axis.plot([0, 1], [0, 1])
    figures = [
        Figure(pictures.svg_uri(fig), "a line", wide=True),
        Figure(pictures.png_uri(pictures.grid(np.zeros((4, 8, 8), np.uint8))), "black", alt="four black squares"),
    ]
    table = Table(("name", "loss"), [("a < b", 0.123456), ("none", None)], "a caption & more")
    sections = [Section("One", "First.\n\nSecond <script>alert(1)</script>.", [table], figures), Section("Two")]
    settings = {"steps": 10, "laws": {"a": [1, 2], "b": True}, "out": None}
    path = folder / "report.html"
    return write_page(path, "A <title>", "Introduced.\n\nTwice.", sections, settings, **given)


def test_the_page_stands_alone_and_is_well_formed(tmp_path):
    path = a_page(tmp_path, cards=[Card("1.5%", "excess", "of the floor")])
    page = path.read_text(encoding="utf-8")
    found = Elements(page)
    assert not found.open
    linked = [a.get("src") or a.get("href") for _, a in found.tags if a.get("src") or a.get("href")]
    assert len(linked) == 2
    assert all(uri.startswith("data:image/") for uri in linked)
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html"]


def test_all_that_is_given_is_on_the_page_and_nothing_is_markup(tmp_path):
    found = Elements(a_page(tmp_path, cards=[Card("1.5%", "excess", "of the floor")]).read_text(encoding="utf-8"))
    assert "script" not in [tag for tag, _ in found.tags]
    given = ("A <title>", "Introduced.", "Twice.", "One", "First.", "Second <script>alert(1)</script>.", "a < b")
    shown = ("0.1235", "–", "a caption & more", "a 1, 2, b yes", "not set", "1.5%", "excess", "of the floor", "a line")
    assert not {*given, *shown} - set(found.text)
    cells = [(tag, a["class"]) for tag, a in found.tags if tag in ("td", "th")]
    assert cells == [(tag, kind) for tag in ("th", "td", "td") for kind in ("l", "r")]
    images = [a["alt"] for tag, a in found.tags if tag == "img"]
    assert images == ["a line", "four black squares"]
    assert [a["class"] for tag, a in found.tags if tag == "figure"] == ["plot wide", ""]


def test_columns_of_figures_stand_to_the_right():
    rows = [("x", 1, "12.3 ± 0.4", "−3", True, None), ("y", 2, "–", "n", False, None)]
    assert Table(tuple("abcdef"), rows).alignment == "lrrrll"
    assert Table(("a", "b"), [(1, 2)], align="lr").alignment == "lr"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table(("a", "b"), [(1,)]), "a row has 1 cells for the 2 columns a, b"),
        (lambda: Table(("a", "b"), [], align="l"), "one l or r for each of the 2 columns"),
        (lambda: Table(("a",), [], align="c"), "one l or r"),
        (lambda: Figure("plot.png", "a plot"), "no data URI"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_csv_is_read_back_in_full(tmp_path):
    rows = [("a, b", 1 / 3, 7, None), ('say "c"', -1e-300, 0, "12.3 ± 0.4")]
    path = write_csv(tmp_path / "results.csv", ("name", "value", "count", "text"), rows)
    with path.open(encoding="utf-8", newline="") as file:
        names, *found = csv.reader(file)
    assert names == ["name", "value", "count", "text"]
    assert [row[0] for row in found] == ["a, b", 'say "c"']
    assert [float(row[1]) for row in found] == [1 / 3, -1e-300]
    assert [row[2:] for row in found] == [["7", ""], ["0", "12.3 ± 0.4"]]
    with pytest.raises(ValueError, match="3 cells for the 1 columns"):
        write_csv(path, ("name",), [(1, 2, 3)])
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e3, 1e9])
def test_mean_and_spread_are_those_of_numpy(scale):
    values = np.random.default_rng(0).normal(3.0, 0.7, 50) * scale
    mean, spread = (float(part.replace("−", "-").replace(",", "")) for part in mean_spread(values.tolist()).split("±"))
    assert mean == pytest.approx(values.mean(), abs=0.1 * values.std())
    assert spread == pytest.approx(values.std(ddof=1), rel=0.1)


def test_mean_and_spread_of_few():
    assert mean_spread([2.0, 2.0]) == "2.000"
    assert mean_spread([-0.012, -0.018]) == "−0.015 ± 0.004"
    assert mean_spread([100.0, 160.0]) == "130 ± 42"
    assert mean_spread([1.0, math.nan]) == "undefined"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (-2.5, "−2.500"),
        (123456.7, "123,457"),
        (math.inf, "infinite"),
        (-math.inf, "−infinite"),
        (math.nan, "undefined"),
        (1e9, "1.00e+09"),
        (0.00123456, "0.001235"),
    ],
)
def test_numbers_for_people(value, text):
    assert number(value) == text


def test_cells_for_people():
    assert [cell(v) for v in ("a", 12345, True, False, None, 0.5)] == ["a", "12,345", "yes", "no", "–", "0.5000"]
