"""The embedded tasks that ask for a text: questions about a passage and arithmetic word problems.

========  ==========================================================================================================
squad     three people own a thing each: who owns it, or what does someone own
squad_v2  the same, and one question in three is about someone, or something, that the passage does not mention
gsm8k     two steps, written out as in GSM8K's solutions: something is added, something is taken away
svamp     one step: an addition, a subtraction, a multiplication or a division
========  ==========================================================================================================

A passage has three owners and a question is equally often about each, so an answer that does not relate question and
passage is right one time in three at most. The people of the test split are unseen in training, as are some things and
frames (:mod:`mept.tasks.world`). Numbers are small: what is to be learned is which of them to take and what to do with
them. Every statement (with its numbers) occurs once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial

from mept.tasks.draws import Draw, Row, Rows, a
from mept.tasks.world import KINDS, PEOPLE, Split, Words, nouns

OWNS = Words(("{who} owns {thing}.",), ("{who} keeps {thing}.",))
WHAT = Words(("What does {who} own?",), ("What is it that {who} owns?",))
WHO = Words(("Who owns {thing}?",), ("Which person owns {thing}?",))
OWNERS = 3
"""In a passage."""
QUESTIONS = 2
"""About a passage: one for a thing, one for an owner."""


def generate_squad(rng: random.Random, split: Split, size: int, unanswerable: int = 0) -> Rows:
    """Passages with two questions each, of which every `unanswerable`-th, if any, has no answer."""
    draw = Draw(rng, split)

    def row(asked: int, open_: tuple[bool, bool]) -> tuple[Row, list[str]]:
        people = [draw.person()]
        while len(people) <= OWNERS:
            people.append(draw.other(PEOPLE[split], *people))
        kinds = rng.sample(tuple(KINDS), OWNERS + 1)
        things = [draw.word(KINDS[kind]) for kind in kinds]
        frame = draw.word(OWNS)
        facts = [(who, frame.format(who=who, thing=a(thing))) for who, thing in zip(people, things, strict=True)]
        context = " ".join(text for _, text in facts[:OWNERS])
        other = (asked + 1) % OWNERS
        ask_what = people[OWNERS if open_[0] else asked]
        ask_who = things[OWNERS if open_[1] else other]
        questions = [
            (draw.word(WHAT).format(who=ask_what), "" if open_[0] else things[asked]),
            (draw.word(WHO).format(thing=a(ask_who)), "" if open_[1] else people[other]),
        ]
        qas = [_question(context, *question) for question in questions]
        names = [f"{who} {thing}" for who, thing in zip(people[:OWNERS], things[:OWNERS], strict=True)]
        return {"context": context, "qas": qas}, names

    number = size // QUESTIONS
    opened = [unanswerable > 0 and index % unanswerable == 0 for index in range(size)]
    rng.shuffle(opened)
    plan = draw.plan(range(OWNERS), number)
    rows = [draw.new(partial(row, asked, (opened[2 * i], opened[2 * i + 1]))) for i, asked in enumerate(plan)]
    for index, made in enumerate(rows):
        for count, question in enumerate(made["qas"]):
            question["id"] = f"{split}-{index}-{count}"
    return rows


def _question(context: str, question: str, answer: str) -> Row:
    found = [{"text": answer, "answer_start": context.index(answer)}] if answer else []
    return {"question": question, "answers": found, "is_impossible": not found}


NOUNS = nouns("apples coins books shells cards stamps pencils marbles", "balloons kites eggs")
BUYS = Words(("{who} buys {b} more",), ("{who} gets {b} more",))
GIVES = Words(("gives {c} away.",), ("loses {c} of them.",))


def generate_gsm8k(rng: random.Random, split: Split, size: int) -> Rows:
    """Two steps, with a solution that has GSM8K's annotations."""
    draw = Draw(rng, split)

    def row() -> tuple[Row, list[str]]:
        who, things = draw.person(), draw.word(NOUNS)
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        c = rng.randint(1, a + b - 1)
        bought = draw.word(BUYS).format(who=who, b=b)
        question = f"{who} has {a} {things}. {bought} and {draw.word(GIVES).format(c=c)} "
        question += f"How many {things} does {who} have now?"
        solution = f"{who} first has {a}+{b}=<<{a}+{b}={a + b}>>{a + b} {things}.\n"
        solution += f"Then {who} has {a + b}-{c}=<<{a + b}-{c}={a + b - c}>>{a + b - c} {things}.\n#### {a + b - c}"
        return {"question": question, "answer": solution}, [question]

    return [draw.new(row) for _ in range(size)]


PROBLEMS: Mapping[str, tuple[Words, str]] = {
    "Addition": (
        Words(("{who} has {a} {things} and buys {b} more.",), ("{who} finds {b} {things} beside the first {a}.",)),
        "How many {things} does {who} have?",
    ),
    "Subtraction": (
        Words(("{who} has {a} {things} and loses {b}.",), ("Of {a} {things} {who} sells {b}.",)),
        "How many {things} are left?",
    ),
    "Multiplication": (
        Words(("{who} has {a} boxes with {b} {things} each.",), ("{who} fills {a} bags with {b} {things} each.",)),
        "How many {things} are in all of them?",
    ),
    "Common-Division": (
        Words(("{who} puts {a} {things} into {b} boxes.",), ("{who} shares {a} {things} among {b} bags.",)),
        "How many {things} are in each?",
    ),
}
"""SVAMP's types: what is told, and what is asked."""


def generate_svamp(rng: random.Random, split: Split, size: int) -> Rows:
    """One step, equally often of each of SVAMP's types."""
    draw = Draw(rng, split)

    def row(kind: str) -> tuple[Row, list[str]]:
        told, asked = PROBLEMS[kind]
        who, things = draw.person(), draw.word(NOUNS)
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        if kind == "Subtraction":
            a += b
        elif kind == "Common-Division":
            a *= b
        results = {"Addition": a + b, "Subtraction": a - b, "Multiplication": a * b, "Common-Division": a // b}
        words = {"who": who, "things": things, "a": a, "b": b}
        body = draw.word(told).format(**words)
        row = {"Body": body, "Question": asked.format(**words), "Answer": float(results[kind]), "Type": kind}
        return row, [body]

    rows = [draw.new(partial(row, kind)) for kind in draw.plan(tuple(PROBLEMS), size)]
    return [{"ID": f"{split}-{index}", **made} for index, made in enumerate(rows)]


GENERATORS: Mapping[str, Callable[[random.Random, Split, int], Rows]] = {
    "squad": generate_squad,
    "squad_v2": partial(generate_squad, unanswerable=3),
    "gsm8k": generate_gsm8k,
    "svamp": generate_svamp,
}
