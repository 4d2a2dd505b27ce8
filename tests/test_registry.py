"""The registry finds things by name and names the nearest when it does not."""

from __future__ import annotations

import sys

import pytest

from mm3dad.errors import ConfigError
from mm3dad.registry import DATASETS, METHODS, SYNTHESIZERS, Registry


def test_names_are_sorted_and_iterated():
    registry = Registry("thing", {"b": "json:dumps", "a": "json:loads"})
    assert registry.names() == ["a", "b"] == list(registry)


def test_get_imports_on_first_use_only():
    sys.modules.pop("this_does_not_exist", None)
    registry = Registry("thing", {"broken": "this_does_not_exist:x", "dumps": "json:dumps"})
    assert registry.get("dumps") is sys.modules["json"].dumps
    with pytest.raises(ModuleNotFoundError):
        registry.get("broken")


def test_get_gives_the_same_thing_again():
    registry = Registry("thing", {"decoder": "json:JSONDecoder"})
    assert registry.get("decoder") is registry.get("decoder")


@pytest.mark.parametrize("wrong", ["duett", "", "Duet", None])
def test_unknown_name_is_one_line_with_the_known_ones(wrong):
    registry = Registry("method", {"duet": "json:dumps"})
    with pytest.raises(ConfigError, match=r"unknown method .*known: duet") as caught:
        registry.get(wrong)
    assert "\n" not in str(caught.value)


def test_register_adds_a_thing_of_the_outside():
    registry = Registry("method", {})
    registry.register("mine", dict)
    assert registry.names() == ["mine"]
    assert registry.get("mine") is dict


@pytest.mark.parametrize("taken", ["table", "outside"])
def test_register_refuses_a_name_that_is_taken(taken):
    registry = Registry("method", {"table": "json:dumps"})
    registry.register("outside", dict)
    with pytest.raises(ConfigError, match=f"method '{taken}' is registered already; choose another name"):
        registry.register(taken, list)


@pytest.mark.parametrize("registry", [METHODS, DATASETS, SYNTHESIZERS], ids=lambda registry: registry.kind)
def test_every_name_of_the_package_leads_to_a_class(registry):
    for name in registry:
        assert name == name.lower()
        assert isinstance(registry.get(name), type), name


def test_promised_names_are_there():
    assert "duet" in METHODS.names()
    assert {"mvtec3d", "eyecandies", "folder", "synthetic"} <= set(DATASETS.names())
