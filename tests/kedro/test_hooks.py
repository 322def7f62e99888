from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro import silence
from cvl_pipeline.kedro.configuration import CheckedConfigLoader
from cvl_pipeline.kedro.hooks import (
    OLD_ARTIFACTS,
    CheckInputs,
    FollowParameters,
    ReportNodes,
    ReportResults,
)
from cvl_pipeline.kedro.pipeline_registry import current_plan, register_pipelines
from cvl_pipeline.kedro.settings import HOOKS
from cvl_pipeline.networks.actor import ActorShape, GaussianActor
from cvl_pipeline.reports.judgement import COLUMNS
from cvl_pipeline.testing.builders import (
    identity_normalisation,
    make_rewards,
    make_transitions,
    split_first,
)
from tests.kedro.sessions import make_catalog, make_loader, path_of
from tests.project import CONF, copy_conf
from tests.reports.test_plots import METRICS
from tests.training.processes import wait_for

LOG = {"source": "files", "path": "mine.csv"}


def _follow(conf: Path = CONF, env: str | None = None, **given: Any) -> CheckedConfigLoader:
    """Let the pipelines follow parameters, as a session does."""
    loader = make_loader(conf, env, **given)
    FollowParameters().after_context_created(SimpleNamespace(config_loader=loader))  # type: ignore[arg-type]
    return loader


def _catalog(root: Path, env: str | None = None, **given: Any) -> DataCatalog:
    """The project's own catalog with the files below ``root``."""
    loader = _follow(env=env, **{"dataset": {"task": "reach-v3"}, **given})
    return make_catalog(loader, root)


def _pipeline(*stages: str) -> Pipeline:
    return sum((register_pipelines()[stage] for stage in stages), start=Pipeline([]))


def _check(pipeline: Pipeline, catalog: DataCatalog) -> None:
    CheckInputs().before_pipeline_run({"only_missing_outputs": False}, pipeline, catalog)


def test_the_pipelines_follow_the_parameters() -> None:
    _follow(baselines={"iql": {}})
    assert [row.name for row in current_plan().rows] == ["cvl", "bc", "iql"]
    _follow(dataset=LOG)
    assert not current_plan().evaluates
    assert current_plan().judges
    assert [node.name for node in register_pipelines()["evaluation"].nodes] == ["evaluation.write_page"]
    with pytest.raises(InputError, match="unknown field 'sed'"):
        _follow(sed=1)


@pytest.mark.parametrize(
    ("root", "field"), [("/proc/x", "data.root"), ("file/x", "data.root"), ("file", "data.root")]
)
def test_a_data_folder_that_cannot_be_written_is_refused_before_it_is_locked(
    root: str, field: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    root = root if root.startswith("/") else str(tmp_path / root)
    hook = FollowParameters()
    loader = make_loader(data={"root": root})
    hook.after_context_created(SimpleNamespace(config_loader=loader))  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=rf"^{field}: the folder .* cannot be written to .*; name one of your own$"
    ):
        next(hook.before_pipeline_run())
    names = [type(hook).__name__ for hook in HOOKS]
    assert names.index("FollowParameters") < names.index("TrustArtifacts")


def test_the_data_folder_is_created(tmp_path: Path) -> None:
    hook = FollowParameters()
    root = {"root": str(tmp_path / "a" / "b")}
    loader = make_loader(data=root)
    hook.after_context_created(SimpleNamespace(config_loader=loader))  # type: ignore[arg-type]
    assert not Path(root["root"]).exists()  # such as for `kedro artifacts status`
    next(hook.before_pipeline_run())
    assert list(Path(root["root"]).iterdir()) == []


def test_parameters_of_a_study_are_logged_unless_they_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    conf = copy_conf(tmp_path)
    best = tmp_path / "data/08_reporting/door-open-v3/tuning/study/best_parameters.json"
    best.parent.mkdir(parents=True)
    found = {
        "contrastive_dynamics.temperature": 0.3, "contrastive_dynamics.discount": 0.83,
        "contrastive_dynamics.training.steps": 7, "policy_extraction.beta": 1.0,
    }  # fmt: skip
    best.write_text(json.dumps({"parameters": found}))
    with caplog.at_level(logging.INFO, logger="cvl_pipeline.kedro.hooks"):
        _follow(conf)
        assert caplog.messages == []
        _follow(conf, tuned=True, contrastive_dynamics={"training": {"steps": 9}})
    assert caplog.messages == [
        "tuned: contrastive_dynamics.temperature is 0.3, not 0.1",
        "tuned: policy_extraction.beta is 1.0, not 3.0",
    ]


def test_a_file_in_conf_local_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    conf = copy_conf(tmp_path)
    with caplog.at_level(logging.INFO, logger="cvl_pipeline.kedro.hooks"):
        _follow(conf)
        (conf / "local/credentials.yml").write_text("laboratory: {}")
        _follow(conf)
        assert caplog.messages == []
        (conf / "local/parameters.yml").write_text("seed: 3")
        _follow(conf, env="smoke")  # which is read instead
        assert caplog.messages == []
        assert _follow(conf)["parameters"]["seed"] == 3
    (message,) = caplog.messages
    assert "conf/local/parameters.yml is in force: without --env, files in conf/local override" in message


def test_a_run_that_makes_all_artifacts_itself_may_start(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path)
    _check(_pipeline("__default__"), catalog)


def test_missing_artifacts_are_named_with_the_stages_that_make_them(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path)
    with pytest.raises(InputError) as caught:
        _check(_pipeline("value_readout"), catalog)
    message = str(caught.value)
    assert "missing artifacts: critic, normalisation, rewards, split, transitions;" in message
    assert "labels" not in message, "the stage makes them itself"
    assert message.endswith(
        "kedro run --pipelines data_ingestion,contrastive_dynamics --params dataset.task=reach-v3"
    )


def test_commands_in_messages_have_the_options_of_the_run(tmp_path: Path) -> None:
    given: dict[str, Any] = {"dataset": {"task": "push-v3"}, "seed": 7, "baselines": {"bc": None}}
    catalog = _catalog(tmp_path, "smoke", **given)
    with pytest.raises(InputError) as caught:
        _check(_pipeline("contrastive_dynamics"), catalog)
    command = "kedro run --pipelines data_ingestion --env smoke --params dataset.task=push-v3,seed=7,baselines.bc=null"
    assert str(caught.value).endswith(command)


def test_existing_artifacts_are_not_asked_for(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path)
    transitions = make_transitions([3, 4], [False, True])
    catalog.save("transitions", transitions)
    catalog.save("rewards", make_rewards(transitions))
    catalog.save("split", split_first(transitions, 1))
    catalog.save("normalisation", identity_normalisation(transitions))
    with pytest.raises(InputError, match=r"missing artifacts: critic; .*--pipelines contrastive_dynamics "):
        _check(_pipeline("value_readout"), catalog)
    # The advised stages run at once: what they lack is made too.
    policy = GaussianActor(ActorShape((3,), 2, (4,)))
    for name in ("cvl_policy", "reward_free_bc_policy"):
        catalog.save(name, policy)
    with pytest.raises(
        InputError, match=r"missing artifacts: labels; .*--pipelines contrastive_dynamics,value_readout "
    ):
        _check(_pipeline("evaluation").to_nodes("evaluation.plot"), catalog)


def test_an_artifact_of_another_kind_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path)
    catalog.save("cvl_policy", GaussianActor(ActorShape((3,), 2, (4,))))
    path = path_of(catalog, "cvl_policy")
    catalog.save("rewards", make_rewards(make_transitions([2], [False])))
    path.write_bytes(path_of(catalog, "rewards").read_bytes())
    stage = register_pipelines()["evaluation"].only_nodes("evaluation.roll_out_cvl")
    with pytest.raises(InputError, match=r"cvl_policy\.safetensors contains a rewards, not a policy"):
        _check(stage, catalog)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"cvl_policy\.safetensors is damaged"):
        _check(stage, catalog)


def test_parts_of_a_stage_need_only_their_own_inputs(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path)
    catalog.save("cvl_policy", GaussianActor(ActorShape((3,), 2, (4,))))
    _check(register_pipelines()["evaluation"].only_nodes("evaluation.roll_out_cvl"), catalog)
    with pytest.raises(
        InputError, match="missing artifacts: labels, reward_free_bc_policy, split, transitions;"
    ):
        _check(_pipeline("evaluation").to_nodes("evaluation.plot"), catalog)
    # The page is about all stages.
    with pytest.raises(InputError, match=r"dynamics_history.* values; make them first"):
        _check(_pipeline("evaluation"), catalog)


@pytest.mark.parametrize("name", OLD_ARTIFACTS)
def test_artifacts_of_an_older_version_are_reported_with_what_to_do(tmp_path: Path, name: str) -> None:
    catalog = _catalog(tmp_path, seed=2)
    path = path_of(catalog, name)
    old = path.with_name(OLD_ARTIFACTS[name])
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of an older version")
    readers = [node.name for node in _pipeline("__default__").nodes if name in node.inputs]
    with pytest.raises(InputError) as caught:
        _check(_pipeline("__default__").only_nodes(readers[0]), catalog)
    message = str(caught.value)
    assert message.startswith(f"{old} is of an older version")
    assert f"rename it to {path.name}, or make it again: kedro run --only-missing-outputs" in message
    assert message.endswith("seed=2")
    assert "\n" not in message


def test_an_unknown_task_stops_only_a_run_that_simulates(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path, dataset={"task": "reech-v3"})
    with pytest.raises(InputError, match=r"'reech-v3'.*did you mean .*reach-v3"):
        _check(_pipeline("__default__"), catalog)
    with pytest.raises(InputError, match="missing artifacts: normalisation, split, transitions"):
        _check(_pipeline("contrastive_dynamics"), catalog)


@pytest.mark.parametrize("section", ["contrastive_dynamics", "policy_extraction"])
def test_missing_gpus_stop_a_run_that_trains_on_them_before_it_collects(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given: dict[str, Any] = {section: {"training": {"accelerator": "gpu"}}}
    catalog = _catalog(tmp_path, **given)
    whole = _pipeline("__default__")
    with pytest.raises(InputError, match="PyTorch finds no NVIDIA or AMD GPU"):
        _check(whole, catalog)
    _check(_pipeline("data_ingestion"), catalog)
    given[section]["training"]["nodes"] = 2
    _check(whole, _catalog(tmp_path, **given))  # other machines train
    monkeypatch.setattr(DataCatalog, "exists", lambda *_: True)
    CheckInputs().before_pipeline_run({"only_missing_outputs": True}, whole, catalog)  # trained elsewhere


def test_a_reward_that_cannot_be_imported_stops_only_a_run_that_needs_it(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path, reward={"source": "no_such_module:speed"})
    for stage in ("__default__", "value_readout", "evaluation"):
        with pytest.raises(InputError, match=r"reward\.source 'no_such_module:speed' cannot be imported"):
            _check(_pipeline(stage), catalog)
    with pytest.raises(InputError, match="missing artifacts: normalisation, split, transitions"):
        _check(_pipeline("contrastive_dynamics"), catalog)


def test_every_finished_node_is_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = _pipeline("value_readout")
    hook = ReportNodes()
    with caplog.at_level(logging.INFO, logger="cvl_pipeline.kedro.hooks"):
        hook.before_pipeline_run({"only_missing_outputs": False}, pipeline, DataCatalog())
        for node in pipeline.nodes:
            hook.before_node_run(node)
            hook.after_node_run(node)
    assert len(caplog.messages) == len(pipeline.nodes)
    assert re.fullmatch(r"1/5 value_readout\.label -> labels \(\d+\.\d s\)", caplog.messages[0])
    assert caplog.messages[-1].startswith("5/5 ")


def test_what_takes_long_is_logged_before_it_is_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(silence, "PATIENCE", 0.01)
    node = _pipeline("value_readout").nodes[0]
    hook = ReportNodes()
    with caplog.at_level(logging.INFO, logger="cvl_pipeline.kedro"):
        silence.begin(silence.START, "loading")
        hook.before_dataset_loaded("rewards", node)
        wait_for(lambda: len(caplog.messages) == 1)
        hook.before_node_run(node)
        wait_for(lambda: len(caplog.messages) == 2)
        hook.after_node_run(node)
        hook.before_dataset_saved("labels", node)
        wait_for(lambda: len(caplog.messages) == 4)
    reading, running, done, writing = caplog.messages
    assert reading == "value_readout.label reads rewards"
    assert running == "value_readout.label is running"
    assert done.startswith("1/0 value_readout.label -> labels")
    assert writing == "value_readout.label writes labels"


@pytest.mark.parametrize("event", ["after_pipeline_run", "on_pipeline_error"])
def test_what_has_ended_is_not_logged(
    event: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(silence, "PATIENCE", 0.2)
    node = _pipeline("value_readout").nodes[0]
    hook = ReportNodes()
    with caplog.at_level(logging.INFO, logger="cvl_pipeline.kedro"):
        hook.before_node_run(node)
        getattr(hook, event)()
        time.sleep(0.4)
    assert not caplog.messages


Table = Callable[..., str]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Table:
    """What is printed after an evaluation, with some metrics and parameters."""

    def printed(root: Path, metrics: dict[str, Any], **given: Any) -> str:
        monkeypatch.setenv("COLUMNS", "200")
        catalog = _catalog(root, **given)
        catalog.save("metrics", METRICS | {"behaviour_episodes": 180} | metrics)
        ReportResults().after_pipeline_run(_pipeline("data_ingestion"), catalog)
        assert capsys.readouterr().out == ""
        ReportResults().after_pipeline_run(_pipeline("evaluation"), catalog)
        return capsys.readouterr().out

    return printed


def test_an_evaluated_run_ends_with_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Table
) -> None:
    monkeypatch.chdir(tmp_path)
    out = table(tmp_path, {})
    assert "reach-v3, seed 3\n" in re.sub(" +\n", "\n", out)
    assert re.search(r"CVL .* 50 .* 0\.80 \[0\.70, 0\.85\]", out)
    assert re.search(r"behaviour data .* 180 .* 0\.60 \[0\.50, 0\.65\]", out)
    assert "90 % interval" in out
    assert "Metrics, tables and plots: data/08_reporting/reach-v3/seed_0/" in out
    assert "All on one page: data/08_reporting/reach-v3/seed_0/page.html" in out


def test_the_table_names_the_reward_unless_it_is_the_datasets_own(tmp_path: Path, table: Table) -> None:
    out = table(tmp_path, {"reward": "success"}, reward={"source": "success"})
    assert "reach-v3, seed 3, reward success" in out
    assert "data/08_reporting/reach-v3/seed_0/success/" in out


def test_names_in_the_table_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Table
) -> None:
    (tmp_path / "[red]").mkdir()
    monkeypatch.chdir(tmp_path / "[red]")
    out = table(tmp_path / "[red]" / "[bold]", {"dataset": "[blink]x[/]", "reward": "[b]:f"})
    assert "[blink]x[/], seed 3, reward [b]:f" in out
    assert "plots: [bold]/data/08_reporting/" in out


def test_results_that_nothing_reports_are_not_available(tmp_path: Path, table: Table) -> None:
    """The success rate, of an environment that reports no success."""
    ends = ("", "_ci_low", "_ci_high")
    unknown = {f"{name}.success_rate{end}": None for name in ("cvl", "bc", "behaviour") for end in ends}
    assert re.search(r"CVL +│ 50 +│ n/a +│ 0\.80 \[0\.70, 0\.85\]", table(tmp_path, unknown))


def test_the_judgement_of_many_policies_fits_into_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    methods = {"cvl": "CVL", "bc": "BC (control)", "filtered_bc": "Filtered BC", "mc_awr": "Monte Carlo AWR"}
    numbers = {
        f"{name}.{measure}{end}": -0.00123
        for name in methods
        for measure in COLUMNS
        for end in ("", "_ci_low", "_ci_high")
    }
    shared = {"methods": methods, "dataset": "x", "seed": 0, "measures": {}, "behaviour.value": 1.0}
    catalog = _catalog(tmp_path, dataset=LOG)
    catalog.save("judgement", numbers | shared)
    ReportResults().after_pipeline_run(_pipeline("judging"), catalog)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    names = " ".join([*COLUMNS.values(), *methods.values(), "behaviour data"])
    assert set(names.lower().split()) <= set(re.sub("[┃│]", " ", out).lower().split())


def test_a_run_without_an_environment_ends_with_the_places_of_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    catalog = _catalog(tmp_path, dataset=LOG, baselines={"iql": {}})
    for stage in ("data_ingestion", "contrastive_dynamics", "value_readout"):
        ReportResults().after_pipeline_run(_pipeline(stage), catalog)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("COLUMNS", "160")
    numbers = {"cvl.advantage": 0.25, "cvl.advantage_ci_low": -1.0, "cvl.advantage_ci_high": 1.5}
    shared = {
        "methods": {"cvl": "CVL"},
        "dataset": "mine.csv",
        "seed": 0,
        "measures": {"advantage": "It says."},
    }
    catalog.save("judgement", numbers | shared)
    ReportResults().after_pipeline_run(_pipeline("judging"), catalog)
    out = capsys.readouterr().out
    assert "mine.csv, seed 0, judged from the log alone" in re.sub(r"\s+", " ", out)
    assert re.search(r"measure +┃ CVL", out)
    assert re.search(r"advantage +│ 0\.25 \[-1, 1\.5\]", out)
    assert out.splitlines()[-1] == "It says."
    ReportResults().after_pipeline_run(_pipeline("__default__"), catalog)
    assert capsys.readouterr().out.removeprefix(out).splitlines() == [
        "No environment is known for 'mine.csv', so the policies were not run in one; to do so, name a Gymnasium "
        "id: --params evaluation.environment=ID",
        "CVL: data/06_models/mine.csv/seed_0/cvl_policy.safetensors",
        "BC (control): data/06_models/mine.csv/seed_0/bc_policy.safetensors",
        "IQL: data/06_models/mine.csv/seed_0/iql_policy.safetensors",
        "Offline figures: data/08_reporting/mine.csv/seed_0/value_report.json (explained in docs/metrics.md)",
        "Pictures: data/08_reporting/mine.csv/seed_0/value_plot.png, "
        "data/08_reporting/mine.csv/seed_0/policy_plot.png",
        "All on one page: data/08_reporting/mine.csv/seed_0/page.html",
    ]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_place_of_an_artifact_that_is_no_file_is_refused_before_anything_runs(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    catalog = _catalog(tmp_path)
    pipeline = _pipeline("data_ingestion")
    _check(pipeline, catalog)
    place = path_of(catalog, "data_report")
    place.parent.mkdir(parents=True)
    make(place)
    kind = "pipe" if make is os.mkfifo else "folder"
    with pytest.raises(InputError, match=rf"data_report\.json is a {kind}, not a file; delete or move it"):
        _check(pipeline, catalog)
