"""Names of tasks for suites that run over many of them."""

from mept.tasks import TASKS
from mept.tasks.embedded import GENERATORS

LABEL_TASKS = tuple(name for name, task in TASKS.items() if task.answers == "labels")
TEXT_TASKS = tuple(name for name, task in TASKS.items() if task.answers == "text")
EMBEDDED_LABELS = tuple(name for name in GENERATORS if name in LABEL_TASKS)
EMBEDDED_TEXTS = tuple(name for name in GENERATORS if name in TEXT_TASKS)
