"""Files of suites: what they accept, and the one line that refuses the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvl_pipeline.errors import InputError
from cvl_pipeline.suites.parameters import read_suite, suite_names
from tests.project import CONF


def write(conf: Path, text: str) -> Path:
    (conf / "suites").mkdir(exist_ok=True)
    (conf / "suites/mine.yml").write_text(text)
    return conf


@pytest.mark.parametrize("name", suite_names(CONF))
def test_every_suite_of_the_project_can_be_read(name: str) -> None:
    suite = read_suite(CONF, name).chosen(None)
    assert suite.tasks or suite.datasets


def test_the_sets_of_rivals_have_disjoint_tasks_and_seeds() -> None:
    suite = read_suite(CONF, "rivals")
    test, tuning = suite.chosen(None), suite.chosen("tuning")
    assert (len(suite.names), suite.evaluation_episodes, suite.threads) == (12, 50, 1)
    assert not set(tuning.tasks) & set(test.tasks)
    assert not set(tuning.seeds) & set(test.seeds)
    assert test.presets == tuning.presets == ("mixed", "noisy", "fragments", "play", "sparse", "expert_few")


def test_metaworld_50_has_all_tasks_and_the_first_methods_first() -> None:
    suite = read_suite(CONF, "metaworld-50")
    assert len(set(suite.tasks)) == 50
    assert suite.methods[0] == ("cvl", "bc", "filtered_bc", "iql", "mc_awr")
    assert suite.presets == ("mixed", "noisy")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: [reach-v3]\nmethods: [cvl, ivl]", "unknown method 'ivl': did you mean"),
        (
            "tasks: [reach-v3]\npresets: [mixd]",
            "'presets' is ['mixd']: unknown preset 'mixd': did you mean mixed?",
        ),
        ("tasks: [reach-v3]\nmethod: [cvl]", "unknown field 'method': did you mean 'methods'?"),
        ("tasks: []", "'tasks' is []: name at least one, or leave it out"),
        ("methods: [cvl, bc]", "'tasks' is missing: name at least one task"),
        ("tasks: [reach-v3]\nmethods: [[cvl], []]", "methods: there is an empty list"),
        ("tasks: [reach-v3, reach-v3]", "reach-v3 is listed twice; remove one"),
        ("tasks: [reach-v3]\nmethods: [[bc], [bc]]", "bc is listed twice"),
        ("tasks: [reach-v3]\nseeds: [-1]", "seeds: -1 must be from 0 to"),
        ("tasks: [reach-v3]\nseeds: [true]", "'seeds.0' is True"),
        ("tasks: [../x]", "'../x' must consist of letters"),
        ("tasks: [reach-v3]\nmethods: [iql__near]", "'iql' has no variant 'near'; there are: none"),
        ("tasks: [reach-v3]\nvariants: {iql: {A b: {}}}", "'A b' must be lower-case letters"),
        ("tasks: [reach-v3]\ndatasets: {a: {dataset.source: minari}}", "give tasks or datasets, not both"),
        ("datasets: {a: {dataset.source: minari}}\npresets: [noisy]", "presets are for tasks"),
        ("tasks: [reach-v3]\ntasks: [push-v3]", "'tasks' is written twice; remove one"),
        (
            "tasks: [reach-v3]\noverrides: {dataset: {episodes: 3}, dataset.episodes: 4}",
            "'dataset.episodes' is given twice",
        ),
        (
            "tasks: [reach-v3]\noverrides: {dataset: 5, dataset.episodes: 3}",
            "overrides: 'dataset.episodes' is 3, but 'dataset' is 5",
        ),
        (
            "tasks: [reach-v3]\noverrides: {dataset.episodes: 3, dataset: 5}",
            "overrides: 'dataset' is 5, but fields of it are given",
        ),
        ("tasks: [reach-v3]\nseeds: []", "'seeds' is []: name at least one"),
        ("tasks: [reach-v3]\nthreads: 2024-13-01", "is not YAML in UTF-8: month must be in 1..12"),
        ("- reach-v3", "must be a mapping"),
        ("tasks: [reach-v3", "is not YAML"),
    ],
)
def test_a_fault_is_one_line_with_file_field_and_fix(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_suite(write(tmp_path, text), "mine")
    assert "suites/mine.yml" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_other_bytes_than_utf8_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "")
    (tmp_path / "suites/mine.yml").write_bytes("description: Tür".encode("latin-1"))
    with pytest.raises(InputError, match=r"suites/mine\.yml is not YAML in UTF-8: 'utf-8' codec"):
        read_suite(tmp_path, "mine")


def test_a_single_seed_may_be_0(tmp_path: Path) -> None:
    assert read_suite(write(tmp_path, "tasks: [reach-v3]\nseeds: 0"), "mine").seeds == (0,)


def test_an_unknown_suite_or_set_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown suite 'quik': did you mean quick"):
        read_suite(CONF, "quik")
    with pytest.raises(InputError, match="unknown suite 'x': known: none"):
        read_suite(tmp_path, "x")
    with pytest.raises(InputError, match="--set: unknown set 'tests': did you mean test"):
        read_suite(CONF, "rivals").chosen("tests")


def test_options_replace_the_fields_of_the_file_and_are_checked(tmp_path: Path) -> None:
    suite = read_suite(
        write(tmp_path, "tasks: [reach-v3, push-v3]\noverrides: {dataset: {episodes: 9}}"), "mine"
    )
    assert suite.overrides == {"dataset.episodes": 9}
    chosen = suite.chosen(None, tasks="hammer-v3", seeds="1 2", methods=None, budget=10)
    assert (chosen.tasks, chosen.seeds, chosen.budget, chosen.presets) == (
        ("hammer-v3",),
        (1, 2),
        10,
        ("mixed",),
    )
    with pytest.raises(InputError, match=r"options: .*unknown preset 'bad'"):
        suite.chosen(None, presets="bad")
    for field in ("seeds", "presets", "tasks", "data_root"):  # such as "$SEEDS" of a shell
        with pytest.raises(InputError, match=rf"^--{field.replace('_', '-')}: no value; give one"):
            suite.chosen(None, **{field: ""})


def test_some_of_the_datasets_can_be_chosen_by_their_labels(tmp_path: Path) -> None:
    file = "datasets: {a: {dataset.source: minari}, b: {dataset.source: ogbench}, c: {}}"
    suite = read_suite(write(tmp_path, file), "mine")
    assert list(suite.chosen(None).datasets) == ["a", "b", "c"]
    assert suite.chosen(None, datasets="c a").datasets == {"c": {}, "a": {"dataset.source": "minari"}}
    for labels, complaint in {
        "a bb": "--datasets: unknown dataset 'bb': did you mean b",
        "a a": "--datasets: a is listed twice",
        " ": "--datasets: name at least one: a, b, c",
    }.items():
        with pytest.raises(InputError, match=complaint):
            suite.chosen(None, datasets=labels)
    tasks = read_suite(write(tmp_path, "tasks: [reach-v3]"), "mine")
    with pytest.raises(
        InputError, match="--datasets: the suite has none; choose among its tasks with --tasks"
    ):
        tasks.chosen(None, datasets="a")
