"""Memory that ReCoRD takes, on files of its official schema with made-up text of its real size.

A passage has about 1,300 characters, 12 entities mentioned 20 times and one or two queries, as in the official files
(65,709 passages of train and 7,481 of val).

    python tests/benchmarks/record_memory.py [--passages 4000] [--limits 100 none]

Prints the files' size and, each of a process of its own, the peak of memory above what the imported libraries and a
tiny model take: of loading the task, and of loading it and encoding what a trial trains on and is chosen by, with
`max_train_examples` and without. Pages of the cached token ids, which are mapped from their file and given back
when memory is short, are left out.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SYLLABLES = "ba de fi go hu ka le mi no pu ra se ti vo wu ya zen lor mat kin".split()
MENTIONS, ENTITIES = 20, 12


def write_record(folder: Path, passages: int, val_passages: int | None = None, seed: int = 0) -> int:
    """Write ``ReCoRD/train.jsonl`` and ``val.jsonl`` below a folder and return their size in bytes.

    Args:
        folder: what becomes ``--data-dir``.
        passages: of train.
        val_passages: of val; about a ninth of train by default, as in the official files.
        seed: decides the text.
    """
    (folder / "ReCoRD").mkdir(parents=True, exist_ok=True)
    size = 0
    for split, number in (("train", passages), ("val", val_passages or max(1, passages // 9))):
        path = folder / "ReCoRD" / f"{split}.jsonl"
        rng = random.Random(f"{seed}-{split}")
        with path.open("w") as file:
            for index in range(number):
                file.write(json.dumps(_passage(rng, index)) + "\n")
        size += path.stat().st_size
    return size


def _word(rng: random.Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=rng.randint(1, 3)))


def _passage(rng: random.Random, index: int) -> dict[str, object]:
    names = [f"{_word(rng).title()} {_word(rng).title()}" for _ in range(ENTITIES)]
    text, spans = "", []
    for number in range(MENTIONS):
        name = names[number % len(names)]
        spans.append({"start": len(text), "end": len(text) + len(name) - 1})
        mark = "\n@highlight\n" if number >= MENTIONS - 3 else " "
        text += f"{name} {' '.join(_word(rng) for _ in range(9))}.{mark}"
    queries = [_query(rng, index * 2 + number, text, rng.choice(spans)) for number in range(rng.randint(1, 2))]
    passage = {"text": text.strip(), "entities": spans}
    return {"source": "Daily mail", "passage": passage, "qas": queries, "idx": index}


def _query(rng: random.Random, index: int, text: str, span: dict[str, int]) -> dict[str, object]:
    words = " ".join(_word(rng) for _ in range(16))
    rest = " ".join(_word(rng) for _ in range(8))
    answer = {**span, "text": text[span["start"] : span["end"] + 1]}
    return {"query": f"{words} @placeholder {rest}", "answers": [answer], "idx": index}


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that has a piece for each syllable: about 400 tokens a text, like the official ones."""
    pieces = ["<pad>", "</s>", "<unk>", *SYLLABLES, *(f"##{syllable}" for syllable in SYLLABLES), "."]
    model = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>"))
    model.normalizer, model.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def resident() -> int:
    """Return the process's own memory in bytes, pages mapped from files left out (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


class Peak:
    """The most own memory of this process while it is open, above what it had before; a thread looks on."""

    def __enter__(self) -> Peak:
        self.before = self.most = resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, resident())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.most = max(self.most, resident())

    @property
    def growth(self) -> int:
        """Bytes."""
        return self.most - self.before


def measure(folder: Path, limit: str) -> dict[str, float]:
    """Load the task and, unless `limit` is ``load``, encode a trial's splits; return peak bytes and seconds."""
    from mept.backbones import wrap
    from mept.batches import training_batches
    from mept.learner import Learner
    from mept.tasks.data import load_task
    from mept.trial import TrialConfig
    from tests.models import random_model

    backbone = wrap(random_model("t5"), tokenizer(), name="tiny-t5")
    flat = {
        "backbone": "tiny", "task": "record", "data": "jsonl", "method": "prompt_tuning", "max_length": 512,
        "max_train_examples": None if limit in ("load", "none") else int(limit),
    }  # fmt: skip
    started = time.perf_counter()
    with Peak() as peak, tempfile.TemporaryDirectory() as directory:
        data = load_task("record", "jsonl", folder)
        if limit != "load":
            learner = Learner(TrialConfig.from_flat(flat), backbone, data, Path(directory) / "cache")
            for batch in training_batches(learner.train.lengths, 32, seed=0, epoch=1)[:100]:
                learner.train.collate(batch)
    return {"peak": peak.growth, "seconds": time.perf_counter() - started}


def main() -> None:
    """Print the table, or, in a process of its own, one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=4000, help="of train")
    parser.add_argument("--limits", nargs="+", default=["100", "none"], help="values of max_train_examples")
    parser.add_argument("--measure", nargs=2, metavar=("DATA_DIR", "LIMIT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure[0]), options.measure[1])))
        return
    with tempfile.TemporaryDirectory() as directory:
        size = write_record(Path(directory), options.passages)
        table = Table("measured", "peak, MiB", "peak / files", "seconds", title=f"files of {size / 2**20:.1f} MiB")
        for limit in ("load", *options.limits):
            command = [sys.executable, __file__, "--measure", directory, limit]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            name = "loading" if limit == "load" else f"a trial's splits, max_train_examples: {limit}"
            row = (f"{found['peak'] / 2**20:.0f}", f"{found['peak'] / size:.1f}", f"{found['seconds']:.1f}")
            table.add_row(name, *row)
        Console().print(table)


if __name__ == "__main__":
    main()
