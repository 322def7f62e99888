from __future__ import annotations

import json
from copy import deepcopy
from math import pi
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from cvl_pipeline.dynamics.parameters import LOSSES
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.networks.parameters import ENCODERS
from cvl_pipeline.objectives.base import OBJECTIVES
from cvl_pipeline.objectives.parameters import STATE_VALUES
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.readout.parameters import READOUTS, REWARDS
from cvl_pipeline.schema import (
    Choice,
    Floats,
    Integers,
    Registry,
    Strict,
    Words,
    below,
    choice_of,
    chosen_modules,
    effective,
    fields_at,
    flattened,
    is_operational,
    merged,
    nested,
    operational,
    operational_at,
    operational_fields,
    submodel,
    validated,
)
from cvl_pipeline.sources.base import SOURCES

# A choice of shapes, in a model of a drawing.


class ShapeParameters(Strict):
    """Settings of every shape."""

    shape: str
    colour: str = "black"


class Shape:
    """The base class."""

    Parameters: ClassVar[type[ShapeParameters]] = ShapeParameters

    def __init__(self, parameters: Any) -> None:
        self.parameters = parameters

    def area(self) -> float:
        raise NotImplementedError


class CircleParameters(ShapeParameters):
    """Settings of a circle."""

    shape: Literal["circle"] = "circle"
    radius: float = Field(1.0, gt=0.0)
    threads: int = operational(1, ge=1)


class Circle(Shape):
    Parameters = CircleParameters

    def area(self) -> float:
        return float(pi * self.parameters.radius**2)


class InkParameters(Strict):
    """Settings of every ink."""

    ink: str


class Ink:
    Parameters: ClassVar[type[InkParameters]] = InkParameters

    def __init__(self, parameters: Any) -> None:
        self.parameters = parameters


class PlainInkParameters(InkParameters):
    """Settings of plain ink: none."""

    ink: Literal["plain"] = "plain"


class PlainInk(Ink):
    Parameters = PlainInkParameters


class MixedInkParameters(InkParameters):
    """Settings of mixed ink."""

    ink: Literal["mixed"] = "mixed"
    parts: int = 2


class MixedInk(Ink):
    Parameters = MixedInkParameters


INKS: Registry[Ink] = Registry(
    "ink", "ink", f"{__name__}:Ink", {"plain": f"{__name__}:PlainInk", "mixed": f"{__name__}:MixedInk"}
)


class SquareParameters(ShapeParameters):
    """Settings of a square, one of which is a choice."""

    shape: Literal["square"] = "square"
    side: float = 1.0
    ink: Annotated[InkParameters, Choice(INKS)] = PlainInkParameters()


class Square(Shape):
    Parameters = SquareParameters

    def area(self) -> float:
        return float(self.parameters.side**2)


class OwnParameters(ShapeParameters):
    """Settings of a shape of one's own."""

    width: float = 2.0


class OwnShape(Shape):
    Parameters = OwnParameters


def own_function() -> None:
    """A function of one's own."""


class FromFunction(Shape):
    """Stands for a function of one's own."""


OWN = f"{__name__}:OwnShape"
SHAPES: Registry[Shape] = Registry(
    "shape", "shape", f"{__name__}:Shape",
    {
        "circle": f"{__name__}:Circle", "square": f"{__name__}:Square",
        "missing": "no_such_module:NoSuchClass",
    },
)  # fmt: skip
KNOWN: Registry[Shape] = Registry(
    "shape", "shape", f"{__name__}:Shape", {"circle": f"{__name__}:Circle", "square": f"{__name__}:Square"}
)
FUNCTIONS: Registry[Shape] = Registry(
    "shape", "shape", f"{__name__}:Shape", {"circle": f"{__name__}:Circle"},
    functions=f"{__name__}:FromFunction",
)  # fmt: skip


class Paper(Strict):
    """A part without choices."""

    width: int = Field(10, ge=1)
    height: int = 20
    workers: int | None = operational(None)


class Machine(Strict):
    """A part that changes no result."""

    memory: int = 3


class Frame(Strict):
    """A part that may be missing."""

    depth: int = Field(4, ge=1)
    glazed: bool = True


class Drawing(Strict):
    """A model with every kind of field."""

    title: str = "untitled"
    paper: Paper = Paper()
    frame: Frame | None = Frame()
    shape: Annotated[ShapeParameters, Choice(KNOWN)] = CircleParameters()
    others: Annotated[dict[str, Any], Choice(KNOWN, mapping=True)] = Field({"circle": CircleParameters()})
    machine: Machine = operational(Machine())

    @model_validator(mode="after")
    def _is_not_forbidden(self) -> Drawing:
        if self.title == "forbidden":
            raise ValueError("Title and paper do not fit")
        return self


def fault(values: dict[str, Any], renamed: dict[str, str] | None = None) -> str:
    """Return the message about faulty values of a drawing."""
    with pytest.raises(InputError) as caught:
        validated(Drawing, values, renamed)
    message = str(caught.value)
    assert message.startswith("parameters: ")
    assert "\n" not in message
    return message.removeprefix("parameters: ")


# Strict models and short forms.


def test_strict_models_refuse_unknown_fields_changes_and_infinities() -> None:
    with pytest.raises(ValidationError, match="extra"):
        Paper(depth=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="frozen"):
        Paper().width = 3  # type: ignore[misc]
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValidationError, match="finite"):
            CircleParameters(radius=value)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Integers, "1 2", (1, 2)), (Integers, 3, (3,)), (Integers, [4, 5], (4, 5)), (Integers, "", ()),
        (Floats, "0.5 1e-3", (0.5, 1e-3)), (Floats, 0.5, (0.5,)), (Floats, 2, (2.0,)),
        (Words, "one two", ("one", "two")), (Words, ("one",), ("one",)),
    ],
)  # fmt: skip
def test_one_string_or_number_stands_for_a_list(kind: Any, value: Any, expected: Any) -> None:
    assert TypeAdapter(kind).validate_python(value) == expected


# Registries.


def test_registry_imports_the_chosen_class_only() -> None:
    assert SHAPES.names == ["circle", "square", "missing"]
    assert SHAPES["circle"] is Circle
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        SHAPES["missing"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sqare", "unknown shape 'sqare': did you mean square? (or module:Class for one of your own)"),
        ("blob", "unknown shape 'blob': known: circle, square (or module:Class for one of your own)"),
        ("", "unknown shape '': known: circle, square (or module:Class for one of your own)"),
        ("a b:c", "unknown shape 'a b:c': known: circle, square (or module:Class for one of your own)"),
        (None, "unknown shape 'None': known: circle, square (or module:Class for one of your own)"),
        (3, "unknown shape '3': known: circle, square (or module:Class for one of your own)"),
        (["circle"], "unknown shape '['circle']'"),
        ("no_such_module:Shape", "shape 'no_such_module:Shape' cannot be imported"),
        (f"{__name__}:NoSuchClass", f"shape '{__name__}:NoSuchClass' cannot be imported"),
        ("fractions:Fraction", f"shape 'fractions:Fraction' is not a subclass of {__name__}.Shape"),
        (f"{__name__}:own_function", f"shape '{__name__}:own_function' is not a subclass of"),
        (f"{__name__}:OWN", f"shape '{__name__}:OWN' is str, not a function"),
    ],
)
def test_registry_refuses_unknown_names_in_one_line(name: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        KNOWN[name]
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_class_of_ones_own_is_chosen_by_module_and_class() -> None:
    assert KNOWN[OWN] is OwnShape
    parameters = KNOWN.validate({"shape": OWN, "width": 3.0})
    assert parameters == OwnParameters(shape=OWN, width=3.0)
    assert isinstance(KNOWN.create(parameters), OwnShape)


def test_function_of_ones_own_is_chosen_by_module_and_function() -> None:
    name = f"{__name__}:own_function"
    assert FUNCTIONS[name] is FromFunction
    # The class that stands for functions imports the function, so that its errors name the parameter.
    assert FUNCTIONS["no_such_module:f"] is FromFunction
    assert FUNCTIONS.validate(name) == ShapeParameters(shape=name)
    with pytest.raises(InputError, match="or module:function for one of your own"):
        FUNCTIONS["blob"]


def test_registry_creates_the_class_that_parameters_choose() -> None:
    for parameters, kind in ((CircleParameters(radius=2.0), Circle), (SquareParameters(side=3.0), Square)):
        assert KNOWN.of(parameters) is kind
        assert KNOWN.parameters(parameters.shape) is type(parameters)
        shape = KNOWN.create(parameters)
        assert type(shape) is kind
        assert shape.parameters is parameters
    assert KNOWN.create(SquareParameters(side=3.0)).area() == 9.0


@pytest.mark.parametrize(
    ("values", "default", "name"),
    [
        ({}, None, "circle"), ({}, "square", "square"), ({"side": 2.0}, "square", "square"),
        ({"shape": "square"}, None, "square"), ({"shape": "square"}, "circle", "square"),
        ({"shape": None}, "square", "square"), ("square", None, "square"), ("square", "circle", "square"),
        (None, None, "circle"),
    ],
)  # fmt: skip
def test_name_is_the_values_own_or_the_default(values: Any, default: str | None, name: str) -> None:
    assert KNOWN.name_in(values, default) == name
    if values is not None:
        parameters = KNOWN.validate(values, default)
        assert isinstance(parameters, ShapeParameters)
        assert parameters.shape == name


def test_validate_returns_parameters_as_they_are() -> None:
    parameters = SquareParameters(side=3.0)
    assert KNOWN.validate(parameters) is parameters


@pytest.mark.parametrize("values", [None, 3, ["circle"], 1.5])
def test_validate_refuses_anything_but_mappings_and_names(values: Any) -> None:
    with pytest.raises(ValueError, match="must be a mapping, or a bare name"):
        KNOWN.validate(values)


# Choices in models.


def test_choice_has_the_settings_of_the_chosen_alternative_alone() -> None:
    drawing = validated(Drawing, {"shape": {"shape": "square", "side": 4.0, "ink": "mixed"}})
    assert drawing.shape == SquareParameters(side=4.0, ink=MixedInkParameters())
    assert validated(Drawing, {"shape": "square"}).shape == SquareParameters()
    assert validated(Drawing, {}).shape == CircleParameters()
    assert validated(Drawing, {"shape": CircleParameters(radius=2.0)}).shape == CircleParameters(radius=2.0)


def test_labels_of_a_mapping_choose_by_name_or_by_their_own_setting() -> None:
    drawing = validated(
        Drawing,
        {"others": {"square": {"side": 2.0}, "mine": {"shape": OWN}, "round": "circle", "circle": None}},
    )
    assert drawing.others == {
        "square": SquareParameters(side=2.0),
        "mine": OwnParameters(shape=OWN),
        "round": CircleParameters(),
    }
    # A label that names an alternative may still choose another one.
    assert validated(Drawing, {"others": {"circle": {"shape": "square"}}}).others == {
        "circle": SquareParameters()
    }


VALUES: dict[str, Any] = {
    "title": "one", "paper": {"width": 3}, "shape": {"shape": "square", "ink": {"ink": "mixed", "parts": 5}},
    "others": {"mine": {"shape": OWN, "width": 4.0}, "circle": {"radius": 0.5}},
}  # fmt: skip


def test_dump_holds_every_field_and_validates_to_the_same() -> None:
    drawing = validated(Drawing, VALUES)
    dump = drawing.model_dump(mode="json")
    assert dump["shape"] == {
        "shape": "square", "colour": "black", "side": 1.0, "ink": {"ink": "mixed", "parts": 5}
    }  # fmt: skip
    assert dump["others"]["circle"]["radius"] == 0.5
    assert validated(Drawing, json.loads(json.dumps(dump))) == drawing
    assert Drawing.model_validate_json(drawing.model_dump_json()) == drawing


def test_json_schema_describes_every_alternative() -> None:
    text = json.dumps(Drawing.model_json_schema())
    for word in ("radius", "side", "parts", "one of circle, square, or module:Class"):
        assert word in text


def test_choice_and_model_of_a_field() -> None:
    choice = choice_of(Drawing, "shape")
    assert choice is not None
    assert choice.registry is KNOWN
    assert choice_of(Drawing, "title") is None
    assert choice_of(Drawing, "no_such_field") is None
    assert submodel(Drawing, "shape", {"shape": "square"}) is SquareParameters
    assert submodel(Drawing, "shape") is CircleParameters
    assert submodel(Drawing, "shape", {"shape": "blob"}) is None
    assert submodel(Drawing, "paper") is Paper
    assert submodel(Drawing, "frame") is Frame
    assert submodel(Drawing, "title") is None
    assert submodel(None, "title") is None


# Messages.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"titel": "x"}, "unknown field 'titel': did you mean 'title'? known here: title, paper, frame"),
        (
            {"glazed": True},
            "unknown field 'glazed': did you mean 'frame.glazed'? known here: title, paper, frame",
        ),
        (
            {"paper": {"widht": 3}},
            "unknown field 'paper.widht': did you mean 'width'? known here: width, height",
        ),
        (
            {"frame": {"dept": 3}},
            "unknown field 'frame.dept': did you mean 'depth'? known here: depth, glazed",
        ),
        ({"frame": {"depth": 0}}, "'frame.depth' is 0: input should be greater than or equal to 1"),
        ({"paper": {"width": 0}}, "'paper.width' is 0: input should be greater than or equal to 1"),
        ({"paper": {"width": "wide"}}, "'paper.width' is 'wide': input should be a valid integer"),
        ({"paper": 3}, "'paper' is 3: input should be a valid dictionary"),
        # Settings of another alternative.
        (
            {"shape": {"side": 3}},
            "unknown field 'shape.side': it belongs to shape square; known with shape circle: shape, colour, radius",
        ),
        (
            {"shape": {"shape": "square", "radius": 3}},
            "unknown field 'shape.radius': it belongs to shape circle; known with shape square: shape, colour, side",
        ),
        (
            {"shape": {"shape": "square", "sid": 3}},
            "unknown field 'shape.sid': did you mean 'side'? known with shape square: shape, colour, side, ink",
        ),
        (
            {"shape": {"shape": "square", "ink": {"parts": 3}}},
            "unknown field 'shape.ink.parts': it belongs to ink mixed; known with ink plain: ink",
        ),
        (
            {"shape": {"shape": OWN, "side": 3}},
            f"unknown field 'shape.side': it belongs to shape square; known with shape {OWN}: shape, colour",
        ),
        ({"shape": {"radius": -1.0}}, "'shape.radius' is -1.0: input should be greater than 0"),
        # Unknown alternatives.
        ({"shape": "sqare"}, "'shape' is 'sqare': unknown shape 'sqare': did you mean square?"),
        (
            {"shape": {"shape": "sqare"}},
            "'shape.shape' is 'sqare': unknown shape 'sqare': did you mean square?",
        ),
        (
            {"shape": {"shape": "square", "ink": "blue"}},
            "'shape.ink' is 'blue': unknown ink 'blue': known: plain",
        ),
        ({"shape": 3}, "'shape' is 3: must be a mapping, or a bare name"),
        # Mappings from labels to alternatives.
        (
            {"others": {"circle": {"side": 3}}},
            "unknown field 'others.circle.side': it belongs to shape square",
        ),
        (
            {"others": {"a": {"shape": "square", "sid": 3}}},
            "unknown field 'others.a.sid': did you mean 'side'?",
        ),
        ({"others": {"a": {"shape": "sqare"}}}, "'others.a.shape' is 'sqare': unknown shape 'sqare'"),
        (
            {"others": {"a": {"shape": "square", "ink": "blue"}}},
            "'others.a.ink' is 'blue': unknown ink 'blue'",
        ),
        ({"others": {"a": {}}}, "'others.a': names no shape: set its shape to one of circle, square"),
        ({"others": {"a": 3}}, "'others.a' is 3: must be a mapping, or a bare name"),
        (
            {"others": {"A b": "circle"}},
            "'others.A b' is 'circle': must be lower-case letters, digits and '_'",
        ),
        ({"others": {3: "circle"}}, "'others.3' is 'circle': must be lower-case letters, digits and '_'"),
        ({"others": ["circle"]}, "'others' is ['circle']: must be a mapping from labels to settings"),
        # Rules about several fields name the fields themselves.
        ({"title": "forbidden"}, "title and paper do not fit"),
    ],
)
def test_faults_are_named_in_one_line(values: dict[str, Any], message: str) -> None:
    assert fault(values).startswith(message)


def test_missing_fields_are_named() -> None:
    with pytest.raises(InputError, match=r"^parameters: field 'ink' is missing$"):
        validated(InkParameters, {})


def test_every_fault_is_in_the_message() -> None:
    message = fault({"titel": "x", "paper": {"width": 0}, "shape": {"side": 3}, "others": {"a": "blob"}})
    assert message.count("; ") >= 3
    for word in ("'titel'", "'paper.width' is 0", "'shape.side'", "'others.a' is 'blob'"):
        assert word in message


def test_old_spellings_are_answered_with_the_new_ones() -> None:
    renamed = {"paper.size": "paper.width", "shape.diameter": "shape.radius"}
    assert fault({"paper": {"size": 3}}, renamed) == "'paper.size' is now 'paper.width'"
    assert fault({"shape": {"diameter": 3}}, renamed) == "'shape.diameter' is now 'shape.radius'"


# Layers.

PAPERS = st.fixed_dictionaries(
    {},
    optional={"width": st.integers(1, 9), "height": st.integers(), "workers": st.none() | st.integers(1, 9)},
)
PLAIN = st.fixed_dictionaries({}, optional={"title": st.sampled_from("abc"), "paper": PAPERS})
INK = st.sampled_from([{"ink": "plain"}, {"ink": "mixed"}, {"ink": "mixed", "parts": 3}])
SHAPE = st.one_of(
    st.fixed_dictionaries(
        {"shape": st.just("circle")},
        optional={"radius": st.floats(0.5, 2.0), "colour": st.sampled_from(["red", "blue"])},
    ),
    st.fixed_dictionaries(
        {"shape": st.just("square")},
        optional={"side": st.floats(0.5, 2.0), "colour": st.sampled_from(["red", "blue"]), "ink": INK},
    ),
    st.fixed_dictionaries({"shape": st.just(OWN)}, optional={"width": st.floats(0.5, 2.0)}),
)
LAYERS = st.fixed_dictionaries(
    {},
    optional={
        "title": st.sampled_from("abc"),
        "paper": PAPERS,
        "shape": SHAPE,
        "others": st.dictionaries(
            st.sampled_from(["circle", "square", "mine"]), st.none() | SHAPE, max_size=2
        ),
    },
)


@given(LAYERS)
def test_an_empty_layer_changes_nothing(values: dict[str, Any]) -> None:
    assert merged(Drawing, values, {}) == values
    assert merged(Drawing, {}, values) == values


@given(LAYERS)
def test_the_same_layer_again_changes_nothing(values: dict[str, Any]) -> None:
    assert merged(Drawing, values, values) == values


@given(PLAIN, PLAIN, PLAIN)
def test_merging_plain_fields_is_associative(
    lowest: dict[str, Any], middle: dict[str, Any], highest: dict[str, Any]
) -> None:
    left = merged(Drawing, merged(Drawing, lowest, middle), highest)
    right = merged(Drawing, lowest, merged(Drawing, middle, highest))
    assert left == right


@given(LAYERS, LAYERS)
def test_merged_layers_are_valid_and_the_upper_one_wins(lower: dict[str, Any], upper: dict[str, Any]) -> None:
    before = deepcopy((lower, upper))
    values = merged(Drawing, lower, upper)
    assert (lower, upper) == before  # neither is changed
    drawing = validated(Drawing, values)
    flat = flattened(drawing.model_dump(mode="json"))
    for name, value in flattened(upper).items():
        if value is None and name.startswith("others."):  # leaves the entry out
            assert not any(below(other, [name]) for other in flat)
        elif value != {}:
            assert flat[name] == value, name
    # Fields that neither layer sets have their defaults.
    if "title" not in {**lower, **upper}:
        assert drawing.title == "untitled"


@given(SHAPE, SHAPE)
def test_settings_of_a_former_choice_are_dropped_and_common_ones_are_kept(
    lower: dict[str, Any], upper: dict[str, Any]
) -> None:
    shape = merged(Drawing, {"shape": lower}, {"shape": upper})["shape"]
    known = KNOWN.parameters(upper["shape"]).model_fields
    assert set(shape) == (set(lower) & set(known)) | set(upper)
    for name, value in lower.items():
        if name in known and name not in upper:
            assert shape[name] == value


def test_bare_names_choose_and_keep_the_settings_below() -> None:
    lower = {"shape": {"shape": "square", "side": 3.0, "colour": "red"}}
    assert merged(Drawing, lower, {"shape": "square"}) == lower
    assert merged(Drawing, lower, {"shape": "circle"}) == {"shape": {"shape": "circle", "colour": "red"}}
    assert merged(Drawing, {"shape": "square"}, {"shape": {"side": 2.0}}) == {
        "shape": {"shape": "square", "side": 2.0}
    }


def test_choices_within_choices_are_merged_alike() -> None:
    lower = {"shape": {"shape": "square", "ink": {"ink": "mixed", "parts": 3}}}
    same = merged(Drawing, lower, {"shape": {"side": 2.0}})
    assert same == {"shape": {"shape": "square", "side": 2.0, "ink": {"ink": "mixed", "parts": 3}}}
    other = merged(Drawing, lower, {"shape": {"ink": "plain"}})
    assert other == {"shape": {"shape": "square", "ink": {"ink": "plain"}}}


def test_entries_of_a_mapping_are_merged_by_label() -> None:
    lower = {"others": {"circle": {"radius": 2.0}, "mine": {"shape": "square", "side": 3.0}}}
    upper = {"others": {"circle": {"colour": "red"}, "mine": {"shape": "circle"}, "square": {}}}
    assert merged(Drawing, lower, upper) == {
        "others": {
            "circle": {"radius": 2.0, "colour": "red"}, "mine": {"shape": "circle"}, "square": {},
        }
    }  # fmt: skip
    assert merged(Drawing, lower, {"others": {"mine": None}}) == {
        "others": {"circle": {"radius": 2.0}, "mine": None}
    }


def test_a_part_may_be_left_out_and_put_back() -> None:
    lower = {"frame": {"depth": 3, "glazed": False}}
    without = merged(Drawing, lower, {"frame": None})
    assert without == {"frame": None}
    assert validated(Drawing, without).frame is None
    assert merged(Drawing, lower, {"frame": {"depth": 2}}) == {"frame": {"depth": 2, "glazed": False}}
    again = validated(Drawing, merged(Drawing, without, {"frame": {"depth": 2}}))
    assert again.frame == Frame(depth=2)
    assert effective(validated(Drawing, without))["frame"] is None
    assert effective(again)["frame.depth"] == 2


def test_faulty_values_are_kept_for_validation_to_report() -> None:
    both = merged(Drawing, {"shape": {"radius": 2.0}}, {"shape": {"shape": "blob", "side": 3.0}})
    assert both == {"shape": {"shape": "blob", "side": 3.0, "radius": 2.0}}
    assert merged(Drawing, {"paper": {"width": 3}}, {"paper": 4, "no_such_field": 5}) == {
        "paper": 4, "no_such_field": 5,
    }  # fmt: skip
    assert merged(Drawing, {"shape": {"radius": 2.0}}, {"shape": 3}) == {"shape": 3}


# Names of fields.


def test_fields_at_a_path() -> None:
    assert fields_at(Drawing, []) == ["title", "paper", "frame", "shape", "others", "machine"]
    assert fields_at(Drawing, ["paper"]) == ["width", "height", "workers"]
    assert fields_at(Drawing, ["frame"]) == ["depth", "glazed"]
    assert fields_at(Drawing, ["title"]) == []
    assert fields_at(Drawing, ["paper", "width"]) == []
    assert fields_at(Drawing, ["no_such_field"]) == []
    # Those of every alternative, each once.
    assert fields_at(Drawing, ["shape"]) == ["shape", "colour", "radius", "threads", "side", "ink"]
    assert fields_at(Drawing, ["shape", "ink"]) == ["ink", "parts"]


KEYS = st.text("abc", min_size=1, max_size=2)
SCALARS = st.none() | st.integers() | st.text(max_size=2) | st.lists(st.integers(), max_size=2)
NESTED = st.recursive(
    st.dictionaries(KEYS, SCALARS, min_size=1, max_size=3),
    lambda inner: st.dictionaries(KEYS, inner | SCALARS, min_size=1, max_size=3),
    max_leaves=8,
)


@given(NESTED)
def test_nested_is_the_inverse_of_flattened(values: dict[str, Any]) -> None:
    flat = flattened(values)
    assert nested(flat) == values
    assert not any(isinstance(value, dict) for value in flat.values())


def test_empty_mappings_survive_flattening() -> None:
    assert flattened({"a": {}, "b": {"c": {}}}) == {"a": {}, "b.c": {}}


def test_below_compares_whole_names() -> None:
    assert below("paper.width", ["paper"])
    assert below("paper.width", ["shape", "paper.width"])
    assert not below("paper_size", ["paper"])
    assert not below("paper", ["paper.width"])
    assert not below("paper", [])


# Operational fields.


def test_operational_fields_change_no_effective_value() -> None:
    drawing = validated(Drawing, VALUES)
    assert operational_fields(drawing) == {"paper.workers", "others.circle.threads", "machine"}
    assert is_operational(Paper, "workers")
    assert not is_operational(Paper, "width")
    changes = {"paper": {"workers": 7}, "others": {"circle": {"threads": 2}}, "machine": {"memory": 9}}
    other = validated(Drawing, merged(Drawing, VALUES, changes))
    assert other != drawing
    assert effective(other) == effective(drawing)


def test_effective_values_are_every_other_field_by_its_full_name() -> None:
    assert effective(validated(Drawing, VALUES)) == {
        "title": "one", "paper.width": 3, "paper.height": 20, "frame.depth": 4, "frame.glazed": True,
        "shape.shape": "square", "shape.colour": "black", "shape.side": 1.0,
        "shape.ink.ink": "mixed", "shape.ink.parts": 5,
        "others.mine.shape": OWN, "others.mine.colour": "black", "others.mine.width": 4.0,
        "others.circle.shape": "circle", "others.circle.colour": "black", "others.circle.radius": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("paper.workers", True), ("paper.width", False), ("shape.threads", True), ("shape.radius", False),
        ("machine", True), ("title", False), ("no_such_field", False), ("shape.ink.parts", False),
    ],
)  # fmt: skip
def test_operational_at_a_path(path: str, expected: bool) -> None:
    assert operational_at(Drawing, path.split(".")) == expected


def test_operational_fields_keep_their_default_and_limits() -> None:
    assert Paper().workers is None
    assert CircleParameters().threads == 1
    with pytest.raises(ValidationError, match="threads"):
        CircleParameters(threads=0)


@given(LAYERS)
def test_effective_and_operational_fields_together_are_all_fields(values: dict[str, Any]) -> None:
    drawing = validated(Drawing, values)
    names = set(flattened(drawing.model_dump(mode="json")))
    kept, without = set(effective(drawing)), operational_fields(drawing)
    assert kept <= names
    assert names - kept == {name for name in names if below(name, without)}


def test_chosen_modules_are_named_by_their_fields() -> None:
    assert chosen_modules(validated(Drawing, VALUES)) == dict.fromkeys(
        ("shape", "shape.ink", "others.mine", "others.circle"), __name__
    )


def test_chosen_modules_of_the_default_stages() -> None:
    modules = {name: module.partition(".")[2] for name, module in chosen_modules(StageParameters()).items()}
    assert modules == {
        "dataset": "sources.metaworld", "reward": "readout.rewards", "contrastive_dynamics.loss": "dynamics.losses",
        "contrastive_dynamics.encoder": "networks.encoder", "value_readout": "readout.build",
        "policy_extraction": "objectives.awr", "policy_extraction.encoder": "networks.encoder",
        "policy_extraction.state_value": "objectives.advantages", "baselines.bc": "methods.bc",
        "baselines.bc.encoder": "networks.encoder",
    }  # fmt: skip


@pytest.mark.parametrize(
    "registry", [ENCODERS, LOSSES, METHODS, OBJECTIVES, READOUTS, REWARDS, SOURCES, STATE_VALUES]
)
def test_the_parameters_that_a_registry_names_are_those_of_the_class(registry: Registry[Any]) -> None:
    for name in registry.names:
        assert registry.parameters(name) is registry[name].Parameters
        model: Any = registry.parameters(name)
        chosen = model.model_construct(**{registry.field: name})
        assert registry.module_of(chosen) == registry[name].__module__
