"""The backend of Django's task framework, for BACKEND in the TASKS setting."""

from .backend import OutboxBackend
from .task import OutboxTask

__all__ = ["OutboxBackend", "OutboxTask"]
