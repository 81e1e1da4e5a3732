"""Tasks that ask for a text: their rows, their files, and one clear message for what is no such row or file."""

import dataclasses
import gzip
import json
import string
from pathlib import Path

import pytest

from mept.errors import InputError
from mept.tasks import TASKS, mrqa
from mept.tasks.base import Example, RowError
from mept.tasks.checks import check_example, check_limit, remarks
from mept.tasks.data import content, identity, load_task, read_hub
from mept.tasks.splits import hold_out
from mept.tasks.text_metrics import NO_ANSWER, OPERATIONS
from tests.real import shared_data
from tests.tasks.names import TEXT_TASKS
from tests.tasks.text_rows import (
    ASDIV,
    CONTEXT,
    GSM8K,
    HEADER,
    MAWPS,
    SVAMP,
    mrqa_passage,
    paragraph,
    problem,
    squad_document,
    write_mrqa,
)

FAMILIES = {
    "squad": (paragraph(q=("Ann", "ANN", "Ann")), "question: Which q? context: {} answer:", ("Ann", "ANN"), "Ann"),
    "squad_v2": (paragraph(q=()), "question: Which q? context: {} answer:", ("",), NO_ANSWER),
    "policyqa": (
        paragraph(q=("a hot drink",)),
        "question: Which q? context: {} answer:",
        ("a hot drink",),
        "a hot drink",
    ),
    "mrqa_bioasq": (mrqa_passage(), "question: Who likes tea? context: {} answer:", ("ANN", "Ann"), "Ann"),
    "gsm8k": (GSM8K, "question: Ann has 1,000 cups and buys 80. answer:", ("1,080",), "1000+80=1080 cups.\n#### 1,080"),
    "svamp": (SVAMP, "question: Ann had 3 cups and bought 4 How many has she? answer:", ("7",), "7"),
    "asdiv": (
        {"ID": "n-1", "Body": "A $5 cup.", "Question": "How much? ", "Answer": "5 (dollars)"},
        "question: A $5 cup. How much? answer:",
        ("5",),
        "5",
    ),
    "mawps": (MAWPS, "question: Ann had 3 cups . answer:", ("10.333333333333334",), "10.3333"),
    "math_problems": ({"question": "1+1?", "answer": 2}, "question: 1+1? answer:", ("2",), "2"),
}
"""A row, the text of its example, what is accepted and what is trained on."""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_becomes_a_question_with_what_is_accepted_and_what_is_trained_on(name):
    row, text, golds, target = FAMILIES[name]
    [example] = TASKS[name].read(row, "3")
    check_example(TASKS[name], example)
    assert TASKS[name].text(example) == text.format(CONTEXT)
    assert (example.golds, example.target, example.label) == (golds, target, -1)
    assert example.id.startswith(f"{name}-") and example.group.startswith(f"{name}-")


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_the_declaration_of_a_task_is_whole(name):
    task = TASKS[name]
    fields = [field for _, field, _, _ in string.Formatter().parse(task.template) if field]
    assert task.name == name and task.context in fields and task.template.endswith(" answer:")
    assert task.labels == () and task.answer_tokens and task.category in ("QA", "math")
    if task.hub is not None:
        assert len(task.hub[2]) == 40 and set(task.hub[2]) <= set(string.hexdigits)


def test_the_twelve_sets_of_mrqa_are_there_and_half_of_them_are_for_tests_alone():
    assert [name for name in TASKS if name.startswith("mrqa_")] == [f"mrqa_{name}" for name in mrqa.SETS]
    tests_alone = [name for name, task in TASKS.items() if task.test_only]
    out_of_domain = "bioasq drop duorc race relationextraction textbookqa".split()
    assert tests_alone == [*(f"mrqa_{name}" for name in out_of_domain), "math_problems"]
    folders = {task.files[0].names for name, task in TASKS.items() if name.startswith("mrqa_")}
    assert len(folders) == 12


def test_content_of_labelled_examples_is_what_it_was_and_of_texts_it_has_what_is_set():
    label = Example("cb-0", {"b": "x", "a": "y"}, 1, "cb-0", "cb-0")
    assert content(label) == ["cb-0", [("a", "y"), ("b", "x")], 1, "cb-0", "cb-0", "", []]
    text = dataclasses.replace(label, golds=("7",), target="7", kind="addition")
    assert content(text)[6:] == [["7"], {"target": "7", "kind": "addition"}]
    assert len({identity({"test": [one]}) for one in (label, text, dataclasses.replace(text, target="8"))}) == 3


# Rows that cannot be used.

BAD_ROWS = {
    "SQuAD 1.1, no answer": ("squad", paragraph(q1=("Ann",), q=()), r"question 'q': in this task every .* `squad_v2`"),
    "SQuAD 2.0, contradiction": (
        "squad_v2",
        {"context": "c", "qas": [{"id": "q", "question": "?", "answers": [], "is_impossible": False}]},
        "question 'q': 'is_impossible' must be true where there are no 'answers', and only there, but got false and 0",
    ),
    "SQuAD, blank passage": ("squad", paragraph(" ", q=("Ann",)), "field 'context' must be a passage, but it is blank"),
    "SQuAD, answer of another type": (
        "squad",
        {"context": "c", "qas": [{"id": "q", "question": "?", "answers": [{"text": 3}]}]},
        "question 'q': field 'text' must be text, but got 3",
    ),
    "SQuAD, blank answers": ("squad", paragraph(q=(" ", "")), "question 'q': an accepted answer must be a text"),
    "SQuAD, no id": ("squad", {"context": "c", "qas": [{"question": "?"}]}, "field 'id' is missing"),
    "MRQA, no answers": ("mrqa_drop", mrqa_passage(answers=[]), "question 'q1': field 'answers' must be a list of at"),
    "MRQA, answers of another type": ("mrqa_drop", mrqa_passage(answers=[3]), "question 'q1': field 'answers' must be"),
    "GSM8K, no mark": ("gsm8k", {**GSM8K, "answer": "It is 72"}, "must end in '####' and a number, but got 'It is 72'"),
    "GSM8K, no number": ("gsm8k", {**GSM8K, "answer": "#### many"}, "'answer' must be a number, but got 'many'"),
    "SVAMP, another type": ("svamp", {**SVAMP, "Type": "Root"}, "'Type' must be one of Addition, .* but got 'Root'"),
    "SVAMP, no number": ("svamp", {**SVAMP, "Answer": "7 cups"}, "field 'Answer' must be a number, but got '7 cups'"),
    "SVAMP, not finite": ("svamp", {**SVAMP, "Answer": float("inf")}, "field 'Answer' must be a number, but got inf"),
    "MAWPS, no text": ("mawps", {**MAWPS, "original_text": " "}, "a problem must have a text, but it is blank"),
    "MATH_PROBLEMS": ("math_problems", {"question": "?", "answer": None}, "field 'answer' must be a number"),
}


@pytest.mark.parametrize(("name", "row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_that_cannot_be_used_is_refused(name, row, message):
    with pytest.raises(RowError, match=message):
        TASKS[name].read(row, "3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": {"question": "?"}}, "must have the template's field 'context' as a text"),
        ({"label": 0}, "must have label -1, a target and accepted answers, but got 0"),
        ({"target": ""}, "must have label -1, a target"),
        ({"golds": ()}, "must have label -1, a target"),
    ],
    ids=["field", "label", "target", "golds"],
)
def test_an_example_that_the_task_cannot_use_is_refused(change, message):
    [example] = TASKS["squad"].read(paragraph(q=("Ann",)), "0")
    with pytest.raises(RowError, match=message):
        check_example(TASKS["squad"], dataclasses.replace(example, **change))


# Files.


def write_squad(folder: Path, count: int = 20, **test) -> Path:
    (folder / "squad").mkdir(exist_ok=True)
    train = [paragraph(f"Ann {n} has tea.", **{f"t{n}": (f"Ann {n}",), f"u{n}": ("tea",)}) for n in range(count)]
    (folder / "squad" / "train-v1.1.json").write_text(squad_document(*train))
    (folder / "squad" / "dev-v1.1.json").write_text(squad_document(paragraph(**(test or {"q": ("Ann",)}))))
    return folder


def test_squads_dev_split_divides_no_passage(tmp_path, caplog):
    data = load_task("squad", "jsonl", write_squad(tmp_path))
    assert (len(data.train), len(data.dev), len(data.test)) == (36, 4, 1)
    assert not {example.group for example in data.train} & {example.group for example in data.dev}
    assert set(data.row) == {"question", "context"}
    assert caplog.text == ""


def test_the_same_passage_is_one_group_wherever_it_stands():
    first, again, other = (
        TASKS["squad"].read(paragraph(context, q=("Ann",)), str(index))[0].group
        for index, context in enumerate(("Ann. Tea.", "Ann. Tea.", "Ann."))
    )
    assert first == again != other


def test_answers_outside_their_passage_and_blank_ones_are_counted(tmp_path, caplog):
    load_task("squad", "jsonl", write_squad(tmp_path, q=("Bob",), r=("Ann", " ")))
    assert [record.getMessage() for record in caplog.records] == [
        "SQuAD 1.1: an accepted answer is blank in 1 of the 2 examples of test",
        "SQuAD 1.1: the answer of 1 of the 2 examples of test does not stand in their context",
    ]


def test_test_questions_that_are_in_train_are_counted(tmp_path, caplog):
    write_squad(tmp_path)
    (tmp_path / "squad" / "dev-v1.1.json").write_text((tmp_path / "squad" / "train-v1.1.json").read_text())
    data = load_task("squad", "jsonl", tmp_path)
    assert caplog.messages == [
        f"SQuAD 1.1: {len(data.train)} of the 40 examples of test are in train as well, with the same text and answer, "
        "so their score says nothing about new texts"
    ]


def test_a_test_file_alone_cannot_be_trained_on(tmp_path):
    (write_squad(tmp_path) / "squad" / "train-v1.1.json").unlink()
    with pytest.raises(
        InputError, match=r"train-v1.1.json does not exist; SQuAD 1.1 is read from squad/train-v1.1.json"
    ):
        load_task("squad", "jsonl", tmp_path)


BAD_SQUAD = {
    "cut off": ('{"data": [{"title": "x"', "is not JSON: .*; the file may be cut off: copy it again$"),
    "cut off in a text": ('{"data": [{"title": "x', "is not JSON: .*; the file may be cut off: copy it again$"),
    "not JSON": (
        '{"data": oops, "version": "1.1", "more": []}',
        r"is not JSON: Expecting value: line 1 column 10 \(char 9\)$",
    ),
    "no articles": ('{"date": []}', "must be an object whose 'data' is a list of articles"),
    "a list": ("[]", "must be an object whose 'data' is a list of articles"),
    "an article of another type": ('{"data": [3]}', "article 1: it must be an object, but got 3"),
    "an article without paragraphs": ('{"data": [{}]}', "article 1: field 'paragraphs' is missing"),
    "no question": ('{"data": []}', "is empty: at least one SQuAD 1.1 row is expected"),
    "a key twice": ('{"data": [], "data": []}', "the keys of an object must be unique, but 'data' appears twice"),
    "a question twice": (
        squad_document(paragraph(q=("Ann",)), paragraph(q=("tea",))),
        "article 1, paragraph 2: duplicate id",
    ),
    "a bad question": (
        squad_document(paragraph(q=("Ann",)), paragraph(r=())),
        "article 1, paragraph 2: question 'r': in this task every question has an answer",
    ),
    "nested too deeply": ("[" * 100_000, "it is nested too deeply"),
}


@pytest.mark.parametrize(("text", "message"), BAD_SQUAD.values(), ids=BAD_SQUAD)
def test_a_bad_document_is_named_with_the_place(tmp_path, text, message):
    file = write_squad(tmp_path) / "squad" / "dev-v1.1.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_task("squad", "jsonl", tmp_path)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_text_of_another_encoding_is_refused(tmp_path):
    (write_squad(tmp_path) / "squad" / "dev-v1.1.json").write_bytes(b'{"data": "\xe9"}')
    with pytest.raises(InputError, match="must be UTF-8 text, but byte 11 is not"):
        load_task("squad", "jsonl", tmp_path)


def test_mrqa_is_read_in_both_names_of_its_files(tmp_path):
    train = [mrqa_passage(f"t{n}", f"Ann {n} has tea.") for n in range(20)]
    for file in ("train/NaturalQuestionsShort", "dev/NaturalQuestionsShort", "dev/BioASQ"):
        rows = train if file.startswith("train") else [mrqa_passage(), mrqa_passage("q2", "Ann, again.")]
        write_mrqa(tmp_path / "mrqa" / f"{file}.jsonl.gz", HEADER, *rows)
    data = load_task("mrqa_naturalquestions", "jsonl", tmp_path)
    assert (len(data.train), len(data.dev), len(data.test)) == (18, 2, 2)
    alone = load_task("mrqa_bioasq", "jsonl", tmp_path)
    assert (alone.train, alone.dev, len(alone.test)) == ([], [], 2)
    assert set(alone.row) == {"question", "context"}


def test_a_set_for_tests_alone_is_not_trained_on():
    from mept.trial import TrialConfig

    with pytest.raises(InputError, match="'mrqa_bioasq' has a test split alone, so nothing can be trained on it"):
        TrialConfig.from_flat({"backbone": "x", "task": "mrqa_bioasq", "method": "mept"})


LINES = gzip.compress("".join(json.dumps(row) + "\n" for row in (HEADER, mrqa_passage())).encode())
BAD_GZIP = {
    "cut off": (LINES[:-12], "cannot be read|is not a whole gzip file"),
    "damaged": (LINES[:40] + bytes(20) + LINES[60:], "cannot be read|is not a whole gzip file|not JSON|UTF-8"),
    "not gzip": (b'{"header": {}}\n', "Not a gzipped file"),
    "no header": (
        gzip.compress(json.dumps(mrqa_passage()).encode()),
        r'line 1: the first line of an MRQA file must be its header, {"header": ...}, but this one has the keys: id, c',
    ),
    "only a header": (gzip.compress(json.dumps(HEADER).encode()), "is empty: at least one MRQA BioASQ row is expected"),
    "a bad line": (gzip.compress(json.dumps(HEADER).encode() + b"\n{"), "line 2: not JSON"),
    "a bad passage": (
        gzip.compress((json.dumps(HEADER) + "\n" + json.dumps(mrqa_passage(answers="Ann"))).encode()),
        "line 2: question 'q1': field 'answers' must be a list",
    ),
}


@pytest.mark.parametrize(("raw", "message"), BAD_GZIP.values(), ids=BAD_GZIP)
def test_a_bad_file_of_mrqa_is_named_with_its_line(tmp_path, raw, message):
    file = tmp_path / "mrqa" / "dev" / "BioASQ.jsonl.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(raw)
    with pytest.raises(InputError, match=message) as error:
        load_task("mrqa_bioasq", "jsonl", tmp_path)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def write_asdiv(folder: Path, *problems: str, text: str = "") -> Path:
    (folder / "asdiv").mkdir(exist_ok=True)
    (folder / "asdiv" / "ASDiv.xml").write_text(text or ASDIV.format("\n".join(problems)))
    return folder


def test_asdiv_is_split_in_a_fixed_way_and_answers_that_are_no_number_are_left_out(tmp_path, caplog):
    answers = ["2:45", "5; 6", "Ann", *(f"{n} (cups)" for n in range(20)), "-(1/3)"]
    data = load_task("asdiv", "jsonl", write_asdiv(tmp_path, *(problem(n, one) for n, one in enumerate(answers))))
    assert (len(data.train) + len(data.dev), len(data.test)) == (15, 6)
    again = load_task("asdiv", "jsonl", tmp_path)
    assert again.identity == data.identity
    file = tmp_path / "asdiv" / "ASDiv.xml"
    assert caplog.messages[0] == f"ASDiv: 3 of the 24 rows of {file} are left out: their answer is not one number"


BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "{}">]>'.format("&a;" * 50)
BAD_XML = {
    "cut off": (
        ASDIV.format(problem(1, "3"))[:-30],
        "is not whole XML: no element found|is not whole XML: unclosed token",
    ),
    "not XML": ("hello", "is not whole XML: syntax error: line 1, column 0; copy it again"),
    "another XML": ("<a><b/></a>", "is empty: at least one ASDiv row is expected"),
    "a problem without an answer": (
        ASDIV.format('<Problem ID="n-7"><Body>x</Body></Problem>'),
        "problem n-7: field 'Answer' is missing; the object has: ID, Body",
    ),
    "entities": (
        f"<?xml version='1.0'?>{BOMB}<x>&b;</x>",
        "has a document type, <!DOCTYPE x>, which ASDiv's files do not",
    ),
    "an external file": ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>', "has a document type"),
    "another encoding": ('<?xml version="1.0" encoding="klingon"?><x/>', "is not whole XML"),
}


@pytest.mark.parametrize(("text", "message"), BAD_XML.values(), ids=BAD_XML)
def test_bad_xml_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        load_task("asdiv", "jsonl", write_asdiv(tmp_path, text=text))
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def svamp(count: int) -> list[dict]:
    kinds = ("Addition", "Subtraction", "Multiplication", "Common-Division")
    return [{**SVAMP, "ID": f"chal-{n}", "Body": f"Ann {n}", "Type": kinds[n % 4]} for n in range(count)]


def test_svamps_only_file_is_split_evenly_over_its_types_and_its_other_layout_is_taken_as_it_is(tmp_path):
    (tmp_path / "svamp").mkdir()
    (tmp_path / "svamp" / "SVAMP.json").write_text(json.dumps(svamp(40)))
    data = load_task("svamp", "jsonl", tmp_path)
    assert sorted(example.kind for example in data.test) == sorted(OPERATIONS * 3)
    (tmp_path / "svamp" / "SVAMP.json").unlink()
    for name, rows in (("train", svamp(40)[:30]), ("test", svamp(40)[30:])):
        (tmp_path / "svamp" / f"{name}.json").write_text(json.dumps(rows))
    assert len(load_task("svamp", "jsonl", tmp_path).test) == 10


def test_what_is_held_out_depends_on_an_examples_wording_alone():
    rows = [TASKS["svamp"].read(row, str(index))[0] for index, row in enumerate(svamp(40))]
    test = {example.id for example in hold_out(rows)[1]}
    assert {example.id for example in hold_out(rows[::-1])[1]} == test
    with pytest.raises(ValueError, match="at least 2 different examples are needed to set test apart, but got 1"):
        hold_out(rows[:1])


def test_problems_of_mawps_that_are_in_train_are_not_tested(tmp_path, caplog):
    (tmp_path / "mawps").mkdir()
    rows = [{**MAWPS, "id": n, "original_text": f"Ann had {n} cups ."} for n in range(30)]
    repeated = [{**rows[3], "id": 90, "original_text": "ann had 3 cups."}, {**MAWPS, "id": 91, "original_text": "New"}]
    for name, part in (("trainset", [*rows, {**rows[4], "id": 80}]), ("testset", repeated)):
        (tmp_path / "mawps" / f"{name}.json").write_text(json.dumps(part))
    data = load_task("mawps", "jsonl", tmp_path)
    assert [example.id for example in data.test] == ["mawps-91"]
    assert caplog.messages == ["MAWPS: 1 of the 2 examples of test are in train as well; they are left out"]
    assert not {example.group for example in data.train} & {example.group for example in data.dev}
    (tmp_path / "mawps" / "testset.json").write_text(json.dumps(repeated[:1]))
    with pytest.raises(InputError, match="all 1 examples of test are in train as well; nothing is left to test"):
        load_task("mawps", "jsonl", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "must be a list of objects, but it is of type dict"),
        ("[3]", "entry 1: it must be an object, but is of type int"),
    ],
)
def test_a_document_that_is_no_list_of_objects_is_refused(tmp_path, text, message):
    (tmp_path / "mawps").mkdir()
    (tmp_path / "mawps" / "trainset.json").write_text(text)
    (tmp_path / "mawps" / "testset.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_task("mawps", "jsonl", tmp_path)


def test_math_problems_are_the_first_500_lines(tmp_path):
    (tmp_path / "math_problems").mkdir()
    lines = "".join(json.dumps({"question": f"{n}?", "answer": n}) + "\n" for n in range(520))
    (tmp_path / "math_problems" / "test.jsonl").write_text(lines)
    assert [example.golds for example in load_task("math_problems", "jsonl", tmp_path).test][-1] == ("499",)


def test_nothing_is_asked_of_the_labels_of_a_text_task():
    examples = [TASKS["svamp"].read(row, str(index))[0] for index, row in enumerate(svamp(40))]
    check_limit([(TASKS["svamp"], examples)], 1)
    assert list(remarks(TASKS["svamp"], {"train": examples[:20], "dev": examples[20:30], "test": examples[30:]})) == []


# The hub.

HUB = {
    "squad": (
        {
            "id": "q",
            "title": "Tea",
            "context": CONTEXT,
            "question": "Which q?",
            "answers": {"text": ["Ann", "ANN"], "answer_start": [20, 20]},
        },
        paragraph(q=("Ann", "ANN")),
    ),
    "squad_v2": (
        {
            "id": "q",
            "title": "Tea",
            "context": CONTEXT,
            "question": "Which q?",
            "answers": {"text": [], "answer_start": []},
        },
        paragraph(q=()),
    ),
    "gsm8k": (GSM8K, GSM8K),
    "svamp": ({**SVAMP, "Answer": "7", "question_concat": "x"}, SVAMP),
}


def test_the_hubs_rows_become_the_same_examples():
    assert set(HUB) == {name for name in TEXT_TASKS if TASKS[name].hub}
    for name, (row, official) in HUB.items():
        assert read_hub([row], TASKS[name], "train") == TASKS[name].read(official, "0")


def test_a_task_that_is_not_on_the_hub_says_where_its_files_belong():
    with pytest.raises(InputError, match="MRQA DROP is not read from the hub: .* mrqa/dev/DROP.jsonl.gz"):
        load_task("mrqa_drop", "hub")


# Real data.

COUNTS = {"gsm8k": (7473, 1319), "svamp": (701, 299), "asdiv": (1465, 628), "mawps": (1898, 210)}


@pytest.mark.parametrize("name", COUNTS)
def test_real_data_has_its_counts(name):
    data = load_task(name, "jsonl", shared_data())
    assert (len(data.train) + len(data.dev), len(data.test)) == COUNTS[name]
    for example in (*data.train[:200], *data.test[:200]):
        assert data.task.score([example], [example.target])["score"] == 1, "what is trained on is right"


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("squad", "squad/dev-v1.1.json", 10570),
        ("policyqa", "policyqa/dev.json", 3809),
        ("policyqa", "policyqa/test.json", 4152),
    ],
)
def test_real_questions_are_all_read_and_their_answers_stand_in_the_passages(name, file, count):
    task = TASKS[name]
    rows = task.files[0].rows(shared_data() / file)
    examples = [example for index, (_, row) in enumerate(rows) for example in task.read(row, str(index))]
    assert len({example.id for example in examples}) == len(examples) == count
    assert list(remarks(task, {"train": [], "dev": [], "test": examples})) == []
    assert task.score(examples, [example.target for example in examples])["em"] == 1
