"""The page of a plan and of a sweep."""

import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from xformer.configurables import load
from xformer.plan import report
from xformer.plan.page import plan_page, sweep_page
from xformer.plan.sweep import Trial
from xformer.training import figures

QUICKSTART = Path(__file__).parents[2] / "configs" / "runs" / "quickstart.gin"


@pytest.fixture
def large(invented):
    """A plan that does not fit."""
    return dataclasses.replace(
        invented, memory=None, required=math.inf, collectives=(), least=(), bounds=None
    )


class Page(HTMLParser):
    """The tags of a page, those that stay open, and all text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.said = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in ("meta", "path", "use"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "use"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data.strip())


def read(text):
    """A page, which must be whole and need nothing beside itself."""
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "img", "object"} & page.tags
    assert "prefers-color-scheme: dark" in text and "url(http" not in text
    return page


def test_the_page_of_a_plan_has_its_pictures_and_figures(invented):
    text = plan_page(invented, "a run on v5e:2x2")
    said = read(text).said
    titles = ["Memory of a device", "A step takes at least the longest of these"]
    assert [one for one in said if one in titles] == titles
    assert {"fits", "0.1 s (compute)", "12.00 of 15.75 GiB", "temporary 8", "state 3"} <= set(said)
    assert {"compute", "memory", "links", "50 ms", "7 times, 2.0 of the least"} <= set(said)
    assert "network" not in said  # nothing crosses it
    assert "\n".join(report.lines(invented)) in said
    assert "var(--first)" in text and text.count("<svg") == 3


def test_the_page_of_what_does_not_fit_says_what_to_change(large):
    said = read(plan_page(large, "a run", ["take more chips"])).said
    assert {"does not fit", "To make it fit", "take more chips"} <= set(said)
    assert "What it needs" not in said


def test_names_are_escaped(invented):
    text = plan_page(invented, "<script>alert(1)</script>")
    assert "<script" not in text and "&lt;script&gt;" in text


def test_the_page_of_a_sweep_has_all_trials_and_the_speeds_of_those_that_fit(invented, large):
    run = load(QUICKSTART).run
    trials = [
        Trial(run, invented, flags="--gin.Run.batch_size=8"),
        Trial(run, large),
        Trial(run, None, "heads <2>"),
    ]
    said = read(sweep_page(trials, "a sweep")).said
    assert {"1 of 3 fit", "12.00 GiB", "too much", "refused", "heads <2>"} <= set(said)
    assert "--gin.Run.batch_size=8" in said
    assert said.count("compute") == 2  # in the table, and at the end of its bar


def test_the_page_of_a_sweep_of_which_nothing_fits_has_no_pictures(large):
    text = sweep_page([Trial(load(QUICKSTART).run, large)], "a sweep")
    assert "nothing fits" in read(text).said and "<svg" not in text


def test_an_svg_file_brings_its_colours_along():
    draw = figures.lines([16, 64], {"compute": [1.0, 2.0], "network": [0.0, 0.0]}, "chips", "s")
    text = figures.as_svg_file(draw, "weak scaling")
    read(text)
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert used and all(f"{one}: #" in text for one in used)
    assert "compute" in text and "network" not in text and 'xmlns="http' in text


@pytest.mark.parametrize("length", [0.0, 3.0])
def test_bars_say_what_is_at_their_ends(length):
    text = figures.as_svg(figures.bars({"links": (length, "3 s")}, "seconds"), "time", 2.0)
    assert "3 s" in text and "links" in text and "seconds" in text
