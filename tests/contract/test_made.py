"""Parts of a status that are made without validation are those that validation gives."""

import pytest

from capstan_api.status import InferenceDeploymentStatus, SloStatus, UsageStatus

FIELDS = {"replica_hours": "1.5", "accelerator_hours": "0", "cost": "0.25", "since": None}


def test_a_made_part_is_the_validated_one() -> None:
    made, validated = UsageStatus.made(**FIELDS), UsageStatus(**FIELDS)
    assert made == validated
    assert made.model_dump_json(by_alias=True) == validated.model_dump_json(by_alias=True)
    assert made.model_dump(exclude_unset=True) == validated.model_dump(exclude_unset=True)
    assert made.model_copy(update={"cost": "1"}) == validated.model_copy(update={"cost": "1"})


def test_a_made_part_stays_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        UsageStatus.made(**FIELDS).cost = "1"  # type: ignore[misc]


@pytest.mark.parametrize("fields", [{**FIELDS, "until": None}, {"cost": "0"}, dict(reversed(FIELDS.items()))])
def test_a_field_that_is_missing_unknown_or_out_of_order_is_noticed(fields: dict[str, str | None]) -> None:
    with pytest.raises(AssertionError, match="UsageStatus has the fields replica_hours"):
        UsageStatus.made(**fields)


def test_a_made_whole_of_made_parts_is_the_validated_one() -> None:
    slo = dict.fromkeys(SloStatus.model_fields, None) | {"name": "interactive", "requests": 3}
    usual = InferenceDeploymentStatus()
    fields = {name: getattr(usual, name) for name in InferenceDeploymentStatus.model_fields}
    made = InferenceDeploymentStatus.made(**fields | {"slos": [SloStatus.made(**slo)]})
    validated = InferenceDeploymentStatus(slos=[SloStatus(name="interactive", requests=3)])
    assert made == validated
    assert made.model_dump_json() == validated.model_dump_json()
