"""Drawn streets: `layout` plans what stands where, `figures` and `vehicles` shape it, `picture` paints it."""

from .picture import Drawing, draw_street

__all__ = ["Drawing", "draw_street"]
