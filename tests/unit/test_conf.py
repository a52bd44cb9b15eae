"""The OUTBOX setting: read when used, converted, and refused with the remedy."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from outbox.conf import OutboxSettings, get_settings, problems
from outbox.errors import InvalidSetting


def test_the_defaults_apply_without_the_setting(settings: Any) -> None:
    del settings.OUTBOX
    assert get_settings() == OutboxSettings()


def test_a_changed_setting_applies_at_once(settings: Any) -> None:
    settings.OUTBOX = {"BATCH_SIZE": 7}
    assert get_settings().batch_size == 7
    settings.OUTBOX["BATCH_SIZE"] = 8
    assert get_settings().batch_size == 8


def test_the_same_settings_are_built_once(settings: Any) -> None:
    settings.OUTBOX = {"BATCH_SIZE": 7}
    assert get_settings() is get_settings()


@pytest.mark.parametrize("value", [90, 90.0, timedelta(seconds=90)])
def test_a_duration_is_a_timedelta_or_seconds(settings: Any, value: object) -> None:
    settings.OUTBOX = {"CONFIRM_TIMEOUT": value}
    assert get_settings().confirm_timeout == timedelta(seconds=90)


def test_databases_none_means_the_default_database(settings: Any) -> None:
    settings.OUTBOX = {"DATABASES": None}
    assert get_settings().databases == ("default",)


def test_an_unknown_key_is_refused_with_a_suggestion(settings: Any) -> None:
    settings.OUTBOX = {"BATCHSIZE": 7}
    with pytest.raises(InvalidSetting, match=r"'BATCHSIZE'\] is not a setting; did you mean 'BATCH_SIZE'"):
        get_settings()


def test_an_unknown_key_without_a_similar_one_gets_no_suggestion() -> None:
    assert problems({"COLOUR": "red"}) == ["OUTBOX['COLOUR'] is not a setting"]


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("BATCH_SIZE", "7", "of type int"),
        ("BATCH_SIZE", True, "of type int"),
        ("BATCH_SIZE", 0, "greater than zero"),
        ("BATCH_SIZE", -1, "not be negative"),
        ("LISTEN", 1, "of type bool"),
        ("POLL_INTERVAL", "1s", "a timedelta or a number of seconds"),
        ("POLL_INTERVAL", True, "a timedelta or a number of seconds"),
        ("POLL_INTERVAL", 0, "greater than zero"),
        ("RETENTION", timedelta(days=-1), "not be negative"),
        ("RETENTION", timedelta(days=1_000_000), "the longest duration is timedelta(days=36500)"),
        ("CONFIRM_TIMEOUT", timedelta.max, "the longest duration is timedelta(days=36500)"),
        ("CONFIRM_TIMEOUT", 1e300, "the longest duration is timedelta(days=36500)"),
        ("DISPATCH_TIMEOUT", timedelta(days=2), "the longest duration is timedelta(days=1)"),
        ("BATCH_SIZE", 2**31, "the largest number is 2147483647"),
        ("DATABASES", "default", "a list of database aliases or None"),
        ("DATABASES", [1], "a list of database aliases or None"),
        ("DATABASES", ["default", "absent"], "choose from ['default'"),
        ("DATABASES", [], "choose from ['default'"),
    ],
)
def test_an_invalid_value_is_refused_with_the_remedy(key: str, value: Any, remedy: str) -> None:
    (problem,) = problems({key: value})
    assert problem.startswith(f"OUTBOX[{key!r}] is {value!r}; ")
    assert remedy in problem


@pytest.mark.parametrize("key", ["RETENTION", "FAILED_RETENTION", "MAX_REDELIVERIES", "TRUSTED_PROXIES"])
def test_zero_is_accepted_where_it_has_a_meaning(key: str) -> None:
    assert problems({key: 0}) == []


def test_all_faults_are_reported() -> None:
    assert len(problems({"BATCH_SIZE": 0, "LISTEN": "no", "COLOUR": "red", "STATS": False})) == 3
