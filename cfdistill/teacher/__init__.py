"""The teacher: one client, one cache, five prompts, three backends."""

from cfdistill.teacher.client import Teacher

__all__ = ["Teacher"]
