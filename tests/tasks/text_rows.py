"""One handwritten official row a family of text tasks, and official files made of them."""

import gzip
import json
from pathlib import Path
from typing import Any

CONTEXT = "Tea is a hot drink. Ann likes tea."


def paragraph(context: str = CONTEXT, **questions: Any) -> dict[str, Any]:
    """A passage of SQuAD; each question is its id and accepted answers."""
    qas = [
        {
            "id": name,
            "question": f"Which {name}?",
            "answers": [{"text": text, "answer_start": max(context.find(text), 0)} for text in golds],
            "is_impossible": not golds,
        }
        for name, golds in questions.items()
    ]
    return {"context": context, "qas": qas}


def squad_document(*paragraphs: dict[str, Any]) -> str:
    return json.dumps({"version": "1.1", "data": [{"title": "Tea", "paragraphs": list(paragraphs)}]})


HEADER = {"header": {"dataset": "BioASQ", "split": "dev"}}


def mrqa_passage(name: str = "q1", context: str = CONTEXT, **changes: Any) -> dict[str, Any]:
    answers = {"answers": ["ANN", "Ann"], "detected_answers": [{"text": "Ann", "char_spans": [[20, 22]]}]}
    question = {"qid": name, "question": "Who likes tea?", **answers, **changes}
    return {"id": "p", "context": context, "context_tokens": [["Tea", 0]], "qas": [question]}


def write_mrqa(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


GSM8K = {"question": "Ann has 1,000 cups and buys 80.", "answer": "1000+80=<<1000+80=1080>>1080 cups.\n#### 1,080"}
SVAMP = {
    "ID": "chal-1",
    "Body": "Ann had 3 cups and bought 4",
    "Question": "How many has she?",
    "Equation": "( 3.0 + 4.0 )",
    "Answer": 7.0,
    "Type": "Addition",
}
MAWPS = {
    "id": 5,
    "original_text": "Ann had 3 cups .",
    "segmented_text": "",
    "equation": "X=3",
    "ans": "10.333333333333334",
}
ASDIV = """<?xml version="1.0" encoding="UTF-8" ?>
<Machine-Reading-Corpus-File><ProblemSet>
{}
</ProblemSet></Machine-Reading-Corpus-File>
"""


def problem(number: int, answer: str, body: str = "Ann has {} cups.") -> str:
    told = f"<Body>{body.format(number)}</Body><Question>How many?</Question><Answer>{answer}</Answer>"
    return f'<Problem ID="n-{number}" Grade="1">{told}</Problem>'
