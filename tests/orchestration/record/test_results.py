"""MLflow -> tidy tables, from a real store."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mept.errors import InputError
from orchestration.record.params import parse_param
from orchestration.record.results import (
    Results,
    _are_states,
    _cells,
    _is_routing,
    _order,
    _with_objective,
    load_results,
)
from tests.orchestration.conftest import HOSTILE


@pytest.fixture(scope="module")
def superglue(store: str) -> Results:
    return load_results(store, "superglue")


def test_cells_stand_in_the_order_of_the_grid_file(superglue: Results) -> None:
    assert list(superglue.cells["cell"]) == [
        "prompt_tuning-minilm-cb",
        "mept-minilm-copa",
        "mept-minilm-cb",
        "linear_head-minilm-copa",
        "linear_head-minilm-cb",
        "deep_prompt-minilm-copa",
        "deep_prompt-minilm-cb",
    ]


def test_values_of_an_axis_stand_in_the_order_of_the_grids_list() -> None:
    places = {"backbone": "minilm", "task": "cb", "method": "mept"}
    values: list[Any] = [None, (3, 4, 5), (0,)]
    records = [
        places | {"cell": f"c{rank}", "axes": {"layers": value}, "position": [0, 0, 0, rank]}
        for rank, value in enumerate(values)
    ]
    order = _order(records)
    cells, _ = _cells(records[::-1], order)
    assert list(cells["layers"]) == values
    assert order["layers"] == [str(value) for value in values]
    earlier = [record | {"position": [0, 0, 0]} for record in records]
    assert list(_cells(earlier, _order(earlier))[0]["layers"]) == [None, (0,), (3, 4, 5)]


def test_newest_parent_of_a_cell_counts(superglue: Results) -> None:
    cell = superglue.cells.set_index("cell").loc["prompt_tuning-minilm-cb"]
    assert (cell["outcome"], cell["reason"], cell["best_params"]) == ("running", "", None)


def test_a_store_of_an_earlier_version_is_one_message_that_says_what_to_do(store: str) -> None:
    with pytest.raises(InputError, match="recorded by an earlier version .*run the grid again with this version"):
        load_results(store, "older")


def test_the_text_of_the_grid_is_whole(store: str) -> None:
    assert load_results(store, "hostile").source == f"title: {HOSTILE}"


def test_superseded_parents_are_left_out(store: str) -> None:
    assert "prompt_tuning-minilm-copa" not in set(load_results(store, "superglue").cells["cell"])


def test_parameters_have_their_types(superglue: Results) -> None:
    cell = superglue.cells.set_index("cell").loc["mept-minilm-cb"]
    assert cell["params"]["epochs"] == 8
    assert cell["best_params"] == {"learning_rate": 0.01}


def test_trials_of_every_outcome_are_kept_with_their_reason(superglue: Results) -> None:
    trials = superglue.trials
    search = trials[(trials["cell"] == "mept-minilm-cb") & (trials["stage"] == "search")]
    assert list(search["number"]) == [0, 1, 2, 3, 4]
    assert list(search["outcome"]) == ["pruned", "complete", "complete", "complete", "failed"]
    assert list(search["reason"])[-1] == "loss is nan at step 12"


def test_confirmation_of_a_replaced_winner_is_left_out(superglue: Results) -> None:
    trials = superglue.trials
    confirmed = trials[(trials["cell"] == "mept-minilm-cb") & (trials["stage"] == "confirm")]
    assert list(confirmed["seed"]) == [1, 2, 3]
    assert confirmed["test/score"].tolist() == pytest.approx([0.89, 0.91, 0.885])


def test_objective_is_the_maximum_over_the_epochs(superglue: Results) -> None:
    for run_id, objective in zip(superglue.trials["run_id"], superglue.trials["dev/score"], strict=True):
        points = superglue.histories[superglue.histories["run_id"] == run_id]
        assert (objective == points["value"].max()) if len(points) else objective != objective


def test_the_objective_of_a_run_with_phases_is_of_the_last_one() -> None:
    trials = pd.DataFrame({"run_id": ["phases", "plain"], "dev/score": math.nan, "objective": [0.6, 0.7]})
    scores = {"phases": [0.9, 0.5, 0.6], "plain": [0.2, 0.7, 0.7]}
    rows = [(run, "dev/score", step, value) for run, values in scores.items() for step, value in enumerate(values, 1)]
    filled = _with_objective(trials, pd.DataFrame(rows, columns=["run_id", "metric", "step", "value"]))
    assert filled["dev/score"].tolist() == [0.6, 0.7]


def test_histories_hold_one_value_an_epoch(superglue: Results) -> None:
    assert list(superglue.histories.columns) == ["run_id", "metric", "step", "value"]
    assert not superglue.histories.duplicated(["run_id", "metric", "step"]).any()


def test_routing_is_that_of_the_first_seed(superglue: Results) -> None:
    confirmed = superglue.trials[(superglue.trials["stage"] == "confirm") & (superglue.trials["seed"] == 1)]
    assert set(superglue.routing) == set(confirmed.loc[confirmed["cell"].str.startswith("mept"), "run_id"])
    assert all(len(content["mean_probability"]) == 12 for content in superglue.routing.values())


def test_states_of_mixtures_are_those_of_the_first_seed(store: str) -> None:
    mixture = load_results(store, "mixture")
    confirmed = mixture.trials[(mixture.trials["stage"] == "confirm") & (mixture.trials["seed"] == 1)]
    assert set(mixture.states) == set(confirmed.loc[confirmed["cell"].str.endswith("cb-wic"), "run_id"])
    assert all(list(content["tasks"]) == ["cb", "wic"] for content in mixture.states.values())


MATRICES = {"counts": [[1, 2]], "mean_probability": [[0.4, 0.6]]}


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": [0, 1]},
        {"counts": [[1, 2], [3]]},
        {"mean_probability": None},
        {"tasks": {"cb": {"counts": [[1, 2]]}}},
        {"tasks": {"cb": MATRICES | {"counts": [[1, 2, 3]]}}},
        {"tasks": []},
    ],
    ids=["layers", "ragged", "no matrix", "a task without probabilities", "a task of another shape", "no tasks"],
)
def test_routing_that_cannot_be_drawn_is_left_out(changes: dict) -> None:
    good = {"layers": [0], **MATRICES, "tasks": {"cb": MATRICES}}
    assert _is_routing(good) and not _is_routing(good | changes)


@pytest.mark.parametrize(
    "entry",
    [{"label": ["a"], "before": [[0, 1]], "after": []}, {"label": ["a"], "before": [[0, 1]]}, {"label": 3}, None],
    ids=["a point missing", "no map", "no labels", "nothing"],
)
def test_states_that_cannot_be_drawn_are_left_out(entry: object) -> None:
    good = {"label": ["a"], "before": [[0, 1]], "after": [[0.5, 1]]}
    assert _are_states({"tasks": {"cb": good}}) and not _are_states({"tasks": {"cb": good, "wic": entry}})


def test_only_keys_that_tell_cells_apart_are_axes(superglue: Results, store: str) -> None:
    assert superglue.axes == ()
    sensitivity = load_results(store, "sensitivity")
    assert sensitivity.axes == ("num_experts", "num_virtual_tokens")
    assert list(sensitivity.cells["num_experts"]) == [4, 4, 10, 10, 20, 20]


def test_report_section_and_seeds_come_from_the_experiment(store: str) -> None:
    results = load_results(store, "sensitivity")
    wanted = {
        "rows": "num_virtual_tokens",
        "columns": "num_experts",
        "value": "test/score",
        "published": None,
        "also": (),
    }
    assert results.report.model_dump() == wanted
    assert (results.title, results.seeds) == ("Prompt length and experts", (1, 2))
    assert load_results(store, "search_only").seeds == ()


def test_seeds_the_grid_no_longer_asks_for_are_left_out(store: str) -> None:
    results = load_results(store, "told_seeds")
    assert results.seeds == (2,)
    assert set(results.trials.loc[results.trials["stage"] == "confirm", "seed"]) == {2}


def test_reading_twice_gives_the_same_tables(superglue: Results, store: str) -> None:
    again = load_results(store, "superglue")
    assert again.cells.equals(superglue.cells)
    assert again.trials.equals(superglue.trials)
    assert again.histories.equals(superglue.histories)


def test_more_runs_than_a_page_holds_are_all_read(
    superglue: Results, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestration.record.client.PAGE", 3)
    assert len(load_results(store, "superglue").trials) == len(superglue.trials)


def test_unknown_grid_names_those_that_exist(store: str) -> None:
    with pytest.raises(InputError, match="grid 'superglu' .*recorded grids: .*sensitivity, superglue"):
        load_results(store, "superglu")


def test_server_that_does_not_answer_is_named_at_once() -> None:
    with pytest.raises(InputError, match="MLflow at http://127.0.0.1:9 cannot be used"):
        load_results("http://127.0.0.1:9", "superglue")


def test_missing_database_is_named_and_not_created(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with pytest.raises(InputError, match="no MLflow database at .*mlflow.db"):
        load_results(f"sqlite:///{path}", "superglue")
    assert not path.exists()


def test_report_tag_that_is_no_object_is_named(store: str) -> None:
    with pytest.raises(
        InputError, match=r"tag `mept.report` that is not the `report` section of a grid as JSON: '\[1'"
    ):
        load_results(store, "broken_tag")


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.001", 0.001), ("10", 10), ("None", None), ("true", True), ("[0, 1]", [0, 1]), ("minilm", "minilm"), ("", "")],
)
def test_parameters_are_parsed(text: str, value: object) -> None:
    assert parse_param(text) == value
