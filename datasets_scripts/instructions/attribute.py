"""Attribute queries: they describe their target and never name its class.

Class-level ones come from `SemanticClass.attributes` and ask for every pixel of the class. Those about one instance
single it out among all instances of its class by what it alone has: `ATTRIBUTES`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import partial

from ..records import SemanticClass
from ..splits import composed
from .claims import Claim, Decision, Verdict, verdict
from .colours import ABSENT, CLEAR, COLOURS
from .objects import SceneObject, SceneObjects

TEMPLATES: tuple[str, ...] = (
    "{phrase}",
    "Segment {phrase}.",
    "Where can I see {phrase}?",
    "Please mark {phrase}.",
    "Can you find {phrase} in this picture?",
    "Show me {phrase}.",
    "Which pixels belong to {phrase}?",
    "Give me a mask of {phrase}, please.",
    "Highlight {phrase}.",
    "Find and outline {phrase}.",
)

SIZE_MARGIN = 1.5
"""The largest instance has at least this many times the pixels of any other; the smallest as much less."""
SIDE_MARGIN = 0.05
"""The outermost instance's centre is this fraction of the image's width beyond any other's, and no other reaches
farther to that side."""
DEPTH_MARGIN = 0.03
"""The nearest instance's ground contact is this fraction of the image's height below any other's."""


def _size(
    target: SceneObject, rivals: Sequence[SceneObject], anchors: Sequence, scene: SceneObjects, largest: bool
) -> Decision:
    ratios = [(target.area / r.area) if largest else (r.area / target.area) for r in rivals]
    return verdict(min(ratios) >= SIZE_MARGIN, min(ratios) <= 1 / SIZE_MARGIN), {"area_ratio": round(min(ratios), 3)}


def _side(
    target: SceneObject, rivals: Sequence[SceneObject], anchors: Sequence, scene: SceneObjects, sign: int
) -> Decision:
    # rounded, so that what lies exactly on the margin is decided by the margin and not by the last bit
    ahead = round(min(sign * (target.centre[1] - r.centre[1]) for r in rivals) / scene.width, 9)
    outermost = all(target.right >= r.right if sign > 0 else target.left <= r.left for r in rivals)
    return verdict(ahead >= SIDE_MARGIN and outermost, ahead <= -SIDE_MARGIN), {"ahead": round(ahead, 4)}


def _depth(
    target: SceneObject, rivals: Sequence[SceneObject], anchors: Sequence, scene: SceneObjects, sign: int
) -> Decision:
    contacts = [scene.ground_contact(o) for o in (target, *rivals)]
    if None in contacts:
        return Verdict.UNCLEAR, {}
    ahead = min(sign * (contacts[0] - other) for other in contacts[1:]) / scene.height
    return verdict(ahead >= DEPTH_MARGIN, ahead <= -DEPTH_MARGIN), {"ahead": round(ahead, 4)}


def _colour(
    target: SceneObject, rivals: Sequence[SceneObject], anchors: Sequence, scene: SceneObjects, colour: str
) -> Decision:
    if scene.colours_known:
        known = scene.facts.get(target.id or 0, {}).get("colour")
        return verdict(known == colour, known not in (None, colour)), {"colour": known}
    fraction = scene.colour_fractions(target).get(colour)
    if fraction is None:
        return Verdict.UNCLEAR, {}
    return verdict(fraction >= CLEAR, fraction <= ABSENT), {"fraction": round(fraction, 4)}


ATTRIBUTES: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        Claim(
            "largest",
            ("the largest {target}", "the {target} that takes up the most space"),
            partial(_size, largest=True),
        ),
        Claim(
            "smallest",
            ("the smallest {target}", "the {target} that takes up the least space"),
            partial(_size, largest=False),
        ),
        Claim(
            "leftmost",
            ("the leftmost {target}", "the {target} that is farthest to the left"),
            partial(_side, sign=-1),
        ),
        Claim(
            "rightmost",
            ("the rightmost {target}", "the {target} that is farthest to the right"),
            partial(_side, sign=1),
        ),
        Claim(
            "closest",
            ("the {target} closest to the camera", "the {target} nearest to whoever took the picture"),
            partial(_depth, sign=1),
        ),
        Claim(
            "farthest",
            ("the {target} farthest from the camera", "the {target} most distant from whoever took the picture"),
            partial(_depth, sign=-1),
        ),
    )
}
"""By name; colours besides (`colour_claim`)."""


PEOPLE = frozenset({"person", "rider", "pedestrian", "people", "cyclist", "motorcyclist"})
"""Names of classes whose colour is that of their clothes."""


def colour_claim(colour: str, clothes: bool = False) -> Claim:
    """The claim that one instance alone is of this colour; of people, that it wears it."""
    phrases = (f"the {colour} {{target}}", f"the {{target}} that is {colour}")
    if clothes:
        phrases = (f"the {{target}} dressed in {colour}", f"the {{target}} who wears {colour}")
    return Claim(colour, phrases, partial(_colour, colour=colour))


def attribute_claims(scene: SceneObjects, semantic_class: SemanticClass) -> list[Claim]:
    """What instances of a class could be singled out by in this scene."""
    known = sorted({fact["colour"] for fact in scene.facts.values() if "colour" in fact})
    clothes = semantic_class.name in PEOPLE
    return [*ATTRIBUTES.values(), *(colour_claim(colour, clothes) for colour in known or COLOURS)]


def attribute_queries(semantic_class: SemanticClass, attribute: str | None = None) -> tuple[str, ...]:
    """All phrasings that ask for every pixel of a class without its name; none where it has no attributes.

    Args:
        attribute: only those of this one.
    """
    texts = phrasings(semantic_class.attributes if attribute is None else [attribute])
    return tuple(text for text in texts if not names_class(text, semantic_class.name))


def instance_queries(semantic_class: SemanticClass, claim: Claim) -> tuple[str, ...]:
    """All phrasings of a claim about one instance; none where the class has no noun to describe it by."""
    if not semantic_class.noun:
        return ()
    texts = phrasings(phrase.format(target=semantic_class.noun) for phrase in claim.phrases)
    return tuple(text for text in texts if not names_class(text, semantic_class.name))


def phrasings(phrases: Iterable[str]) -> tuple[str, ...]:
    """Every template with every noun phrase, but for those that would speak of the picture twice."""
    phrases = tuple(phrases)
    return tuple(
        template.format(phrase=phrase)
        for template in TEMPLATES
        for phrase in phrases
        if not ("picture" in template and re.search(r"\b(picture|image)\b", phrase))
    )


FUNCTION_WORDS = frozenset(["a", "an", "and", "at", "for", "from", "in", "of", "on", "or", "the", "to", "with"])


UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts without spaces between words, by how Unicode's names of their letters begin."""


def names_class(phrase: str, class_name: str) -> bool:
    """Whether a phrase contains a word of the class name, in the singular or the English plural; "of" and its like do
    not count. Where a script has no spaces, a word is contained wherever its letters stand."""
    words = _words(phrase)
    together = " ".join(words)
    return any(
        form in words
        for word in _words(class_name)
        if word not in FUNCTION_WORDS
        for form in (
            word,
            word + "s",
            word + "es",
            word.removesuffix("y") + "ies",
            word.removesuffix("s"),
            word.removesuffix("ies") + "y",
        )
    ) or any(word in together for word in _words(class_name) if _unspaced(word))


def _words(text: str) -> list[str]:
    """Runs of letters with their marks (vowels of many scripts are marks), the same for capitals and for both spellings
    of an accent."""
    folded = composed(text.casefold())
    return "".join(c if unicodedata.category(c)[0] in "LM" else " " for c in folded).split()


def _unspaced(word: str) -> bool:
    return any(unicodedata.name(letter, "").startswith(UNSPACED) for letter in word)
