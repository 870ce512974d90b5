"""Instance maps of instances that overlap: as many planes as it takes, one below the other in the stored image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

MOST_INSTANCES = 2**16 - 1


def allotted(masks: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """uint16 (P, H, W) with the ids 1, 2, ... of masks in their order, each on the first plane where it fits whole.

    Args:
        masks: bool (H, W) each, `MOST_INSTANCES` at most.
    """
    planes = [np.zeros((height, width), np.uint16)]
    for instance_id, mask in enumerate(masks, start=1):
        plane = next((plane for plane in planes if not plane[mask].any()), None)
        if plane is None:
            planes.append(plane := np.zeros((height, width), np.uint16))
        plane[mask] = instance_id
    return np.stack(planes)


def stacked(planes: np.ndarray) -> np.ndarray:
    """(P, H, W) -> (P * H, W), as `Scene.instance_map` stores them."""
    return planes.reshape(-1, planes.shape[-1])
