"""A study's YAML: the grid it makes, and what is said of a bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode
from hypothesis import given
from hypothesis import strategies as st

from clab_d2.config import get_clab_cfg
from clab_d2.errors import ConfigError, DataError
from clab_d2.study.plan import MAX_RUNS, Study, folder_name, load_study

MINIMAL: dict[str, Any] = {"config": "c.yaml", "seeds": [1], "metrics": ["vid/AP50"]}


def read(tmp_path: Path, text: str) -> Study:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    return load_study(str(path))


def made(tmp_path: Path, **keys: Any) -> Study:
    return read(tmp_path, yaml.safe_dump(MINIMAL | keys, sort_keys=False))


def test_a_grid_has_every_combination_seed_by_seed(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        """
config: configs/{method}_{depth}.yaml
options: {SOLVER.MAX_ITER: 600}
factors:
  method: [plain, clab]
  depth: {R_50: , R_101: {MODEL.RESNETS.DEPTH: 101}}
seeds: [7, 3]
metrics: [vid/AP50]
baseline: {method: plain}
""",
    )
    runs = study.runs(Path("out"))
    assert [run.label for run in runs] == [
        f"{method}, {depth}, seed {seed}"
        for seed in (7, 3)
        for method in ("plain", "clab")
        for depth in ("R_50", "R_101")
    ]
    assert runs[3].config == "configs/clab_R_101.yaml"
    assert runs[3].options == ("SOLVER.MAX_ITER", "600", "MODEL.RESNETS.DEPTH", "101")
    assert runs[3].folder == Path("out/runs/clab__r_101/seed_7")
    assert len({run.folder for run in runs}) == 8
    assert study.conditions()[2] == {"method": "clab", "depth": "R_50"}
    assert study.baseline_of({"method": "clab", "depth": "R_50"}) == {
        "method": "plain",
        "depth": "R_50",
    }
    assert study.baseline_of({"method": "plain", "depth": "R_50"}) is None


def test_evaluations_take_their_trainings_weights_and_train_nothing(tmp_path: Path) -> None:
    study = made(
        tmp_path,
        factors={"method": ["a", "b"]},
        evaluate={
            "number": {2: {"TEST.REFERENCES.NUM": 2}, 14: None},
            "place": {"spread": None, "past": {"TEST.REFERENCES.SAMPLING": "causal"}},
        },
    )
    runs = study.runs(Path("out"))
    trainings = [run for run in runs if run.training is None]
    assert [run.condition for run in trainings] == [
        {"method": method, "number": "14", "place": "spread"} for method in "ab"
    ]
    assert len(runs) == 2 * 4
    by_condition = {str(run.condition) for run in runs}
    assert by_condition == {str(condition) for condition in study.conditions()}
    for run in runs:
        if run.training is not None:
            assert runs.index(run.training) < runs.index(run)
            assert run.options[-2:] == ("MODEL.WEIGHTS", f"{run.training.folder}/model_final.pth")
            assert run.training.folder in run.folder.parents


def test_a_training_that_only_other_evaluations_report(tmp_path: Path) -> None:
    study = made(tmp_path, evaluate={"number": {2: {"TEST.REFERENCES.NUM": 2}}})
    training, evaluation = study.runs(Path("out"))
    assert training.condition is None
    assert evaluation.condition == {"number": "2"}


@given(
    st.one_of(
        st.booleans(),
        st.integers(-(10**9), 10**9),
        st.floats(allow_nan=False, allow_infinity=False),
        st.lists(st.one_of(st.integers(), st.text("ab c'\"", max_size=4)), max_size=3),
    )
)
def test_values_reach_a_config_as_they_stand_in_the_yaml(value: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        study = made(Path(folder), options={"KEY": value})
    cfg = CfgNode({"KEY": type(value)()})
    cfg.merge_from_list(list(study.runs(Path("out"))[0].options))
    assert value == cfg.KEY


def test_text_reaches_a_config_as_on_a_command_line(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        "config: c.yaml\nseeds: [1]\nmetrics: [vid/AP50]\noptions:\n  SOLVER.BASE_LR: 1e-3\n"
        "  MODEL.CONTRASTIVE.WEIGHT.SCHEDULE: cosine\n  DATASETS.TEST: ('val',)\n",
    )
    cfg = get_clab_cfg()
    cfg.merge_from_list(list(study.runs(Path("out"))[0].options))
    assert cfg.SOLVER.BASE_LR == 0.001
    assert cfg.MODEL.CONTRASTIVE.WEIGHT.SCHEDULE == "cosine"
    assert tuple(cfg.DATASETS.TEST) == ("val",)


def test_levels_may_share_keys_by_yamls_anchors(tmp_path: Path) -> None:
    text = "config: c\nseeds: [1]\nmetrics: [vid/AP50]\nfactors:\n  f:\n    a: &a {K: 1, L: 2}\n"
    study = read(tmp_path, text + "    b: {<<: *a, L: 3}\n")
    assert study.factors[0].levels[1].options == {"K": "1", "L": "3"}


@given(st.lists(st.text(max_size=8), min_size=1, max_size=3))
def test_folder_names_stay_in_their_folder(names: list[str]) -> None:
    name = folder_name(names)
    assert "/" not in name and not name.startswith(".") and "\x00" not in name


LEVEL_TWICE = "config: c\nseeds: [1]\nmetrics: [vid/AP50]\nfactors: {f: {a: , b: , a: }}"
BOMB = "\n".join(
    ["config: c", "seeds: [1]", "metrics: [vid/AP50]", "note: &a0 [x]"]
    + [f"k{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(30)]
)
BOMB_VALUE = "\n".join(
    ["config: c", "seeds: [1]", "metrics: [vid/AP50]", "options:", "  K0: &a0 [x]"]
    + [f"  K{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(30)]
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "seeds is missing"),
        ("- 1", "the file must hold KEY: VALUE pairs"),
        ("a: [", "not valid YAML"),
        ("config: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("? [1, 2]\n: 3", "not valid YAML"),
        (LEVEL_TWICE, "'a' stands twice"),
        (BOMB, "k0 is no key of a study"),
        (BOMB_VALUE, "has more than 1000 entries"),
        ("config: c\nmetrics: [vid/AP50]\nseeds: &s [*s]", "seeds has a list"),
        ("config: c\nmetrics: [vid/AP50]\nseeds: [1]\noptions: {K: &s [*s]}", "more than 1000"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises((ConfigError, DataError)) as error:
        read(tmp_path, text)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/s.yaml: ") and said in message
    assert "\n" not in message and len(message) < 500


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sedes": [1]}, "sedes is no key of a study"),
        ({"seeds": 3}, "seeds must be a list"),
        ({"seeds": [1, True]}, "seeds has True"),
        ({"seeds": [-1]}, "seeds has -1"),
        ({"seeds": [1, 1]}, "seeds has a seed twice"),
        ({"metrics": ["AP50"]}, "metrics has 'AP50'"),
        ({"config": None}, "config is missing"),
        ({"config": 3}, "config is 3"),
        ({"config": "c_{depth}.yaml"}, "config has {depth}, no factor"),
        ({"factors": {"f": {}}}, "factors.f has no level"),
        ({"factors": {"f": {True: None}}}, "factors.f has the name True"),
        ({"factors": {"f": {"...": None}}}, "give it a letter or a digit"),
        ({"factors": {"f": {"A b": None, "a-b": None, "a_b": None}}}, "would have one name"),
        ({"factors": {"f": {"a": {"SEED": 3}}}}, "factors.f.a.SEED is set by the study"),
        ({"factors": {"f": {"a": {"--import": "evil.py"}}}}, "factors.f.a.--import is no config"),
        ({"options": {"OUTPUT_DIR": "/"}}, "options.OUTPUT_DIR is set by the study"),
        ({"options": {"MODEL": {"DEVICE": "cpu"}}}, "options.MODEL has keys under it"),
        ({"options": {"K": [{"a": 1}]}}, "options.K has KEY: VALUE pairs in a list"),
        ({"baseline": {"g": "a"}}, "baseline.g is no factor"),
        ({"factors": {"f": ["a"]}, "baseline": {"f": "b"}}, "baseline.f is 'b', no level of it"),
        ({"num_gpus": 0}, "num_gpus is 0"),
        ({"hours": {"training": "long"}}, "hours.training is 'long'"),
        ({"hours": {"sleep": 8}}, "hours.sleep is neither"),
        ({"evaluate": {"f": {"a": {"config": "d.yaml"}}}}, "evaluate.f.a.config can't be"),
        ({"factors": {"f": ["a"]}, "evaluate": {"f": ["a"]}}, "evaluate.f is a factor already"),
        (
            {"factors": {"f": {"a": {"K": 1}}, "g": {"b": {"K": 2}}}},
            "factors.g sets K as factors.f does",
        ),
        (
            {"factors": {f"f{i}": [f"a{j}" for j in range(10)] for i in range(9)}},
            f"{MAX_RUNS} are the most",
        ),
    ],
)
def test_a_bad_key_is_named_in_one_line(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, DataError)) as error:
        made(tmp_path, **keys)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/s.yaml: ") and said in message
    assert "\n" not in message and len(message) < 500


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(DataError, match=r"^none\.yaml: no such file"):
        load_study("none.yaml")
