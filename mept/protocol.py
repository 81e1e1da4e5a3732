"""How a trial's data are cut, written and judged, and when it stops: names for sets of choices.

``official`` is SuperGLUE's and ours. ``released`` is what the released code of MEPT (github.com/runtsang/MEPT at
e29b808) and of SMoP, whose script it took over (github.com/jyjohnchoi/SMoP at 34da5e2), does; verified there:

- ``scripts/train.py: prepare_dataset`` and ``score``: ``f1_acc`` for CB (the mean of accuracy and *micro* F1, which
  are the same number), macro F1 for MultiRC, accuracy for the rest and for every mixture. A mixture's dev score is the
  accuracy over all its examples there; here it is the mean of its tasks', as everywhere in this benchmark.
- ``scripts/train.py: train``: the dev loss and the dev score each have a patience, a spent one is never refilled,
  training stops when both are spent, and the test result is that of the last epoch at which one of them improved. In
  SMoP's script ``min_val_loss`` and ``max_val_score`` follow the best values. MEPT's script never updates them, so
  there every epoch with a loss below 100 counts as better and the last one is reported. Here it is as in SMoP's.
- ``src/superglue_loader.py: construct_dev_from_train_t2t``: dev is what follows the first ``n * 9 // 10`` examples of
  each label, in the order of the file. For a mixture this is done on the joined files there, here for each task.
- ``src/superglue_loader.py``: the texts of COPA and MultiRC begin without the task's name, and CB's says "hyopthesis".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Protocol = Literal["official", "released"]
Stopping = Literal["score", "loss_and_score"]
DevSplit = Literal["stratified", "last_tenth"]
Template = Literal["paper", "released"]


class Choices(NamedTuple):
    """What a protocol stands for; see :class:`mept.trial.TrialConfig`."""

    metric: str
    stopping: Stopping
    dev_split: DevSplit
    template: Template


OFFICIAL = Choices("official", "score", "stratified", "paper")
PROTOCOLS: dict[str, Choices] = {
    "official": OFFICIAL,
    "released": Choices("released", "loss_and_score", "last_tenth", "released"),
}


def choices(given: Mapping[str, Any]) -> Choices:
    """Return every choice: as given, or else as the protocol has it.

    Args:
        given: keys and values, among them perhaps ``protocol`` and choices of their own; None is not given.
    """
    named = PROTOCOLS.get(str(given.get("protocol")), OFFICIAL)
    own = {key: given[key] for key in Choices._fields if given.get(key) is not None}
    return named._replace(**own)
