"""Which class and which model a request means."""

import pytest

from capstan_api.engine_args import SloClass
from capstan_gateway.classes import ClassTable
from capstan_gateway.errors import InvalidRequest, ModelNotFound

FAST = SloClass(name="fast", header_value="f")
BATCH = SloClass(name="batch", model_alias="m-batch")
TABLE = ClassTable(("m", "m2"), (FAST, BATCH))


@pytest.mark.parametrize(
    ("header", "model", "slo_class", "engine_model"),
    [
        (None, "m", FAST, "m"),
        (None, None, FAST, None),
        (None, "m2", FAST, "m2"),
        (None, "m-batch", BATCH, "m"),
        ("f", "m", FAST, "m"),
        ("fast", "m", FAST, "m"),
        ("batch", "m", BATCH, "m"),
        ("f", "m-batch", FAST, "m"),
    ],
)
def test_the_header_decides_then_the_alias_then_the_first_class(header, model, slo_class, engine_model):
    assert TABLE.select(header, model) == (slo_class, engine_model)


def test_an_unknown_class_is_refused_with_the_known_ones():
    with pytest.raises(InvalidRequest, match=r"batch, f, fast"):
        TABLE.select("slow", "m")


def test_an_unknown_model_is_refused_with_the_served_ones():
    with pytest.raises(ModelNotFound, match=r"m, m2, m-batch"):
        TABLE.select(None, "gpt")


@pytest.mark.parametrize(
    "classes",
    [
        (SloClass(name="a", header_value="b"), SloClass(name="b")),
        (SloClass(name="a", model_alias="x"), SloClass(name="b", model_alias="x")),
        (SloClass(name="a", model_alias="m"),),
    ],
)
def test_classes_that_could_not_be_told_apart_are_a_configuration_error(classes):
    with pytest.raises(ValueError, match="slo_classes"):
        ClassTable(("m",), classes)
