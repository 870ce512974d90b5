"""Semantic queries: they name the class."""

from __future__ import annotations

from ..records import SemanticClass

# Every phrasing works for mass nouns ("sky") and countable ones alike, since a query asks for all of the class.
TEMPLATES: tuple[str, ...] = (
    "Can you segment the {name} in this image?",
    "Please outline every part of the image that is {name}.",
    "Where is the {name}?",
    "Segment the {name}.",
    "Show me the {name} in the picture.",
    "Which pixels belong to the {name}?",
    "Mark the {name} for me, please.",
    "the {name}",
    "I am looking for the {name}; highlight it.",
    "Find the {name} and give me its mask.",
    "What part of this photo shows the {name}? Respond with a segmentation mask.",
    "Separate the {name} from everything else in the scene.",
)

ANSWERS: tuple[str, ...] = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)


def semantic_queries(semantic_class: SemanticClass) -> tuple[str, ...]:
    """All phrasings that ask for every pixel of a class by its name."""
    return tuple(template.format(name=semantic_class.name) for template in TEMPLATES)
