"""Recipes, one model, the same samples -> RecipeComparison: which method gives what for which energy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

import torch

from ._capture import capture
from ._convert import Sited, check_inputs, peek, place_sites
from ._correct import as_asked, until
from ._evaluate import Evaluation, LabelledBatch, samples_first
from ._model import SpikingModel
from .calibration import Observed, measured, observe
from .energy import EnergySheet, PriceTable, paper_account
from .errors import ConfigError, DataError, PlanError, TranspikeError
from .measure import Agreement, Tally
from .policy import Policy
from .recipes import Recipe, recipe_named

Failed = Callable[[str, TranspikeError], None]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Misfit:
    """A recipe that this model cannot be converted by, and why."""

    recipe: Recipe
    error: TranspikeError


@dataclass(frozen=True)
class Outcome:
    """What one recipe gave, or why it does not fit the model (`error`; then the rest is None).

    `evaluation` and `sheet` hold all steps up to the largest asked; `seconds` is the time its simulation took.
    """

    label: str
    recipe: Recipe
    evaluation: Evaluation | None = None
    sheet: EnergySheet | None = None
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class RecipeComparison:
    """Outcomes in the order asked; `steps` are the numbers of steps to read them at, ascending."""

    steps: tuple[int, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def fitting(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.evaluation is not None)

    @property
    def score(self) -> Agreement:
        """That of the first recipe that fits; the source's part is the same in all of them."""
        return next(outcome.evaluation.score for outcome in self.outcomes if outcome.evaluation is not None)


def compare(
    model: torch.nn.Module,
    calibration: Iterable[Any],
    batches: Iterable[LabelledBatch],
    recipes: Mapping[str, Recipe] | Iterable[str | Recipe],
    *,
    steps: Sequence[int] = (1, 2, 4, 8),
    batch_dim: int = 0,
    max_samples: int | None = 512,
    mode: str = "auto",
    prices: PriceTable | None = None,
    on_failed: Failed | None = None,
) -> RecipeComparison:
    """Convert one model by several recipes with the same calibration samples and evaluate all on the same batches.

    Arguments: calibration -- as for `transpike.convert`; batches -- as for `transpike.evaluate`; recipes -- names,
    recipes, or recipes by label; steps -- the numbers of steps to compare at; on_failed -- told (label, error) of each
    recipe that does not fit. Every network runs max(steps) steps once and is read after each number of steps.
    Raises: PlanError when no recipe fits; what concerns the model or the samples as `convert` and `evaluate` do.
    """
    networks = convert_each(
        model, calibration, recipes, batch_dim=batch_dim, max_samples=max_samples, on_failed=on_failed
    )
    return evaluate_each(networks, batches, steps=steps, mode=mode, prices=prices, on_failed=on_failed)


def by_label(recipes: Mapping[str, Recipe] | Iterable[str | Recipe]) -> dict[str, Recipe]:
    """Recipes under the names that rows will have. Raises ConfigError for none, or two of one name."""
    if isinstance(recipes, Mapping):
        pairs = [(str(label), recipe) for label, recipe in recipes.items()]
    else:
        named = [recipes] if isinstance(recipes, (str, Recipe)) else recipes
        values = [recipe_named(item) if isinstance(item, str) else item for item in named]
        pairs = [(getattr(recipe, "name", ""), recipe) for recipe in values]
    found: dict[str, Recipe] = {}
    for label, recipe in pairs:
        if not isinstance(recipe, Recipe):
            raise ConfigError(f"a recipe must be a name or a Recipe, not {type(recipe).__name__}")
        if label in found:
            raise ConfigError(f"two recipes are called {label!r}; pass a mapping from labels to recipes")
        found[label] = recipe
    if not found:
        raise ConfigError("there is no recipe to compare; name at least one")
    return found


def convert_each(
    model: torch.nn.Module,
    calibration: Iterable[Any],
    recipes: Mapping[str, Recipe] | Iterable[str | Recipe],
    *,
    batch_dim: int = 0,
    max_samples: int | None = 512,
    on_failed: Failed | None = None,
    progress: Progress | None = None,
) -> dict[str, SpikingModel | Misfit]:
    """The network of every recipe, or why it does not fit. The model is captured once, and every placement policy
    watches the calibration samples once for all of its recipes, or for each alone where what one needs is not to be
    had. The samples are kept in memory where there are several recipes, or a correction.

    Arguments: progress -- told samples x policies done.
    """
    check_inputs(model, calibration)
    wanted = by_label(recipes)
    example, calibration = peek(
        [calibration] if isinstance(calibration, (torch.Tensor, Mapping)) else calibration, None
    )
    captured = capture(model, example, batch_dim=batch_dim)
    if len(wanted) > 1 or any(recipe.correction != "none" for recipe in wanted.values()):
        calibration = list(until(captured, calibration, max_samples))
    placed: dict[Policy, Sited] = {}
    together: dict[Policy, Observed | None] = {}  # None: what one recipe needs is not to be had
    networks: dict[str, SpikingModel | Misfit] = {}

    def look(sited: Sited, recipes: Sequence[Recipe]) -> Observed:
        before = sum(seen.samples for seen in together.values() if seen is not None)
        tell = None if progress is None else lambda done: progress(before + done)
        return observe(captured, sited.graph, sited.plan, recipes, calibration, max_samples=max_samples, progress=tell)

    def watched(sited: Sited, recipe: Recipe) -> Observed:
        if recipe.policy not in together:
            alike = [other for other in wanted.values() if other.policy == recipe.policy]
            try:
                together[recipe.policy] = look(sited, alike)
            except TranspikeError:
                if len(alike) == 1:
                    raise
                together[recipe.policy] = None
        return together[recipe.policy] or look(sited, [recipe])

    for label, recipe in wanted.items():
        try:
            if recipe.policy not in placed:
                placed[recipe.policy] = place_sites(model, captured, recipe, example)
            sited = placed[recipe.policy]
            found = measured(sited.plan, recipe, watched(sited, recipe), sited.graph)
            network = sited.network(recipe, found)
            networks[label] = as_asked(network, calibration, max_samples)
        except TranspikeError as error:
            networks[label] = Misfit(recipe, error)
            if on_failed is not None:
                on_failed(label, error)
    _require_one({label: item.error for label, item in networks.items() if isinstance(item, Misfit)}, len(wanted))
    return networks


@dataclass
class _Running:
    label: str
    network: SpikingModel
    score: Agreement
    tally: Tally
    mode: str
    kernel: str = ""
    seconds: float = 0.0
    error: TranspikeError | None = None

    def update(self, batch: LabelledBatch, source: torch.Tensor, labels: torch.Tensor | None, mode: str) -> None:
        started = perf_counter()
        run = self.network.simulate(batch.inputs, self.score.steps, mode=mode)
        self.score.update(source, samples_first(self.network, run.outputs, 1), labels)
        self.tally += run.spikes
        self.mode, self.kernel = run.mode, run.kernel
        self.seconds += perf_counter() - started

    def outcome(self, prices: PriceTable | None) -> Outcome:
        recipe, tally = self.network.recipe, self.tally
        if self.error is not None:
            return Outcome(self.label, recipe, error=_one_line(self.error))
        account = paper_account(tally, self.network.plan, prices)
        evaluation = Evaluation(self.score, tally, account, self.mode, self.kernel)
        return Outcome(self.label, recipe, evaluation, self.network.energy_sheet(tally, prices), self.seconds)


def evaluate_each(
    networks: Mapping[str, SpikingModel | Misfit],
    batches: Iterable[LabelledBatch],
    *,
    steps: Sequence[int] = (1, 2, 4, 8),
    mode: str = "auto",
    prices: PriceTable | None = None,
    on_failed: Failed | None = None,
    progress: Progress | None = None,
) -> RecipeComparison:
    """Run the source once and every network once on each batch, and count.

    Arguments: progress -- told samples x networks done. Raises: DataError for no sample; PlanError when none is left.
    """
    asked = _ascending(steps)
    running = [
        _Running(label, network, Agreement(asked[-1]), Tally(asked[-1]), mode)
        for label, network in networks.items()
        if isinstance(network, SpikingModel)
    ]
    misfits = {label: item for label, item in networks.items() if isinstance(item, Misfit)}
    _require_one({label: item.error for label, item in misfits.items()}, len(networks))
    done = samples = 0
    for batch in batches:
        source = samples_first(running[0].network, running[0].network.source(batch.inputs))
        labels = None if batch.labels is None else batch.labels.to(source.device)
        samples += source.shape[0]
        for one in running:
            if one.error is None:
                try:
                    one.update(batch, source, labels, mode)
                except TranspikeError as error:
                    one.error = error
                    if on_failed is not None:
                        on_failed(one.label, error)
            done += source.shape[0]
            if progress is not None:
                progress(done)
        _require_one({one.label: one.error for one in running if one.error is not None}, len(running))
    if samples == 0:
        raise DataError("there is no sample to evaluate")
    outcomes = {one.label: one.outcome(prices) for one in running}
    outcomes |= {label: Outcome(label, item.recipe, error=_one_line(item.error)) for label, item in misfits.items()}
    return RecipeComparison(asked, tuple(outcomes[label] for label in networks))


def _ascending(steps: Sequence[int]) -> tuple[int, ...]:
    wrong = [t for t in steps if isinstance(t, bool) or not isinstance(t, int) or t < 1]
    if wrong or not steps:
        raise ConfigError(f"steps must be whole numbers of at least 1, not {wrong[0] if wrong else 'none'!r}")
    return tuple(sorted(set(steps)))


def _require_one(errors: Mapping[str, TranspikeError], count: int) -> None:
    """Raise when all of `count` recipes have failed: the one reason, where all have the same."""
    if len(errors) < count:
        return
    reasons = {_one_line(error) for error in errors.values()}
    if len(reasons) == 1:
        raise next(iter(errors.values()))
    named = "; ".join(f"{label}: {_one_line(error)}" for label, error in islice(errors.items(), 5))
    raise PlanError(f"no recipe fits this model ({named})")


def _one_line(error: TranspikeError) -> str:
    return str(error).partition("\n")[0]  # torch.fx adds its own lines to what passes through it
