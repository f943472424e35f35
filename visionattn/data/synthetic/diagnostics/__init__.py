"""Generated tasks that each ask a network for one ability, with exact labels, places and reference solutions."""

from .pictures import SOURCES, find_source
from .reference import solve
from .scenes import Scenes
from .tasks import TASKS, VERSION, Task

__all__ = ["SOURCES", "TASKS", "VERSION", "Scenes", "Task", "find_source", "solve"]
