from __future__ import annotations

import pandas as pd

from cvl_pipeline.reports.markdown import markdown


def test_a_number_stands_beside_its_interval() -> None:
    table = pd.DataFrame({"name": ["a"], "gain": [0.25], "gain_ci": [0.125], "n": ["7"]})
    assert markdown(table, 2) == "| name | gain | n |\n|---|---|---|\n| a | 0.25 ± 0.12 | 7 |"


def test_a_column_whose_name_only_ends_like_an_interval_is_kept() -> None:
    table = pd.DataFrame({"task": ["hammer"], "cvl": [0.5], "iql__ci": [0.25]})
    assert markdown(table, 2).splitlines()[2] == "| hammer | 0.50 | 0.25 |"
