"""Rudder in a DistDGL script: `attach(g)` after DistGraph, and `ahead(dataloader, 16, epochs=E)` in place of the loops over epochs."""

from ._ahead import ahead
from ._attach import Attachment, attach, current, detach, paused
from ._native import RudderError

__all__ = ["Attachment", "RudderError", "ahead", "attach", "current", "detach", "paused"]
