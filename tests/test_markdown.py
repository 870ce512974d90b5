"""Text of others in cards: what a Markdown renderer shows of it is the text."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from publishing.markdown import plain_text

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PLACES = {
    "in a line": ("On {}, split val.", "On {}, split val."),
    "a heading": ("# {}", "{}"),
    "a cell": ("| name | number |\n| --- | --- |\n| {} | 1 |", "name\nnumber\n{}\n1"),
}
"""Markdown, and the text of its paragraphs and cells."""

AUTOLINK = re.compile(r"(https?://|ftp://|www(?=\.))[-.\w]+|[-.\w+]+@[-\w]+(\.[-\w]+)+", re.IGNORECASE)
"""Where remark looks for bare addresses (mdast-util-gfm-autolink-literal; ftp is of GFM's specification): in the pieces
of text that the rest of Markdown has left, so whatever a text was escaped by. cmark-gfm treats e-mail addresses so."""


def pieces(markdown: str) -> list[list[str]]:
    """Of each paragraph and cell the pieces of text, cut where something invisible is between them.

    Raises:
        AssertionError: something is shown as anything but text.
    """
    found = []
    for block in PARSER.parse(markdown):
        if block.type == "inline":
            for token in block.children:
                comment = token.type == "html_inline" and re.fullmatch(r"<!--.*?-->", token.content)
                assert token.type == "text" or comment, (markdown, token)
            found.append([token.content for token in block.children if token.type == "text"])
    return found


def shown(value: str) -> tuple[list[str], list[str]]:
    """What a renderer shows of a text in each of the places, and the pieces of it that it would make links of."""
    found = [pieces(markdown.format(plain_text(value))) for markdown, _ in PLACES.values()]
    linked = [piece for place in found for block in place for piece in block if AUTOLINK.search(piece)]
    return ["\n".join(map("".join, place)) for place in found], linked


def as_it_is(value: str) -> tuple[list[str], list[str]]:
    return [expected.format(" ".join(value.split())) for _, expected in PLACES.values()], []


HOSTILE = (
    "https://evil.example/x",
    "see HTTP://evil.example, ftp://evil.example or www.evil.example",
    "(WWW.evil.example) _www.evil.example *www.evil.example",
    "a@evil.example, mailto:a@evil.example",
    "<https://evil.example> <b>bold</b> <!-- no --> &copy; &#42;",
    "[link](http://evil.example) ![picture](x.png) [ref]: /x",
    "_x_ __x__ *x* **x** ~x~ ~~x~~ `x` ``x`` \\`x` \\\\_x_",
    "a | b \\| c",
    "a heading #",
    "two\nlines\u2028and\tmore",
    "$x$ $$x$$ \\(x\\) \\[x\\]",
    "- 1. > + = :",
)


@pytest.mark.parametrize("value", HOSTILE)
def test_text_of_others_is_shown_as_it_is(value):
    assert shown(value) == as_it_is(value)


@given(st.text("`*_~[]()!|#<>&\\$:/@.-+=w1a \n", min_size=1, max_size=30).filter(str.strip))
@example("http://www.a@a.a")
def test_any_text_is_shown_as_it_is(value):
    assert shown(value) == as_it_is(value)


def test_formulas_of_the_hub_do_not_begin():
    """`$$` and `\\\\(`, of which it is not known that they are looked for after Markdown's own escapes."""
    assert not re.search(r"\$|\\\\|\\\(", plain_text("$$x$$ \\(x\\) $x$"))


def test_plain_words_stay_readable():
    assert plain_text("kind: semantic, 0.5 (of 3) 1e-4 org/name") == "kind: semantic, 0.5 (of 3) 1e-4 org/name"
