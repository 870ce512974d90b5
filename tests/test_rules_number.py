"""Tables of instructions carry the number of the rules that made them; other rules need another number."""

from __future__ import annotations

import hashlib
import json

from datasets_scripts.build import RULES
from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.build import KINDS, build_instructions
from datasets_scripts.scenes import write_scenes

MADE = {6: "daee4cd6bf00e527"}
"""By number, what the rules of that number say of the scenes below."""


def test_other_rules_have_another_number(tmp_path):
    """Whoever changes what is said of the same picture raises `RULES` and puts the new line here: folders that older
    rules made would otherwise be continued, half one and half the other."""
    write_scenes(tmp_path, labelled=4, unlabelled=0, val=0, size=(96, 128), progress=False)
    scene_set = read_folder(tmp_path)
    made = build_instructions(scene_set, scene_set.scenes, KINDS, seed=0)
    assert {i.kind for i in made} == set(KINDS)
    said = [
        (
            i.kind,
            i.class_name,
            i.claim,
            i.instance_ids,
            i.query,
            i.answer,
            i.rephrasings,
            [a.class_name for a in i.anchors],
        )
        for i in made
    ]
    assert MADE[RULES] == hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
