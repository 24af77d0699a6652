"""a03's loop: thawing, sizes, a time budget, patience, precision, and going on after a stop."""

import contextlib
import inspect
import io
import itertools
import math
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import a03_train_m2det as a03
from models import load_model
from tests.helpers.project import refused
from tests.helpers.runs import assert_same_training, history, in_folder, state_of
from training import batches, callbacks, checkpoints, loop, parts, plan
from training.schedule import COSINE_END, Schedule


@contextlib.contextmanager
def after_each_epoch(do):
    """Calls `do(end, network weights by path)` when the checkpoint of an epoch is written."""
    usual = callbacks.EpochEnd.finish_epoch

    def finish_epoch(self, *arguments):
        usual(self, *arguments)
        do(self, {weight.path: np.array(weight) for weight in self.trainer.network.weights})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.EpochEnd, "finish_epoch", finish_epoch)
        yield


# === A backbone that thaws ===========================================================================================
@pytest.fixture(scope="module")
def thawed(trained, tmp_path_factory):
    """Three epochs, the first with a frozen backbone; the weights and the run's folder after each epoch."""
    changes = {"run": "whole", "epochs": 3, "freeze_backbone_epochs": 1, "accumulate": 2}
    flags, folder = in_folder(trained, tmp_path_factory.mktemp("thawed"), **changes, init_from=str(trained.folder))
    seen = []

    def keep(end, weights):
        seen.append(weights)
        shutil.copytree(end.run, folder.with_name(f"after_{len(seen)}"))

    with after_each_epoch(keep):
        a03.main(**flags)
    return SimpleNamespace(flags=flags, runs=folder.parent, seen=seen)


def test_the_backbone_keeps_its_weights_until_it_thaws(thawed, trained):
    start = {weight.path: np.array(weight) for weight in load_model(trained.folder).model.weights}
    backbone = {path for path in start if path.split("_")[0].split("/")[-1] in ("first", "shallow", "deep")}
    assert len(backbone) >= 15  # three convolutions with batch norm, moving statistics included
    first, second = thawed.seen[:2]
    others = {path for path in first if path.endswith("kernel")} - backbone
    assert {path for path in first if np.any(first[path] != start[path])} & (backbone | others) == others
    assert all(np.any(second[path] != first[path]) for path in backbone)


def test_the_rate_goes_on_when_a_new_optimizer_begins(thawed):
    schedule = Schedule(peak=2e-4, steps=9, warm_up=1)
    found = [float(row["learning_rate"]) for row in history(thawed.runs / "whole")]
    np.testing.assert_allclose(found, [float(schedule(step)) for step in (3, 6, 9)], rtol=1e-4)


@pytest.mark.parametrize("done", [1, 2], ids=["stopped where it thaws", "stopped after the thaw"])
def test_a_thawing_training_goes_on_exactly(thawed, done, capsys):
    flags = thawed.flags | {"run": f"after_{done}"}
    a03.main(**flags)
    assert f"going on after epoch {done} of 3" in capsys.readouterr().out
    assert_same_training(thawed.runs / "whole", thawed.runs / flags["run"])


# === Several sizes, SGD with the paper's steps, no label rules, measured every second epoch, TensorBoard =============
@pytest.fixture(scope="module")
def scaled(trained, tmp_path_factory):
    """Seven epochs of two steps, at two sizes."""
    changes = {"multi_scale": (64,), "epochs": 7, "steps_per_epoch": 2, "seed": 1, "optimizer": "sgd"}
    changes |= {"schedule": "steps", "learning_rate": 0.01, "clip_norm": 1.0, "ema": False}
    changes |= {"validate_every": 2, "label_rules": ("none",), "tensorboard": True}
    flags, folder = in_folder(trained, tmp_path_factory.mktemp("scaled"), **changes)
    sizes, targets, weights = {}, [], []
    pure = batches.Batches.batch

    def batch(self, step, image_size=None):
        sizes[step] = image_size
        made = pure(self, step, image_size)
        targets.append(set(made[1]))
        return made

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(batches.Batches, "batch", batch)
        with after_each_epoch(lambda end, values: weights.append(values)):
            a03.main(**flags)
    return SimpleNamespace(folder=folder, sizes=sizes, targets=targets, weights=weights, printed=printed.getvalue())


def test_each_epoch_has_one_size_and_the_last_epochs_the_usual_size(scaled):
    expected = [loop.size_of(epoch, (96, 64), total=7, seed=1) for epoch in range(7)]
    assert {step // 2: size for step, size in sorted(scaled.sizes.items()) if step < 14} == dict(enumerate(expected))
    assert set(expected) == {96, 64}
    assert expected[-1] == 96
    for before, after in itertools.pairwise(scaled.weights):  # at either size all weights learn
        kernels = [path for path in after if path.endswith("kernel")]
        assert np.mean([np.any(after[path] != before[path]) for path in kernels]) > 0.9
    assert all(math.isfinite(float(row["loss"])) for row in history(scaled.folder))


def test_sizes_are_drawn_evenly_and_closed_at_the_end():
    sizes = (320, 256, 384)
    drawn = [loop.size_of(epoch, sizes, total=1000, seed=3) for epoch in range(1000)]
    assert set(drawn[850:]) == {320}
    shares = [drawn[:850].count(size) / 850 for size in sizes]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.06)
    assert drawn[:850] != [loop.size_of(epoch, sizes, total=1000, seed=4) for epoch in range(850)]
    assert {loop.size_of(epoch, (320,), total=10, seed=0) for epoch in range(10)} == {320}


def test_validation_runs_every_second_epoch_and_after_the_last(scaled):
    measured = [int(row["epoch"]) for row in history(scaled.folder) if row["mAP"]]
    assert measured == [2, 4, 6, 7]
    lines = [line for line in scaled.printed.splitlines() if line.startswith("epoch ")]
    assert ["mAP" in line for line in lines] == [False, True, False, True, False, True, True]


def test_the_step_schedule_reaches_the_optimizer(scaled):
    """14 steps: a tenth from step 9 (60 %) on, again from 12 (80 %); a row has the rate of the next step."""
    found = [float(row["learning_rate"]) for row in history(scaled.folder)]
    np.testing.assert_allclose(found, [1e-2] * 4 + [1e-3] + [1e-4] * 2, rtol=1e-4)


def test_without_label_rules_the_targets_have_boxes_only(scaled):
    assert "label rules: none" in scaled.printed.splitlines()
    assert all(names == {"boxes", "labels"} for names in scaled.targets)


def test_tensorboard_has_the_numbers_of_the_history(scaled):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(scaled.folder / "tensorboard"))
    events.Reload()
    rows = history(scaled.folder)
    for name in set(rows[0]) - {"epoch"}:
        is_tensor = name in events.Tags()["tensors"]
        found = events.Tensors(name) if is_tensor else events.Scalars(name)
        values = [float(make_ndarray(event.tensor_proto)) if is_tensor else event.value for event in found]
        expected = [(int(row["epoch"]), float(row[name])) for row in rows if row[name] != ""]
        assert [event.step for event in found] == [step for step, _ in expected], name
        np.testing.assert_allclose(values, [value for _, value in expected], rtol=1e-5, err_msg=name)


# === bfloat16 ========================================================================================================
def test_a_training_in_bfloat16_saves_a_float32_model_that_finds_the_same(trained, tmp_path, monkeypatch):
    from a04_inference import main as infer

    changes = {"run": "mixed", "precision": "bfloat16", "ema": False, "epochs": 1, "multi_scale": (64,), "seed": 5}
    flags, folder = in_folder(trained, tmp_path, **changes)
    networks, usual = [], loop.run

    def run(trainer, *others, **options):
        networks.extend(view() for view, _ in trainer._views.values())
        return usual(trainer, *others, **options)

    monkeypatch.setattr(loop, "run", run)
    a03.main(**flags)
    network = networks[0]
    for model in networks:  # at the other size, too
        inner = [layer for layer in model._flatten_layers() if layer.name.endswith(("_conv", "_relu"))]
        assert {layer.dtype_policy.name for layer in inner} == {"mixed_bfloat16"}
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in network.weights} <= {"float32", "uint32"}
    detector = load_model(folder)
    layers = list(detector.model._flatten_layers(include_self=False))
    assert {layer.dtype_policy.name for layer in layers} == {"float32"}
    saved = {weight.path: np.asarray(weight) for weight in detector.model.weights}
    for weight in network.trainable_weights:
        np.testing.assert_array_equal(np.asarray(weight), saved[weight.path])

    picture = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3)).astype("uint8")
    mixed = network(picture, training=False)
    exact = keras.Model(detector.model.input, detector.model.get_layer("top_boxes").input)(picture, training=False)
    for name, value in zip(sorted(mixed), exact, strict=True):  # Keras flattens a dict in this order
        a, b = (keras.ops.convert_to_numpy(keras.ops.cast(found, "float32")) for found in (mixed[name], value))
        assert np.abs(a - b).mean() < 0.02 * np.abs(b).mean() + 0.01
    infer(dataset_path=str(trained.data_set), output_path=str(tmp_path), run=("mixed",), score_threshold=0.0)
    assert list((tmp_path / "predictions").rglob("*.csv"))


# === A time budget, on a clock that counts steps =====================================================================
class Clock:
    """A step takes `step` seconds, a validation a fifth, and nothing else takes time."""

    def __init__(self, patch, scores=()):
        self.now, self.step, self.trained = 1000.0, 1.0, 0
        self.scores = list(scores)
        for module in (a03, loop, callbacks):
            patch.setattr(module, "time", SimpleNamespace(monotonic=self.read, perf_counter=self.read))
        patch.setattr(loop, "STEPS_TO_WARM", 1)
        patch.setattr(loop, "STEPS_TO_MEASURE", 4)
        patch.setattr(plan, "SHORTEST", 4)
        for callback in (loop._StepTimes, callbacks.FiniteLossGuard):
            patch.setattr(callback, "on_train_batch_end", self.ticking(callback.on_train_batch_end))
        patch.setattr("training.parts.make_validation", lambda *arguments, **options: self.validate)

    def read(self) -> float:
        return self.now

    def ticking(self, usual):
        def on_train_batch_end(callback, batch, logs=None):
            self.now += self.step
            self.trained += isinstance(callback, callbacks.FiniteLossGuard)
            usual(callback, batch, logs)

        return on_train_batch_end

    def validate(self, detector) -> float:
        self.now += 0.2
        return self.scores.pop(0) if self.scores else 0.5


BUDGET = {"epochs": None, "steps_per_epoch": None, "time_budget": "1m", "image_size": 64, "scales": 1, "mosaic": 0.0}


@pytest.fixture(scope="module")
def budgeted(trained, tmp_path_factory):
    """A minute; after two epochs a step takes half as long again, and after the fourth the process is killed."""
    flags, folder = in_folder(trained, tmp_path_factory.mktemp("budgeted"), **BUDGET)
    printed = [io.StringIO(), io.StringIO()]
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        begin = clock.now

        def after(end, weights):
            clock.step = 1.5 if end.state["epochs"] >= 2 else 1.0
            if end.state["epochs"] == 4 and not printed[1].getvalue():
                raise KeyboardInterrupt

        with after_each_epoch(after), contextlib.redirect_stdout(printed[0]), pytest.raises(KeyboardInterrupt):
            a03.main(**flags)
        stopped = state_of(folder)
        with contextlib.redirect_stdout(printed[1]):
            a03.main(**flags)
        seconds, steps = clock.now - begin, clock.trained
        a03.main(**flags)
        assert clock.trained == steps  # it is finished
    texts = [text.getvalue() for text in printed]
    return SimpleNamespace(folder=folder, stopped=stopped, seconds=seconds, steps=steps, printed=texts)


def test_a_budget_gives_a_plan_and_prints_it(budgeted):
    """Three steps, after which 3 % of a minute are over, and two validations take 3.4 s."""
    (line,) = [line for line in budgeted.printed[0].splitlines() if "--time_budget" in line]
    assert line == (
        "chosen: 13 epochs of 4 steps for --time_budget 1m, 17 passes: "
        "a step takes 1.000 s (4.0 images/s), measuring the mAP 0.2 s"
    )


def test_a_budget_ends_in_time_though_steps_became_slower_and_it_was_stopped(budgeted):
    done, rows = state_of(budgeted.folder), history(budgeted.folder)
    assert done["epochs"] == done["total"] == len(rows) < 13
    assert budgeted.steps == 4 * done["total"]
    assert 60 - 6.2 < budgeted.seconds <= 60  # another epoch would have been too long
    assert "epochs instead of 13" in budgeted.printed[0]
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates[-1] == pytest.approx(2e-3 * COSINE_END, rel=1e-3)  # though the end was moved
    assert all(after < before for before, after in itertools.pairwise(rates))


def test_a_budgeted_run_goes_on_with_its_plan(budgeted):
    assert budgeted.stopped["epochs"] == 4
    assert f"going on after epoch 4 of {budgeted.stopped['total']}" in budgeted.printed[1]
    assert not any("chosen: " in line and "budget" in line for line in budgeted.printed[1].splitlines())
    assert state_of(budgeted.folder)["steps"] == budgeted.stopped["steps"] == 4


def test_patience_ends_a_training_for_good(trained, tmp_path, monkeypatch, capsys):
    changes = {"epochs": 8, "steps_per_epoch": 1, "patience": 2, "image_size": 64, "scales": 1}
    flags, folder = in_folder(trained, tmp_path, **changes)
    clock = Clock(monkeypatch, scores=[0.125, 0.5, 0.5, 0.25, 0.75])
    a03.main(**flags)
    assert [float(row["mAP"]) for row in history(folder)] == [0.125, 0.5, 0.5, 0.25]
    sentence = f"{folder}: 4 epochs on level 1, best mAP 0.5000; stopped: no better mAP in 2 measurements"
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == sentence
    assert " 0.0 images/s" not in printed
    a03.main(**flags)
    assert capsys.readouterr().out.splitlines()[-1] == sentence
    assert clock.trained == 4
    speeds = [row["images_per_second"] for row in history(folder)]
    assert speeds == ["", "4.0", "4.0", "4.0"]  # the step that builds the graph is no measure, and it is the only one
    a03.main(**flags | {"patience": 3})  # which may change
    assert len(history(folder)) == 8


@pytest.mark.parametrize("step", [8, 10], ids=["between two epochs", "in the middle of one"])
def test_a_resumed_run_without_time_left_ends_with_its_best_model(trained, tmp_path, monkeypatch, capsys, step):
    """Epochs of four steps, of which every third is measured; starting again takes longer than what is left."""
    changes = BUDGET | {"checkpoint_steps": 1, "validate_every": 3, "patience": 9}
    flags, folder = in_folder(trained, tmp_path, **changes)
    clock, start = Clock(monkeypatch), parts.training_data
    usual = callbacks.Saver.save

    def save_and_stop(saver, best_model=None):
        usual(saver, best_model)
        if saver.state["step"] == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Saver, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            a03.main(**flags)
    stopped = checkpoints.find_checkpoint(folder)[1]
    assert (stopped["step"], stopped["epochs"]) == (step, 2)
    begun = step > 8

    def slow_start(flags):
        clock.now += 60
        return start(flags)

    monkeypatch.setattr(parts, "training_data", slow_start)
    capsys.readouterr()
    a03.main(**flags)
    printed = capsys.readouterr().out
    assert f"the time is over: the training ends after step {step} of " in printed
    rows, state = history(folder), state_of(folder)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"][: 2 + begun]
    assert [row["mAP"] for row in rows] == ["", "", "0.5"][-2 - begun :]  # what was not measured is, at the end
    assert (state["step"], state["epochs"], state["total"]) == (step, len(rows), len(rows))
    assert (state["best"], load_model(folder).settings["image_size"]) == (0.5, 64)
    a03.main(**flags)
    assert "is finished: " in capsys.readouterr().out.splitlines()[-1]


def test_a_budget_that_is_too_short_is_one_sentence(trained, tmp_path, monkeypatch):
    flags, folder = in_folder(trained, tmp_path, **BUDGET | {"time_budget": "1s"})
    Clock(monkeypatch)
    with refused("--time_budget leaves 0 s after the start, and 4 steps"):
        a03.main(**flags)
    assert not folder.exists()


# === The plan, without a network =====================================================================================
FLAGS = {name: parameter.default for name, parameter in inspect.signature(a03.main).parameters.items()}
FLAGS |= {"epochs": None, "time_budget": "20m", "workers": 2}


class SlowTrainer:
    """Its first step takes `build` seconds more than the others, and each changes its only weight."""

    sizes = (64,)
    stop_training = False

    def __init__(self, clock, *, step: float, build: float):
        self.clock, self.step, self.build, self.steps = clock, step, build, 0
        self.weight = keras.Variable([1.0, 2.0])
        self.variables, self.optimizer = [self.weight], SimpleNamespace(variables=[])

    def fit(self, sequence, *, steps_per_epoch, callbacks, **options):
        for callback in callbacks:
            callback.set_model(self)
        while self.steps < steps_per_epoch and not self.stop_training:
            self.clock.now += self.step + self.build * (self.steps == 0)
            self.weight.assign_add([1.0, 1.0])
            self.steps += 1
            for callback in callbacks:
                callback.on_train_batch_end(self.steps, {"loss": 1.0})


class SlowEnd:
    """Its first measurement takes `reading` seconds more, and whatever is looked at first compiles for `build`."""

    def __init__(self, clock, *, validation: float, reading: float = 0.0, build: float = 0.0):
        self.clock, self.seconds, self.reading, self.build, self.measured = clock, validation, reading, build, 0
        self.state, self.measuring, self.batch_size = {"steps": 0}, [], 8
        self.saver = SimpleNamespace(guard=SimpleNamespace(last_good=""))
        self.detector = SimpleNamespace(settings={"image_size": 64}, detect=self.detect)

    def detect(self, pictures, *, sizes):
        assert pictures.shape == (len(sizes), 64, 64, 3)
        self.clock.now += self.build
        self.build = 0.0

    def validate(self, detector) -> float:
        self.clock.now += self.seconds + self.build + self.reading * (self.measured == 0)
        self.build = 0.0
        self.measured += 1
        return 0.5


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(now=0.0)
    read = SimpleNamespace(monotonic=lambda: now.now, perf_counter=lambda: now.now)
    monkeypatch.setattr(loop, "time", read)
    monkeypatch.setattr(callbacks, "time", read)
    return now


@pytest.mark.parametrize(
    ("step", "steps", "validation", "times"), [(0.125, 36, 2.0, 2), (6.75, 1 + 6, 400.0, 1), (100.0, 3, 0.0, 2)]
)
def test_measuring_for_a_budget_has_a_bound_and_changes_nothing(clock, step, steps, validation, times):
    """3 % of 20 minutes are 36 s. What building and compiling takes is not taken for steps or measurements."""
    trainer = SlowTrainer(clock, step=step, build=50.0)
    end = SlowEnd(clock, validation=validation, reading=1.0, build=60.0)
    build, found, measuring = loop.measure(trainer, batches_of(100), end, workers=2, seconds=36.0)
    assert (trainer.steps, end.measured) == (steps, times)
    assert (build, found) == (pytest.approx(50), pytest.approx(step))
    assert measuring == pytest.approx(validation + (times == 1))
    assert end.measuring == [measuring]
    np.testing.assert_array_equal(np.array(trainer.weight), [1, 2])


def batches_of(images: int):
    return SimpleNamespace(data=range(images), batch_size=8, close_at=0)


@pytest.fixture
def planned(clock, monkeypatch):
    """Plans 20 minutes in which a step takes a second and building 50 s; what was done before, and the state."""
    done = []

    def plan_with(flags: dict, validation: float = 0.0) -> dict:
        def measure(*arguments, **options):
            done.append("measured")
            return 50.0, 1.0, validation

        monkeypatch.setattr(loop, "measure", measure)
        monkeypatch.setattr(loop, "compile_for", lambda *arguments, epoch, **options: done.append(f"epoch {epoch}"))
        end = SlowEnd(clock, validation=0.0)
        settings = {"training": {"batch_size": 8, "learning_rate": 0.1}, "backbone": "tiny"}
        loop.plan_length(FLAGS | flags, settings, None, batches_of(100), end, clock.now + 1200)
        return end.state

    return SimpleNamespace(with_flags=plan_with, done=done)


def test_a_plan_measures_the_steps_after_the_thaw_and_builds_twice(planned):
    frozen = planned.with_flags({"freeze_backbone_epochs": 3})
    never = planned.with_flags({})
    assert planned.done == ["epoch 3", "measured", "measured"]
    for state, seconds in ((frozen, 1100), (never, 1150)):
        assert 0.95 * seconds < state["total"] * state["steps"] <= seconds


def test_a_plan_that_is_too_short_for_its_flags_is_refused(planned):
    with refused("--freeze_backbone_epochs 30 in a training of 30 epochs would never thaw"):
        planned.with_flags({"freeze_backbone_epochs": 30})


@pytest.mark.parametrize(
    ("validation", "every", "said"), [(200.0, 1, True), (200.0, 5, True), (50.0, 1, False), (10.0, 1, False)]
)
def test_slow_validation_gives_a_hint(planned, capsys, validation, every, said):
    """Of 1,127 s: 200 s are more than a tenth however seldom they are, twice 50 s are less."""
    state = planned.with_flags({"validate_every": every}, validation)
    assert ("fewer images by --validation_images take less" in capsys.readouterr().out) == said
    measured = math.ceil(state["total"] / every)
    assert 0.95 * 1127 < state["total"] * state["steps"] + measured * validation <= 1127


# === When the end moves ==============================================================================================
class Epochs:
    """A training with a deadline, of which only the time of its epochs is real."""

    def __init__(self, clock, patch, *, total: int, steps: int = 10, deadline: float, every: int = 1, frozen: int = 0):
        patch.setattr(callbacks, "_Interruptible", lambda *arguments: None)
        patch.setattr(callbacks.detector, "inference_model", lambda *arguments: None)
        self.clock, self.deadline, self.moves = clock, clock.now + deadline, []
        self.flags = FLAGS | {"freeze_backbone_epochs": frozen}
        state = checkpoints.new_state() | {"total": total, "steps": steps}
        self.trainer = SimpleNamespace(network=None, schedule=Schedule(peak=1.0, steps=total * steps))
        saver = SimpleNamespace(run=None, trainer=self.trainer, state=state, stop=None, cost=0.0)
        self.end = callbacks.EpochEnd(saver, {}, validate=lambda detector: 0.0, batch_size=1, validate_every=every)
        self.state = state

    def train(self, *, step: float, validation: float = 0.0) -> None:
        """An epoch, and what `EpochEnd` takes from it."""
        state, end = self.state, self.end
        end.begin_steps(builds=False)
        for number in range(state["steps"]):
            self.clock.now += step
            state["step"] += 1
            end.on_train_batch_end(number)
        state["epochs"] += 1
        if state["epochs"] in (state["total"],) or state["epochs"] % end.validate_every == 0:
            self.clock.now += validation
            end.measuring.append(validation)
        end._costs.append(end._seconds_of_a_step() * state["steps"])
        if loop._keep_to(self.deadline, self.trainer, end, self.flags, state["epochs"]):
            self.moves.append(state["total"])


def test_validation_time_is_shared_among_epochs(clock, monkeypatch):
    """Ten epochs of 10 s and four measurements of 30 s, 220 s, fit into 223 s: nothing is moved on the way."""
    training = Epochs(clock, monkeypatch, total=10, deadline=223.0, every=3)
    training.end.measuring.append(30.0)  # by the plan
    while training.state["epochs"] < training.state["total"]:
        training.train(step=1.0, validation=30.0)
    assert (training.state["total"], training.moves) == (10, [])
    assert clock.now == 220
    assert training.end.seconds_per_epoch == pytest.approx(10)
    assert training.end.seconds_to_measure == pytest.approx(30)


def test_multi_scale_stays_off_when_the_budget_grows(clock, monkeypatch):
    """After 17 of 20 epochs only the usual size is left; then there is time for many more."""
    training = Epochs(clock, monkeypatch, total=20, deadline=203.0)
    for _ in range(17):
        training.train(step=1.0)
    assert training.moves == []
    training.deadline += 300
    training.train(step=1.0)
    state = training.state
    assert state["total"] > 40
    assert loop.close_at(state) == 170 <= state["step"]
    sizes = {loop.size_of(epoch, (96, 64), total=loop.planned_at_closing(state), seed=0) for epoch in range(18, 40)}
    assert sizes == {96}


def test_with_a_frozen_backbone_the_end_only_moves_earlier(clock, monkeypatch):
    training = Epochs(clock, monkeypatch, total=20, deadline=400.0, frozen=2)
    training.train(step=1.0)
    training.train(step=1.0)
    assert training.moves == []  # though twice as many would fit
    training.end.forget_costs()
    training.train(step=2.5)
    assert training.end.seconds_per_epoch == pytest.approx(25)
    assert training.moves == [int(3 + 355 * 0.99 // 25)]
    slow = Epochs(clock, monkeypatch, total=20, deadline=400.0, frozen=2)
    slow.train(step=4.0)
    assert slow.moves == [int(1 + 360 * 0.99 // 40)]
