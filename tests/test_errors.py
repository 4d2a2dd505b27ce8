"""Errors are one line with a cure, and land in the exit status that the command line promises."""

from __future__ import annotations

import inspect

import pytest

from mm3dad import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.Mm3dadError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_caught_as_one_kind_and_has_an_exit_status(kind):
    with pytest.raises(errors.Mm3dadError, match="text"):
        raise kind("text")
    assert kind.exit_status == (1 if kind in (errors.StorageError, errors.TrainingError) else 2)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ShapeError, ValueError),
        (errors.ConfigError, ValueError),
        (errors.DataError, ValueError),
        (errors.ModelError, ValueError),
        (errors.WeightsError, ValueError),
        (errors.MissingPackageError, ImportError),
        (errors.StorageError, OSError),
    ],
)
def test_error_is_also_the_builtin_a_python_user_expects(kind, builtin):
    assert issubclass(kind, builtin)


def test_nearest_name_suggests_and_lists():
    assert errors.nearest_name("bagle", ["rope", "bagel"]) == "did you mean 'bagel'? known: bagel, rope"


def test_nearest_name_without_a_close_one_only_lists():
    assert errors.nearest_name("xyz", ["rope", "bagel"]) == "known: bagel, rope"


def test_nearest_name_of_an_empty_table():
    assert errors.nearest_name("rope", []) == "known: none"


def test_nearest_name_takes_any_iterable_and_any_wrong_value():
    assert errors.nearest_name(None, iter(("b", "a"))) == "known: a, b"
