"""The teacher: one client, one cache, five prompts, three backends."""

from cfdistill.teacher.client import Teacher, cache_path, cache_state, differing, identity

__all__ = ["Teacher", "cache_path", "cache_state", "differing", "identity"]
