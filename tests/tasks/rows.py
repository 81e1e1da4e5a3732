"""One handwritten row a task: as in the official files, as on the hub, and the input text of its first example."""

from typing import Any

OFFICIAL: dict[str, dict[str, Any]] = {
    "boolq": {"question": "is tea hot", "passage": "Tea -- Tea is a hot drink.", "idx": 3, "label": True},
    "cb": {"premise": "It rains, I think.", "hypothesis": "it rains", "label": "entailment", "idx": 3},
    "copa": {
        "premise": "The glass fell.",
        "choice1": "It broke.",
        "choice2": "It sang.",
        "question": "effect",
        "label": 0,
        "idx": 3,
    },
    "multirc": {
        "idx": 3,
        "version": 1.1,
        "passage": {
            "text": "Ann ate a pear. Bob ate nothing.",
            "questions": [
                {
                    "idx": 7,
                    "question": "Who ate?",
                    "answers": [{"text": "Ann", "idx": 11, "label": 1}, {"text": "Bob", "idx": 12, "label": 0}],
                },
                {"idx": 8, "question": "What?", "answers": [{"text": "A pear", "idx": 13, "label": 1}]},
            ],
        },
    },
    "rte": {"premise": "Dogs bark.", "hypothesis": "Cats bark.", "label": "not_entailment", "idx": 3},
    "wic": {
        "word": "bank",
        "sentence1": "The bank is shut.",
        "sentence2": "A river bank.",
        "idx": 3,
        "label": False,
        "start1": 4,
        "start2": 8,
        "end1": 8,
        "end2": 12,
        "version": 1.1,
    },
    "wsc": {
        "text": "Mark told Pete many lies. He should know them.",
        "target": {"span1_index": 0, "span1_text": "Mark", "span2_index": 5, "span2_text": "He"},
        "idx": 3,
        "label": False,
    },
    "record": {
        "source": "Daily mail",
        "passage": {
            "text": "Ann Lee met Bob in Rome\n@highlight\nBob was late",
            "entities": [
                {"start": 12, "end": 14},
                {"start": 0, "end": 6},
                {"start": 19, "end": 22},
                {"start": 35, "end": 37},
            ],
        },
        "qas": [
            {
                "query": "@placeholder was not on time",
                "answers": [{"start": 12, "end": 14, "text": "Bob"}, {"start": 35, "end": 37, "text": "Bob"}],
                "idx": 5,
            }
        ],
        "idx": 3,
    },
}

HUB: dict[str, list[dict[str, Any]]] = {
    "boolq": [{**OFFICIAL["boolq"], "label": 1}],
    "cb": [{**OFFICIAL["cb"], "label": 0}],
    "copa": [OFFICIAL["copa"]],
    "multirc": [
        {
            "paragraph": "Ann ate a pear. Bob ate nothing.",
            "question": question,
            "answer": answer,
            "idx": {"paragraph": 3, "question": q, "answer": a},
            "label": label,
        }
        for question, answer, q, a, label in (
            ("Who ate?", "Ann", 7, 11, 1),
            ("Who ate?", "Bob", 7, 12, 0),
            ("What?", "A pear", 8, 13, 1),
        )
    ],
    "rte": [{**OFFICIAL["rte"], "label": 1}],
    "wic": [{key: value for key, value in OFFICIAL["wic"].items() if key != "version"} | {"label": 0}],
    "wsc": [
        {
            "text": "Mark told Pete many lies. He should know them.",
            "span1_index": 0,
            "span2_index": 5,
            "span1_text": "Mark",
            "span2_text": "He",
            "idx": 3,
            "label": 0,
        }
    ],
    "record": [
        {
            "passage": "Ann Lee met Bob in Rome\n@highlight\nBob was late",
            "query": "@placeholder was not on time",
            "entities": ["Bob", "Ann Lee", "Rome"],
            "entity_spans": {
                "text": ["Ann Lee", "Bob", "Rome", "Bob"],
                "start": [0, 12, 19, 35],
                "end": [7, 15, 23, 38],
            },
            "answers": ["Bob"],
            "idx": {"passage": 3, "query": 5},
        }
    ],
}

TEXTS: dict[str, str] = {
    "boolq": "boolq passage: Tea -- Tea is a hot drink. question: is tea hot",
    "cb": "cb hypothesis: it rains. premise: It rains, I think.",
    "copa": "copa choice1: It broke. choice2: It sang. premise: The glass fell. question: effect",
    "multirc": "multirc question: Who ate? answer: Ann. paragraph: Ann ate a pear. Bob ate nothing.",
    "rte": "rte sentence1: Dogs bark. sentence2: Cats bark.",
    "wic": "wic sentence1: The bank is shut. sentence2: A river bank. word: bank",
    "wsc": "wsc text: * Mark * told Pete many lies. # He # should know them.",
    "record": ("record query: Ann Lee was not on time entity: Ann Lee passage: Ann Lee met Bob in Rome. Bob was late"),
}

LABELS: dict[str, list[str]] = {
    "boolq": ["True"],
    "cb": ["entailment"],
    "copa": ["choice1"],
    "multirc": ["True", "False", "True"],
    "rte": ["not_entailment"],
    "wic": ["False"],
    "wsc": ["False"],
    "record": ["False", "True", "False"],
}
