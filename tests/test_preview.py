"""The preview page and the numbers of a set."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.instructions import preview
from datasets_scripts.instructions.build import KINDS, build_instructions
from datasets_scripts.instructions.statistics import markdown_table, statistics, statistics_table
from datasets_scripts.records import Instruction, SceneSet

from .test_verify import street  # noqa: F401

SCRIPT = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Tags, texts and images of a page; an unclosed or unexpected end tag is an error."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self.images, self.open = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def instructions(street: SceneSet) -> list[Instruction]:  # noqa: F811
    return build_instructions(street, street.scenes, KINDS)


def test_the_page_is_whole_bounded_and_asks_for_no_other_file(street, instructions, tmp_path):  # noqa: F811
    preview.write_preview(tmp_path / "preview.html", street, instructions, count=12)
    text = (tmp_path / "preview.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.images) == [tag for tag, _ in page.tags].count("article") == 12
    for source in page.images:
        data = re.fullmatch(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", source)
        image = Image.open(io.BytesIO(base64.b64decode(data[1])))
        assert image.format == "JPEG" and max(image.size) == preview.SIDE
    assert not [
        value for _, a in page.tags for name, value in a.items() if name in ("href", "src") and ":" not in value
    ]
    assert "http" not in re.sub(r"base64,[^\"]*", "", text) and "url(" not in preview.STYLE
    assert not list(tmp_path.glob("*.partial"))


def test_every_text_of_a_set_is_escaped(street, instructions, tmp_path):  # noqa: F811
    named = replace(street.classes[1], name=f"car{SCRIPT}")
    scene_set = replace(street, classes=(street.classes[0], named, *street.classes[2:]))
    true = next(i for i in instructions if i.claim == "front")
    fields = {"query": SCRIPT, "answer": f"[SEG]{SCRIPT}", "claim": SCRIPT, "source": SCRIPT, "kind": SCRIPT}
    bad = replace(
        true,
        class_name=named.name,
        rephrasings=(SCRIPT, '" onload="x'),
        facts={"anchors": [SCRIPT], SCRIPT: SCRIPT, "area_ratio": SCRIPT},
        anchors=tuple(replace(a, class_name=named.name) for a in true.anchors),
        **fields,
    )
    preview.write_preview(tmp_path / "p.html", scene_set, [bad], [[SCRIPT]], title=SCRIPT)
    text = (tmp_path / "p.html").read_text()
    page = Page(text)
    assert "<script" not in text and "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, a in page.tags for name in a if name.startswith("on")]
    # kind, claim, source, class of target and anchor, its name, query, answer, rephrasing, facts, reason, titles
    assert "".join(page.texts).count("alert('x')") >= 13


def test_false_instructions_are_marked_with_their_reasons(street, instructions, tmp_path):  # noqa: F811
    reasons = [["claim is false: look"] if i.claim == "largest" else [] for i in instructions]
    lost = replace(instructions[0], image_id="nowhere"), replace(instructions[0], instance_ids=(77,), class_name="none")
    preview.write_preview(
        tmp_path / "p.html", street, [*instructions, *lost], [*reasons, ["image is unknown"], ["x"]], count=1000
    )
    page = Page((tmp_path / "p.html").read_text())
    classes = [a.get("class") for tag, a in page.tags if tag == "article"]
    assert len(classes) == len(instructions) + 2 and classes.count("false") == sum(map(bool, reasons)) + 2
    assert "claim is false: look" in page.texts


def test_the_choice_is_the_seeds_and_gives_every_claim_its_share():
    def instruction(kind, claim, number):
        return Instruction(f"{number}", kind, "car", f"{kind} {claim} {number}", "[SEG].", claim=claim)

    many = [instruction("conditional", "left", k) for k in range(200)]
    few = [instruction("conditional", "inside", k) for k in range(2)] + [
        instruction("semantic", "", k) for k in range(9)
    ]
    chosen = [(*many, *few)[k] for k in preview.choose([*many, *few], 12, seed=3)]
    counts = [sum(i.claim == claim for i in chosen) for claim in ("left", "inside", "")]
    assert counts == [5, 2, 5] and len({i.query for i in chosen}) == 12
    assert [i.claim for i in chosen] == ["inside"] * 2 + ["left"] * 5 + [""] * 5
    assert preview.choose(many, 12, seed=3) == preview.choose(many, 12, seed=3) != preview.choose(many, 12, seed=4)
    assert sorted(preview.choose(few, 40, seed=0)) == list(range(11)) and preview.choose([], 5, 0) == []


def test_target_and_anchor_are_seen_apart():
    image = Image.new("RGB", (64, 48), (128, 128, 128))
    target, anchor = np.zeros((2, 48, 64), bool)
    target[20:40, 5:25], anchor[20:40, 35:60] = True, True
    regions = [(preview.ANCHORS[0], anchor, True), (preview.TARGET, target, False)]
    pixels = np.asarray(preview.drawn_regions(image, regions)).astype(int)
    assert pixels.shape == (480, 640, 3)
    inside, other, outside = pixels[300, 150], pixels[300, 475], pixels[50, 50]
    assert outside.tolist() == [128, 128, 128] and abs(inside - other).max() > 30
    left, right = (pixels[200:400, columns] for columns in (slice(48, 52), slice(348, 352)))
    solid = (abs(left - preview.TARGET).max(-1) == 0).any(1).mean()
    dashed = (abs(right - preview.ANCHORS[0]).max(-1) == 0).any(1).mean()
    assert solid == 1 and 0.4 < dashed < 0.9


def test_facts_in_words():
    facts = {"target_right": 0.321, "area_ratio": 2.5, "colour": "red", "anchors": ["largest"], "note": None}
    assert preview.facts_in_words(facts) == [
        "right edge of the target: 32.1% of the width",
        "ratio of the areas: 2.50",
        "known colour: red",
        "note: None",
    ]


def test_every_fact_that_is_measured_has_words(street, instructions):  # noqa: F811
    assert {name for i in instructions for name in i.facts} - {"anchors"} <= set(preview.FACTS)


def test_statistics_by_hand():
    def instruction(image, kind, name, query, rephrasings=(), claim=""):
        return Instruction(image, kind, name, query, "[SEG].", rephrasings=rephrasings, claim=claim)

    found = statistics(
        [
            instruction("a", "semantic", "car", "the car", ("Where is the car?",)),
            instruction("a", "semantic", "road", "the road"),
            instruction("a", "conditional", "car", "the car left of the bus", claim="left"),
            instruction("b", "attribute", "car", "the red vehicle here", claim="red"),
            instruction("b", "conditional", "car", "the car left of the bus", claim="left"),
        ],
        labelled_images=4,
    )
    assert found["instructions"] == 5 and found["queries"] == 6 and found["images"] == 4
    assert found["kinds"] == {"conditional": 2, "semantic": 2, "attribute": 1}
    assert found["classes"] == {"car": 4, "road": 1}
    assert found["claims"] == {"conditional left": 2, "attribute red": 1}
    assert found["query_words"] == {"min": 2, "mean": 24 / 6, "max": 6, "median": 4.0}
    assert found["rephrasings"] == {"min": 0, "mean": 0.2, "max": 1}
    assert (found["per_image"], found["per_image_without_conditional"]) == (5 / 4, 3 / 4)
    assert (found["semantic_pairs"], found["ratio"], found["ratio_without_conditional"]) == (3, 5 / 3, 1)
    table = statistics_table(found).splitlines()
    assert len({len(line) for line in table}) == 1 and set(table[1]) <= set("| -:")
    assert "kind: conditional" in table[12] and table[12].endswith("2 |")


def test_statistics_of_nothing():
    found = statistics([])
    assert found["per_image"] == found["ratio"] == found["query_words"]["median"] == 0
    assert "| labelled images " in statistics_table(found)


def test_a_table_keeps_its_columns_whatever_the_texts_hold():
    assert markdown_table(("a", "n"), [("x|y\nz", 1)]) == "| a      |   n |\n| ------ | --: |\n| x\\|y z |   1 |\n"
