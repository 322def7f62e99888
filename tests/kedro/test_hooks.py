from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from omegaconf import OmegaConf

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.configuration import RESOLVERS, CheckedConfigLoader
from cvl_pipeline.kedro.hooks import CheckInputs, NarrateNodes, ReportResults
from cvl_pipeline.kedro.parameters import check_parameters
from cvl_pipeline.kedro.pipeline_registry import register_pipelines
from cvl_pipeline.kedro.settings import CONFIG_LOADER_ARGS
from cvl_pipeline.networks.actor import ActorShape, GaussianActor
from cvl_pipeline.testing.builders import make_rewards, make_transitions, split_first
from tests.project import CONF
from tests.reports.test_plots import METRICS


def _catalog(root: Path, task: str = "reach-v3", reward: str = "dataset") -> DataCatalog:
    """The project's own catalog, its files moved below ``root``, and the parameters of nodes."""
    for resolver in RESOLVERS:
        OmegaConf.clear_resolver(resolver)
    given = {"dataset": {"task": task}, "reward": {"source": reward}}
    loader = CheckedConfigLoader(str(CONF), runtime_params=given, **CONFIG_LOADER_ARGS)
    entries: dict[str, Any] = {
        name: entry | {"filepath": str(root / entry["filepath"])} for name, entry in loader["catalog"].items()
    }
    catalog = DataCatalog.from_config(entries)
    parameters = check_parameters(loader["parameters"])
    catalog["params:dataset"] = parameters.dataset
    catalog["params:reward"] = parameters.reward
    catalog["params:evaluation"] = parameters.evaluation
    return catalog


def _pipeline(*stages: str) -> Pipeline:
    return sum((register_pipelines()[stage] for stage in stages), start=Pipeline([]))


def _check(pipeline: Pipeline, catalog: DataCatalog) -> None:
    CheckInputs().before_pipeline_run(pipeline, catalog)


def test_a_run_that_makes_everything_itself_may_start(tmp_path: Path) -> None:
    _check(_pipeline("__default__"), _catalog(tmp_path))


def test_missing_artifacts_are_named_with_the_stages_that_make_them(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        _check(_pipeline("value_readout"), _catalog(tmp_path))
    message = str(caught.value)
    assert "missing artifacts: critic, rewards, split, transitions;" in message
    assert "labels" not in message, "the stage makes them itself"
    assert "kedro run --pipelines data_ingestion,contrastive_dynamics" in message


def test_artifacts_that_are_there_are_not_asked_for(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path)
    transitions = make_transitions([3, 4], [False, True])
    catalog.save("transitions", transitions)
    catalog.save("rewards", make_rewards(transitions))
    catalog.save("split", split_first(transitions, 1))
    with pytest.raises(InputError, match=r"missing artifacts: critic; .*--pipelines contrastive_dynamics "):
        _check(_pipeline("value_readout"), catalog)


def test_an_artifact_of_another_kind_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path)
    actor = GaussianActor(ActorShape((3,), 2, (4,)))
    for name in ("policy", "bc_policy"):
        catalog.save(name, actor)
    path = Path(vars(catalog["policy"])["_filepath"])
    catalog.save("rewards", make_rewards(make_transitions([2], [False])))
    path.write_bytes(Path(vars(catalog["rewards"])["_filepath"]).read_bytes())
    stage = register_pipelines()["evaluation"].only_nodes("evaluation.roll_out")
    with pytest.raises(InputError, match=r"policy\.safetensors holds a rewards, not a policy"):
        _check(stage, catalog)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"policy\.safetensors is damaged"):
        _check(stage, catalog)


def test_parts_of_a_stage_need_only_their_own_inputs(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path)
    for name in ("policy", "bc_policy"):
        catalog.save(name, GaussianActor(ActorShape((3,), 2, (4,))))
    _check(register_pipelines()["evaluation"].only_nodes("evaluation.roll_out"), catalog)
    with pytest.raises(
        InputError,
        match=r"missing artifacts: labels, split, transitions; .*--pipelines data_ingestion,value_readout ",
    ):
        _check(_pipeline("evaluation"), catalog)


def test_an_unknown_task_stops_a_run_that_simulates_and_no_other(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path, task="reech-v3")
    with pytest.raises(InputError, match=r"'reech-v3'.*did you mean .*reach-v3"):
        _check(_pipeline("__default__"), catalog)
    with pytest.raises(InputError, match="missing artifacts: normalisation, split, transitions"):
        _check(_pipeline("contrastive_dynamics"), catalog)


def test_a_reward_that_cannot_be_imported_stops_a_run_that_needs_it_and_no_other(tmp_path: Path) -> None:
    catalog = _catalog(tmp_path, reward="no_such_module:speed")
    for stage in ("__default__", "value_readout", "evaluation"):
        with pytest.raises(InputError, match=r"reward\.source 'no_such_module:speed' cannot be imported"):
            _check(_pipeline(stage), catalog)
    with pytest.raises(InputError, match="missing artifacts: normalisation, split, transitions"):
        _check(_pipeline("contrastive_dynamics"), catalog)


def test_every_finished_node_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = _pipeline("value_readout")
    hook = NarrateNodes()
    with caplog.at_level(logging.INFO, logger="cvl_pipeline.kedro.hooks"):
        hook.before_pipeline_run({"only_missing_outputs": False}, pipeline, DataCatalog())
        for node in pipeline.nodes:
            hook.before_node_run()
            hook.after_node_run(node)
    assert len(caplog.messages) == len(pipeline.nodes)
    assert re.fullmatch(r"1/5 value_readout\.label -> labels \(\d+\.\d s\)", caplog.messages[0])
    assert caplog.messages[-1].startswith("5/5 ")


def test_an_evaluated_run_ends_in_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    catalog = _catalog(tmp_path)
    catalog.save("metrics", METRICS | {"behaviour_episodes": 180})
    ReportResults().after_pipeline_run(_pipeline("data_ingestion"), catalog)
    assert capsys.readouterr().out == ""
    ReportResults().after_pipeline_run(_pipeline("evaluation"), catalog)
    out = capsys.readouterr().out
    assert "reach-v3, seed 3\n" in re.sub(" +\n", "\n", out)
    assert re.search(r"CVL .* 50 .* 0\.80 \[0\.70, 0\.85\]", out)
    assert re.search(r"behaviour data .* 180 .* 0\.60 \[0\.50, 0\.65\]", out)
    assert "90 % interval" in out
    assert "Metrics, tables and plots: data/08_reporting/reach-v3/seed_0/" in out


def test_the_table_of_another_reward_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    catalog = _catalog(tmp_path, reward="success")
    catalog.save("metrics", METRICS | {"behaviour_episodes": 180, "reward": "success"})
    ReportResults().after_pipeline_run(_pipeline("evaluation"), catalog)
    out = capsys.readouterr().out
    assert "reach-v3, seed 3, reward success" in out
    assert "data/08_reporting/reach-v3/seed_0/success/" in out


def test_a_name_in_the_table_is_no_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "[red]").mkdir()
    monkeypatch.chdir(tmp_path / "[red]")
    monkeypatch.setenv("COLUMNS", "200")
    catalog = _catalog(tmp_path / "[red]" / "[bold]")
    catalog.save(
        "metrics", METRICS | {"behaviour_episodes": 180, "dataset": "[blink]x[/]", "reward": "[b]:f"}
    )
    ReportResults().after_pipeline_run(_pipeline("evaluation"), catalog)
    out = capsys.readouterr().out
    assert "[blink]x[/], seed 3, reward [b]:f" in out
    assert "plots: [bold]/data/08_reporting/" in out
