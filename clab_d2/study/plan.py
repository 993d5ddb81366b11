"""A study's YAML, and the runs that it declares."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clab_d2.errors import ConfigError, DataError
from clab_d2.io import refuse_special_file

MAX_RUNS = 10_000
_MAX_ENTRIES = 1_000

#: What is trained or evaluated of a condition: factor -> name of its level.
Condition = dict[str, str]

# A config key; so no value of a study can be taken for an option of the command line.
_CONFIG_KEY = re.compile(r"[A-Za-z]\w*(\.\w+)*")
# Keys that the study itself sets for every run.
_OWN_KEYS = ("SEED", "OUTPUT_DIR")


@dataclass(frozen=True)
class Level:
    """One setting of a factor.

    Attributes:
        name: as the tables show it.
        config: a config file of its own, or None for the study's.
        options: config key -> value as on train_net's command line.
    """

    name: str
    config: str | None
    options: dict[str, str]


@dataclass(frozen=True)
class Factor:
    """What is varied, over its levels."""

    name: str
    levels: tuple[Level, ...]


_Combination = dict[str, Level]  # factor -> its level


@dataclass(frozen=True)
class Run:
    """One training, or one evaluation of a training's weights.

    Attributes:
        label: for people: levels and seed.
        condition: what its metrics are reported as; None for a training of which only other
            evaluations are.
        seed: the config's SEED.
        config: config file.
        options: KEY, VALUE, ...: all but SEED and OUTPUT_DIR.
        folder: its OUTPUT_DIR.
        training: for an evaluation, the training whose weights it takes.
        source: the study's file.
    """

    label: str
    condition: Condition | None
    seed: int
    config: str
    options: tuple[str, ...]
    folder: Path
    training: Run | None = None
    source: str = ""

    @property
    def kind(self) -> str:
        """ "training" or "evaluation", and of which study: what takes about equally long."""
        return kind_of_run("evaluation" if self.training else "training", self.source)

    @property
    def weights(self) -> Path:
        """The file of weights that a training ends with."""
        return self.folder / "model_final.pth"


def kind_of_run(what: str, source: str) -> str:
    """A "training" or an "evaluation" of a study; see :attr:`Run.kind`."""
    return f"{what} of {source}"


@dataclass(frozen=True)
class Study:
    """A declared grid of runs.

    Attributes:
        source: its file.
        name: what its results are kept under.
        title, note: for the head of its table.
        config: config file of all runs whose levels name none; ``{factor}`` in it stands for the
            name of that factor's level.
        options: overrides of all runs.
        factors: trained anew for each combination of their levels.
        evaluate: factors at test: every training is evaluated with each combination of theirs.
        seeds: of each combination.
        metrics: places in metrics.json, as "vid/AP50".
        baseline: level of some factors; a condition is compared with the one that has these and
            is otherwise like it.
        num_gpus: GPUs (or processes) of one run.
        hours: "training" and "evaluation" -> expected hours of one that has the machine to itself.
    """

    source: str
    name: str
    title: str
    note: str
    config: str | None
    options: dict[str, str]
    factors: tuple[Factor, ...]
    evaluate: tuple[Factor, ...]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    baseline: Condition
    num_gpus: int
    hours: dict[str, float]

    def hours_by_kind(self) -> dict[str, float]:
        """:attr:`Run.kind` -> expected hours."""
        return {kind_of_run(what, self.source): hours for what, hours in self.hours.items()}

    def conditions(self) -> list[Condition]:
        """Every combination of levels, in the order of the file."""
        return [_names(levels) for levels in _combinations((*self.factors, *self.evaluate))]

    def baseline_of(self, condition: Condition) -> Condition | None:
        """What a condition is compared with; None for a baseline, and where there is none."""
        compared = {**condition, **self.baseline}
        return None if compared == condition else compared

    def runs(self, output: Path) -> list[Run]:
        """All runs, seed by seed, so that a study that is cut short has as many of each condition.

        Evaluations come behind their training.

        Args:
            output: the study's folder.
        """
        return list(self._runs(output))

    def _runs(self, output: Path) -> Iterator[Run]:
        for seed, levels in itertools.product(self.seeds, _combinations(self.factors)):
            options = {**self.options, **_options(levels)}
            trained = _names(levels)
            folder = output / "runs" / folder_name(trained.values()) / f"seed_{seed}"
            tests = [(_names(test), _options(test)) for test in _combinations(self.evaluate)]
            # What training ends with is the evaluation without overrides.
            own = next((names for names, changes in tests if not changes), None)
            training = Run(
                label=", ".join([*trained.values(), f"seed {seed}"]),
                condition=None if own is None else {**trained, **own},
                seed=seed,
                config=self._config(levels),
                options=_pairs(options),
                folder=folder,
                source=self.source,
            )
            yield training
            for names, changes in tests:
                if changes:
                    yield Run(
                        label=", ".join([*trained.values(), *names.values(), f"seed {seed}"]),
                        condition={**trained, **names},
                        seed=seed,
                        config=training.config,
                        options=(
                            *_pairs({**options, **changes}),
                            *("MODEL.WEIGHTS", str(training.weights)),
                        ),
                        folder=folder / "evaluations" / folder_name(names.values()),
                        training=training,
                        source=self.source,
                    )

    def _config(self, levels: _Combination) -> str:
        own = next((level.config for level in levels.values() if level.config), self.config)
        assert own is not None  # load_study checks
        names = _names(levels)
        return re.sub(r"\{(.*?)\}", lambda found: names[found[1]], own)


def _combinations(factors: Sequence[Factor]) -> list[_Combination]:
    names = [factor.name for factor in factors]
    return [
        dict(zip(names, levels, strict=True))
        for levels in itertools.product(*(factor.levels for factor in factors))
    ]


def _names(levels: _Combination) -> Condition:
    return {factor: level.name for factor, level in levels.items()}


def _options(levels: _Combination) -> dict[str, str]:
    return {key: value for level in levels.values() for key, value in level.options.items()}


def _pairs(options: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(itertools.chain.from_iterable(options.items()))


def folder_name(names: Iterable[str]) -> str:
    """The folder of a combination of levels."""
    return "__".join(map(_slug, names))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.+-]+", "_", name.lower()).strip("_.")


def load_study(path: str) -> Study:
    """Read a study's YAML (docs/studies.md says what it may hold).

    The file is data: no tag of YAML's can make an object, and no value can become an option of a
    command line.

    Raises:
        ConfigError, DataError: one line that names the file and the key.
    """
    return _Reader(path).study()


class _NoDuplicates(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error: its first value would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        mapping = super().construct_mapping(node, deep)
        seen: set[Hashable] = set()
        for key_node in own:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return mapping


class _Reader:
    """Checks a study's YAML key by key."""

    def __init__(self, path: str) -> None:
        self._path = path

    def study(self) -> Study:
        content = self._mapping("", self._load())
        known = {
            "name", "title", "note", "config", "options", "factors", "evaluate", "seeds",
            "metrics", "baseline", "num_gpus", "hours",
        }  # fmt: skip
        for key in content:
            if key not in known:
                raise self._wrong(
                    key, f"is no key of a study; there are {', '.join(sorted(known))}"
                )
        for key in ("seeds", "metrics"):
            if key not in content:
                raise self._wrong(key, "is missing; add it")
        factors = self._factors("factors", content.get("factors"))
        evaluate = self._factors("evaluate", content.get("evaluate"))
        self._check_factors(factors, evaluate)
        config = content.get("config")
        study = Study(
            source=self._path,
            name=self._text("name", content.get("name", Path(self._path).stem)),
            title=self._text("title", content.get("title", Path(self._path).stem)),
            note=self._text("note", content.get("note", "")),
            config=None if config is None else self._config_file("config", config),
            options=self._options("options", self._mapping("options", content.get("options"))),
            factors=factors,
            evaluate=evaluate,
            seeds=self._seeds(content["seeds"]),
            metrics=self._metrics(content["metrics"]),
            baseline=self._baseline(content.get("baseline"), (*factors, *evaluate)),
            num_gpus=self._num_gpus(content.get("num_gpus", 1)),
            hours=self._hours(content.get("hours")),
        )
        self._check_size(study)
        self._check_configs(study)
        return study

    def _wrong(self, key: str, what: str) -> ConfigError:
        return ConfigError(f"{self._path}: {key} {what}")

    def _load(self) -> Any:
        refuse_special_file(self._path)
        try:
            with open(self._path, encoding="utf-8") as file:
                return yaml.load(file, _NoDuplicates)  # a SafeLoader
        except FileNotFoundError:
            raise DataError(f"{self._path}: no such file; see the folder studies") from None
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{self._path}: not valid YAML ({reason}); correct it") from None
        except (RecursionError, TypeError):
            raise DataError(f"{self._path}: not the YAML of a study; correct it") from None

    def _mapping(self, key: str, value: Any) -> dict[Any, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._wrong(key or "the file", "must hold KEY: VALUE pairs")
        return value

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self._wrong(key, f"is {_shown(value)}; give text")
        return value.strip()

    def _config_file(self, key: str, value: Any) -> str:
        config = self._text(key, value)
        if not config:
            raise self._wrong(key, "is empty; name a config file")
        return config

    def _name(self, key: str, value: Any) -> str:
        """A factor's or level's name: text or a number."""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._wrong(
                key, f"has the name {_shown(value)}; give text in quotes, or a number"
            )
        name = str(value).strip()
        if not _slug(name):
            raise self._wrong(key, f"has the name {name!r}; give it a letter or a digit")
        return name

    def _factors(self, key: str, value: Any) -> tuple[Factor, ...]:
        factors = []
        for given, levels in self._mapping(key, value).items():
            name = self._name(key, given)
            place = f"{key}.{name}"
            if isinstance(levels, list):
                levels = {self._name(place, level): None for level in levels}
            read = tuple(
                self._level(place, level, settings)
                for level, settings in self._mapping(place, levels).items()
            )
            if not read:
                raise self._wrong(place, "has no level; give at least one")
            by_folder: dict[str, str] = {}
            for level in read:
                other = by_folder.setdefault(_slug(level.name), level.name)
                if other is not level.name:
                    raise self._wrong(
                        place,
                        f"has the levels {other!r} and {level.name!r}, whose folders would have "
                        "one name; change one",
                    )
            factors.append(Factor(name, read))
        return tuple(factors)

    def _level(self, place: str, given: Any, value: Any) -> Level:
        name = self._name(place, given)
        place = f"{place}.{name}"
        settings = dict(self._mapping(place, value))
        config = settings.pop("config", None)
        if config is not None:
            config = self._config_file(f"{place}.config", config)
        return Level(name, config, self._options(place, settings))

    def _options(self, place: str, settings: Mapping[Any, Any]) -> dict[str, str]:
        options = {}
        for key, value in settings.items():
            where = f"{place}.{key}"
            if not isinstance(key, str) or not _CONFIG_KEY.fullmatch(key):
                raise self._wrong(where, "is no config key, such as SOLVER.MAX_ITER")
            if key in _OWN_KEYS:
                raise self._wrong(where, "is set by the study for each run; take it out")
            options[key] = self._value(where, value)
        return options

    def _value(self, where: str, value: Any) -> str:
        """A config value as train_net's command line has it."""
        if isinstance(value, dict):
            raise self._wrong(
                where, "has keys under it; write whole keys, as MODEL.CONTRASTIVE.TEMPERATURE: 0.1"
            )
        if not isinstance(value, list):
            if value is not None and not isinstance(value, str | bool | int | float):
                raise self._wrong(where, f"is {_shown(value)}; give text, a number or a list")
            return str(value)
        # Anchors of YAML's can make few lines a list that no memory holds.
        left = _MAX_ENTRIES
        waiting = [value]
        while waiting:
            entries = waiting.pop()
            left -= len(entries)
            if left < 0:
                raise self._wrong(where, f"has more than {_MAX_ENTRIES} entries; shorten it")
            waiting += [entry for entry in entries if isinstance(entry, list)]
            if any(isinstance(entry, dict) for entry in entries):
                raise self._wrong(where, "has KEY: VALUE pairs in a list; give text or numbers")
        return str(value)

    def _seeds(self, value: Any) -> tuple[int, ...]:
        if not isinstance(value, list) or not value:
            raise self._wrong("seeds", "must be a list, such as [1, 2, 3]")
        for seed in value:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
                raise self._wrong("seeds", f"has {_shown(seed)}; give whole numbers from 0")
        if len(set(value)) < len(value):
            raise self._wrong("seeds", "has a seed twice; take it out")
        return tuple(value)

    def _metrics(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise self._wrong("metrics", 'must be a list, such as ["vid/AP50"]')
        for name in value:
            if not isinstance(name, str) or "/" not in name:
                raise self._wrong("metrics", f'has {_shown(name)}; write it as "vid/AP50"')
        if len(set(value)) < len(value):
            raise self._wrong("metrics", "has one twice; take it out")
        return tuple(value)

    def _baseline(self, value: Any, factors: tuple[Factor, ...]) -> Condition:
        baseline = {}
        names = {factor.name: [level.name for level in factor.levels] for factor in factors}
        for given, level in self._mapping("baseline", value).items():
            factor = self._name("baseline", given)
            if factor not in names:
                raise self._wrong(
                    f"baseline.{factor}", f"is no factor; there are {', '.join(names) or 'none'}"
                )
            name = self._name(f"baseline.{factor}", level)
            if name not in names[factor]:
                raise self._wrong(
                    f"baseline.{factor}",
                    f"is {name!r}, no level of it; there are {', '.join(names[factor])}",
                )
            baseline[factor] = name
        return baseline

    def _num_gpus(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._wrong("num_gpus", f"is {_shown(value)}; give a whole number from 1")
        return value

    def _hours(self, value: Any) -> dict[str, float]:
        hours = self._mapping("hours", value)
        for kind, number in hours.items():
            if kind not in ("training", "evaluation"):
                raise self._wrong(f"hours.{kind}", "is neither training nor evaluation")
            right = isinstance(number, int | float) and not isinstance(number, bool)
            if not right or not 0 < number < math.inf:
                raise self._wrong(f"hours.{kind}", f"is {_shown(number)}; give a number over 0")
        return {kind: float(number) for kind, number in hours.items()}

    def _check_factors(self, factors: tuple[Factor, ...], evaluate: tuple[Factor, ...]) -> None:
        for group, members in (("factors", factors), ("evaluate", evaluate)):
            set_by: dict[str, str] = {}
            for factor in members:
                keys = {key for level in factor.levels for key in level.options}
                if any(level.config is not None for level in factor.levels):
                    keys.add("config")
                for key in sorted(keys):
                    other = set_by.setdefault(key, factor.name)
                    if other != factor.name:
                        raise self._wrong(
                            f"{group}.{factor.name}",
                            f"sets {key} as {group}.{other} does; one would undo the other: make "
                            "them one factor",
                        )
        trained = {factor.name for factor in factors}
        for factor in evaluate:
            if factor.name in trained:
                raise self._wrong(f"evaluate.{factor.name}", "is a factor already; rename it")
            for level in factor.levels:
                if level.config is not None:
                    raise self._wrong(
                        f"evaluate.{factor.name}.{level.name}.config",
                        "can't be: an evaluation has its training's config; give config keys",
                    )

    def _check_size(self, study: Study) -> None:
        factors = (*study.factors, *study.evaluate)
        number = len(study.seeds) * math.prod(len(factor.levels) for factor in factors)
        if number > MAX_RUNS:
            raise self._wrong("factors", f"and seeds make {number} runs; {MAX_RUNS} are the most")

    def _check_configs(self, study: Study) -> None:
        names = [factor.name for factor in study.factors]
        places = {"config": study.config} | {
            f"factors.{factor.name}.{level.name}.config": level.config
            for factor in study.factors
            for level in factor.levels
        }
        for place, config in places.items():
            for field in re.findall(r"\{(.*?)\}", config or ""):
                if field not in names:
                    raise self._wrong(
                        place, f"has {{{field}}}, no factor; there are {', '.join(names) or 'none'}"
                    )
        for levels in _combinations(study.factors):
            if study.config is None and not any(level.config for level in levels.values()):
                where = ", ".join(_names(levels).values()) or "the runs"
                raise self._wrong("config", f"is missing, and {where} name(s) none; add it")


def _shown(value: Any) -> str:
    """A wrong value, shortened: it may be anything, of any size."""
    if isinstance(value, dict | list | set):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
