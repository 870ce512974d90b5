"""Own folders: what lies where nobody would look for it, and what the fields of `classes.json` mean for pixels."""

from __future__ import annotations

import pytest
from PIL import Image

from datasets_scripts.bad_items import skipping
from datasets_scripts.folder import read_folder
from datasets_scripts.records import DataError

from .conftest import noise_image


@pytest.fixture
def own(tmp_path):
    """Two labelled images and one without a mask; the label is 0, but for a corner of 3 and one of 7."""
    for place in ("images", "unlabelled", "masks"):
        (tmp_path / place).mkdir()
    for name in ("images/a.png", "images/b.png", "unlabelled/c.png"):
        noise_image(12, 8).save(tmp_path / name)
    labels = Image.new("L", (12, 8))
    labels.paste(3, (0, 0, 4, 4))
    labels.paste(7, (8, 4, 12, 8))
    for stem in "ab":
        labels.save(tmp_path / f"masks/{stem}.png")
    (tmp_path / "classes.json").write_text('{"0": "road", "3": "car", "7": "smudge"}')
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("instances/a_inst.png", "images has no image of this stem"),
        ("facts/c.json", "images has no image of this stem"),
        ("images/2024/may/d.png", "is in a folder of its own; images directly in {own}/images would be right"),
        ("unlabelled/2024/d.JPG", "is in a folder of its own; images directly in {own}/unlabelled would be right"),
        ("instances/a/1.png", "is in a folder of its own; images directly in {own}/instances would be right"),
    ],
)
def test_what_would_be_missed_is_refused(own, name, message):
    path = own / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    # other programs leave these behind
    for hidden in (path.parent / ".ipynb_checkpoints" / path.name, path.with_name(f"._{path.name}")):
        hidden.parent.mkdir(exist_ok=True)
        hidden.write_text("")
    with pytest.raises(DataError) as error:
        read_folder(own)
    assert str(error.value).startswith(f"{path}: ") and str(error.value).endswith(message.format(own=own))
    with skipping() as skipped:
        assert [scene.image_id for scene in read_folder(own).scenes] == ["a", "b", "c"]
    assert len(skipped) == 1
    path.unlink()
    read_folder(own)
