"""What is missing is named together with the extra that brings it."""

import sys

import pytest

from mept.errors import InputError
from orchestration.record.client import connect
from orchestration.record.trouble import missing_module


@pytest.mark.parametrize(
    ("module", "package"),
    [("boto3", "mept-bench[s3]"), ("s3fs.core", "mept-bench[s3]"), ("psycopg", "mept-bench[postgres]"), ("x", "x")],
)
def test_a_missing_module_is_named_with_what_brings_it(module: str, package: str) -> None:
    wrapped = RuntimeError("cannot be used")
    wrapped.__cause__ = ImportError(f"No module named {module!r}", name=module)
    assert f"`pip install '{package}'` provides it" in missing_module(wrapped)
    assert missing_module(RuntimeError("cannot be used")) == ""


def test_mlflow_on_postgresql_without_its_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(
        InputError, match=r"MLflow at .* cannot be used: .*`pip install 'mept-bench\[postgres\]'`"
    ) as told:
        connect("postgresql:///mlflow")
    assert "--tracking-uri" not in str(told.value)


def test_an_address_in_the_form_of_other_libraries_is_explained() -> None:
    with pytest.raises(InputError, match="begins with postgresql://, not with postgres://") as told:
        connect("postgres://me:secret@localhost/mlflow")
    assert "secret" not in str(told.value)
