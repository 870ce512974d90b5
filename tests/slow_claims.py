"""Claims decided a second time: from full-size masks, pixel by pixel, after the words of `relations.py`,
`attribute.py`, `places.py`, `claims.py` and `conditional.py`. Nothing of them is used but their constants."""

from __future__ import annotations

import colorsys
import itertools
import math
from fractions import Fraction

import numpy as np
from scipy.spatial import cKDTree

from datasets_scripts.components import BRIDGED
from datasets_scripts.instructions import attribute as a
from datasets_scripts.instructions import places as p
from datasets_scripts.instructions import relations as r
from datasets_scripts.instructions.claims import MAX_UNCLEAR, MIN_LEFT_OUT
from datasets_scripts.instructions.colours import ABSENT, CLEAR, COLOURS
from datasets_scripts.instructions.conditional import COUNTED_ONLY
from datasets_scripts.instructions.objects import EDGE, MAX_LOOSE, MIN_AREA, ONE_PIECE

YES, NO, UNCLEAR = "yes", "no", "unclear"


def answer(yes: bool, no: bool) -> str:
    return YES if yes else NO if no else UNCLEAR


def heron(a: float, b: float, c: float) -> float:
    """Area of a triangle, by Kahan's arrangement, which is exact enough for flat ones."""
    a, b, c = sorted((a, b, c), reverse=True)
    return math.sqrt(max(0.0, (a + (b + c)) * (c - (a - b)) * (c + (a - b)) * (a + (b - c)))) / 4


class Thing:
    """An instance or a whole class: a mask of the image's size, and what is measured on its list of pixels."""

    def __init__(self, number: int | None, kind, mask: np.ndarray):
        self.number, self.kind, self.mask = number, kind, mask
        self.pixels = [(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)]
        self.area = len(self.pixels)
        ys, xs = [y for y, _ in self.pixels], [x for _, x in self.pixels]
        self.y, self.x = Fraction(sum(ys), self.area), Fraction(sum(xs), self.area)  # exact
        self.box = (min(ys), min(xs), max(ys) + 1, max(xs) + 1)
        self.left, self.top = reached(sorted(xs)), reached(sorted(ys))
        self.right, self.bottom = reached(sorted(xs, reverse=True)), reached(sorted(ys, reverse=True))


def reached(positions: list[int]) -> int:
    """The position at which, walking in this order, a tenth of the pixels is behind or under us."""
    for count, position in enumerate(positions, start=1):
        if count >= EDGE * len(positions):
            return position
    raise AssertionError


class SlowScene:
    """Arguments as of `SceneObjects`, the pixels as an array."""

    def __init__(self, classes, labels, instances=None, pixels=None, facts=None):
        self.classes, self.labels, self.pixels, self.facts = classes, labels, pixels, facts or {}
        self.height, self.width = labels.shape
        self.diagonal = math.hypot(self.height, self.width)
        self.planes = [] if instances is None else list(instances.reshape(-1, *labels.shape))
        self.things, self._kept = [], {}
        for plane in self.planes:
            for number in sorted(set(plane[plane > 0].tolist())):
                kind = self.class_of(number, labels[plane == number].tolist())
                if kind is not None:
                    self.things.append(Thing(number, kind, plane == number))

    def class_of(self, number, labels):
        name = self.facts.get(number, {}).get("class")
        if name:
            return next((c for c in self.classes if c.name == name), None)
        best = max(sorted(set(labels)), key=labels.count)
        return next((c for c in self.classes if c.id == best), None)

    def all_of(self, kind) -> list[Thing]:
        own = [t for t in self.things if t.kind is kind]
        loose = 0
        for y, x in zip(*np.nonzero(self.labels == kind.id), strict=True):
            loose += not any(thing.mask[y, x] for thing in own)
        return [] if loose > MAX_LOOSE * self.labels.size else own

    def visible(self, thing: Thing) -> bool:
        return thing.area >= MIN_AREA * self.height * self.width

    # -- what is measured ------------------------------------------------------------------------------------------

    def shared(self, one: Thing, other: Thing) -> float:
        narrower = min(one.right - one.left + 1, other.right - other.left + 1)
        return (min(one.right, other.right) - max(one.left, other.left) + 1) / narrower

    def foot(self, thing: Thing) -> int | None:
        top, _, bottom, _ = thing.box
        if not thing.kind.stands or bottom == self.height:
            return None
        tenth = max(1, round(EDGE * (bottom - top)))
        lowest: dict[int, int] = {}
        for y, x in thing.pixels:
            lowest[x] = max(y, lowest.get(x, 0))
        feet = [(y + 1, x) for x, y in lowest.items() if y >= bottom - tenth]
        grounds = [c.id for c in self.classes if c.ground]
        return bottom - 1 if sum(self.labels[place] in grounds for place in feet) >= len(feet) / 2 else None

    def distance(self, one: Thing, other: Thing) -> float:
        """In diagonals."""
        key = id(one), id(other)
        if key not in self._kept:
            near = cKDTree(other.pixels).query(one.pixels)[0].min()
            self._kept[key] = float(np.float32(near)) / self.diagonal
        return self._kept[key]

    def around(self, thing: Thing, anchor: Thing) -> float:
        ring = set()
        for y, x in thing.pixels:
            ring |= {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
        ring = {(y, x) for y, x in ring if 0 <= y < self.height and 0 <= x < self.width and not thing.mask[y, x]}
        return sum(bool(anchor.mask[place]) for place in ring) / len(ring) if ring else 0.0

    def in_one_place(self, thing: Thing) -> bool:
        """Walks from pixel to pixel of the mass over gaps of at most twice `BRIDGED`."""
        reach = 2 * max(1, round(BRIDGED * self.height)) + 1
        left, largest = set(thing.pixels), 0
        while left:
            walk, size = [left.pop()], 0
            while walk:
                y, x = walk.pop()
                size += 1
                steps = itertools.product(range(y - reach, y + reach + 1), range(x - reach, x + reach + 1))
                near = [place for place in steps if place in left]
                left.difference_update(near)
                walk += near
            largest = max(largest, size)
        return largest >= ONE_PIECE * thing.area

    def colour_share(self, thing: Thing, colour: str) -> float:
        def has(y, x):
            return 0 <= y < self.height and 0 <= x < self.width and thing.mask[y, x]

        steps = ((0, 1), (0, -1), (1, 0), (-1, 0))
        inner = [(y, x) for y, x in thing.pixels if all(has(y + dy, x + dx) for dy, dx in steps)]
        pixels = inner if len(inner) >= thing.area / 4 else thing.pixels
        return sum(colour_word(self.pixels[place]) == colour for place in pixels) / len(pixels)

    # -- claims ----------------------------------------------------------------------------------------------------

    def relation(self, name: str, t: Thing, rivals: list[Thing], anchors: list[Thing]) -> str:
        n, counted = anchors[0], bool(t.kind.noun)
        if name in ("left", "right"):
            if not n.kind.noun and n.right - n.left + 1 > r.WIDE * self.width:
                return UNCLEAR
            if name == "left":
                return answer((n.left - t.right - 1) / self.width >= r.GAP, t.x >= n.x if counted else t.left >= n.left)
            return answer((t.left - n.right - 1) / self.width >= r.GAP, t.x <= n.x if counted else t.right <= n.right)
        if name in ("higher", "above"):
            found = answer((n.top - t.bottom - 1) / self.height >= r.GAP, t.y >= n.y if counted else t.top >= n.top)
            return found if name == "higher" else self.upright(found, t, n)
        if name in ("lower", "below"):
            yes = (t.top - n.bottom - 1) / self.height >= r.GAP
            found = answer(yes, t.y <= n.y if counted else t.bottom <= n.bottom)
            return found if name == "lower" else self.upright(found, t, n)
        if name in ("front", "behind"):
            feet = self.foot(t), self.foot(n)
            if None in feet:
                return UNCLEAR
            nearer = (feet[0] - feet[1]) / self.height * (1 if name == "front" else -1)
            return answer(nearer >= r.DEPTH and self.shared(t, n) >= r.OVERLAP, nearer <= 0)
        if name in ("nearest", "farthest"):
            own, others = self.distance(t, n), [self.distance(o, n) for o in rivals]
            if not others:
                return UNCLEAR

            def clearly(near, far):
                return far >= r.NEARER * near and far - near >= r.NEARER_GAP

            if name == "nearest":
                return answer(all(clearly(own, o) for o in others), any(clearly(o, own) for o in others))
            return answer(all(clearly(o, own) for o in others), any(clearly(own, o) for o in others))
        if name == "larger":
            return answer(t.area / n.area >= r.LARGER, t.area <= n.area)
        if name == "smaller":
            return answer(t.area / n.area <= 1 / r.LARGER, t.area >= n.area)
        if name == "between":
            return self.between(t, *anchors)
        if name == "inside":
            top, left, bottom, right = t.box
            border = top == 0 or left == 0 or bottom == self.height or right == self.width
            share = self.around(t, n)
            return answer(share >= r.SURROUNDED[0] and not border, share < r.SURROUNDED[1])
        assert name == "touching", name
        return answer(self.around(t, n) >= r.TOUCHING[0], self.distance(t, n) > r.TOUCHING[1])

    def upright(self, found: str, t: Thing, n: Thing) -> str:
        if (t.kind.stands and n.kind.stands) or t.kind.ground or n.kind.ground:
            return UNCLEAR
        return UNCLEAR if found == YES and self.shared(t, n) < r.OVERLAP else found

    def between(self, t: Thing, one: Thing, two: Thing) -> str:
        apart = math.dist((one.y, one.x), (two.y, two.x))
        if apart < 2 * r.BETWEEN[0] * self.diagonal:
            return UNCLEAR
        to_one, to_two = math.dist((t.y, t.x), (one.y, one.x)), math.dist((t.y, t.x), (two.y, two.x))
        along = round((to_one**2 - to_two**2 + apart**2) / (2 * apart**2), 9)  # law of cosines
        height = 2 * heron(apart, to_one, to_two) / apart  # of the triangle over the line between the anchors
        aside = round(height / apart, 9)
        yes = r.BETWEEN[0] <= along <= 1 - r.BETWEEN[0] and aside <= r.BETWEEN[1]
        if abs(one.x - two.x) >= abs(one.y - two.y):
            yes &= one.right < t.x < two.left or two.right < t.x < one.left
        else:
            yes &= one.bottom < t.y < two.top or two.bottom < t.y < one.top
        return answer(yes, along < 0 or along > 1 or aside >= r.BETWEEN[2])

    def attribute(self, name: str, t: Thing, rivals: list[Thing]) -> str:
        if name == "largest":
            ratios = [t.area / o.area for o in rivals]
            return answer(min(ratios) >= a.SIZE_MARGIN, min(ratios) <= 1 / a.SIZE_MARGIN)
        if name == "smallest":
            ratios = [o.area / t.area for o in rivals]
            return answer(min(ratios) >= a.SIZE_MARGIN, min(ratios) <= 1 / a.SIZE_MARGIN)
        if name in ("leftmost", "rightmost"):
            ahead = min((o.x - t.x if name == "leftmost" else t.x - o.x) / self.width for o in rivals)
            margin = Fraction(str(a.SIDE_MARGIN))
            farther = [o.left < t.left if name == "leftmost" else o.right > t.right for o in rivals]
            return answer(ahead >= margin and not any(farther), ahead <= -margin)
        if name in ("closest", "farthest"):
            feet = [self.foot(o) for o in (t, *rivals)]
            if None in feet:
                return UNCLEAR
            ahead = min((feet[0] - o if name == "closest" else o - feet[0]) / self.height for o in feet[1:])
            return answer(ahead >= a.DEPTH_MARGIN, ahead <= -a.DEPTH_MARGIN)
        if any("colour" in fact for fact in self.facts.values()):
            known = self.facts.get(t.number, {}).get("colour")
            return answer(known == name, known is not None and known != name)
        if self.pixels is None:
            return UNCLEAR
        share = self.colour_share(t, name)
        return answer(share >= CLEAR, share <= ABSENT)

    def place(self, name: str, t: Thing) -> str:
        side, part = name.split()
        flip = side in ("right", "lower", "bottom")
        rows = side in ("upper", "lower", "top", "bottom")
        size, across = (self.height, self.width) if rows else (self.width, self.height)
        # distances from the side that is named, whichever it is
        where = [size - 1 - (y if rows else x) if flip else (y if rows else x) for y, x in t.pixels]
        if part == "half":
            near, far = reached(sorted(where)), reached(sorted(where, reverse=True))
            return answer(far + 1 <= size / 2, near + 1 > size / 2)
        return answer(where.count(0) / across >= p.REACHED, min(where) >= p.CLEAR_OF * size)

    # -- what they pick --------------------------------------------------------------------------------------------

    def picked(self, kind, decide, anchors=()) -> frozenset[int] | None:
        candidates = [t for t in self.all_of(kind) if all(t is not n for n in anchors)]
        if len(candidates) < (1 if anchors else 2):
            return None
        found = {t: decide(t, [o for o in candidates if o is not t]) for t in candidates}
        true = [t for t in candidates if found[t] == YES]
        unclear = sum(t.area for t in candidates if found[t] == UNCLEAR)
        if kind.noun:
            good = len(true) == 1 and not unclear and self.visible(true[0])
        else:
            good = any(map(self.visible, true)) and unclear <= MAX_UNCLEAR * sum(t.area for t in true)
            left_out = [t for t in candidates if found[t] == NO]
            good = good and any(map(self.visible, left_out))
            good = good and sum(t.area for t in left_out) >= MIN_LEFT_OUT * sum(t.area for t in candidates)
        return frozenset(t.number for t in true) if good else None

    def attributes(self, kind) -> dict[str, int]:
        """Claim -> the instance it singles out, in the order in which they give names."""
        known = sorted({fact["colour"] for fact in self.facts.values() if "colour" in fact})
        names = ["largest", "smallest", "leftmost", "rightmost", "closest", "farthest", *(known or COLOURS)]
        found = {n: self.picked(kind, lambda t, rivals, n=n: self.attribute(n, t, rivals)) for n in names}
        return {name: min(ids) for name, ids in found.items() if ids}

    def places(self, kind) -> dict[str, frozenset[int]]:
        """Place -> the instances in it."""
        names = [f"{s} half" for s in ("left", "right", "upper", "lower")]
        names += [f"{s} edge" for s in ("left", "right", "top", "bottom")]
        found = {n: self.picked(kind, lambda t, _, n=n: self.place(n, t)) for n in names}
        return {name: ids for name, ids in found.items() if ids}

    def anchors(self) -> list[Thing]:
        found = []
        for kind in (c for c in self.classes if c.asked):
            things = self.all_of(kind)
            if not kind.noun:
                if (self.labels == kind.id).any():
                    whole = Thing(None, kind, self.labels == kind.id)
                    found += [whole] if self.visible(whole) and self.in_one_place(whole) else []
            elif len(things) == 1:
                found += [t for t in things if self.visible(t)]
            else:
                numbers = set(self.attributes(kind).values())
                found += [t for t in things if t.number in numbers]
        return found

    def conditional(self) -> set[tuple]:
        """(class, relation, ids of the targets, {(class, id) of an anchor}) of everything that may be asked."""
        anchors, found = self.anchors(), set()
        for kind in (c for c in self.classes if c.asked):
            for name in r.RELATIONS:
                for chosen in itertools.combinations(anchors, 2 if name == "between" else 1):
                    if name in COUNTED_ONLY and not all(k.noun for k in (kind, *(n.kind for n in chosen))):
                        continue
                    if any(n.kind is kind and n.number is None for n in chosen):
                        continue
                    ids = self.picked(kind, lambda t, o, n=name, c=chosen: self.relation(n, t, o, list(c)), chosen)
                    if ids:
                        found.add((kind.name, name, ids, frozenset((n.kind.name, n.number) for n in chosen)))
        return found


def colour_word(pixel) -> str | None:
    """After the tables of `colours.py`: hues in degrees, saturation and value in [0, 1]."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(int(v) / 255 for v in pixel))
    if value <= 0.18:
        return "black"
    if saturation <= 0.15 and value >= 0.75:
        return "white"
    if saturation < 0.35 or value < 0.2:
        return None
    degrees = 360 * hue
    for name, start, stop in (("yellow", 42, 65), ("green", 85, 160), ("blue", 195, 255)):
        if start <= degrees <= stop:
            return name
    return "red" if degrees >= 345 or degrees <= 15 else None
