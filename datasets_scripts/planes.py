"""Instance maps of instances that overlap: as many planes as it takes, one below the other in the stored image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

MOST_INSTANCES = 2**16 - 1


def allotted(maps: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """uint16 (P, H, W) of maps in their order, each on the first plane where it fits whole.

    Args:
        maps: ids of instances (H, W) each, 0 = none, `MOST_INSTANCES` at most.
    """
    planes = [np.zeros((height, width), np.uint16)]
    for ids in maps:
        inside = ids > 0
        plane = next((plane for plane in planes if not plane[inside].any()), None)
        if plane is None:
            planes.append(plane := np.zeros((height, width), np.uint16))
        plane[inside] = ids[inside]
    return np.stack(planes)


def stacked(planes: np.ndarray) -> np.ndarray:
    """(P, H, W) -> (P * H, W), as `Scene.instance_map` stores them."""
    return planes.reshape(-1, planes.shape[-1])
