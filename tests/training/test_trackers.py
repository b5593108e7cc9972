"""Trackers: what reaches TensorBoard, Weights & Biases and MLflow, and that a run outlives them."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest

from contract.errors import ConfigError
from training.trackers import LOG_EVERY, make_trackers, track_run
from training.watch import EpochReport, Silent, StepReport

CONFIG = {"name": "demo", "optimizer": {"name": "muon", "learning_rate": 0.1}}


class Notes(Silent):
    """Remembers what it is told."""

    def __init__(self):
        self.notes, self.steps, self.epochs, self.images = [], [], [], []

    def on_images(self, done, total):
        self.images.append((done, total))

    def on_step(self, report):
        self.steps.append(report.step)

    def on_epoch(self, report):
        self.epochs.append(report.epoch)

    def on_note(self, text):
        self.notes.append(text)


class Record:
    """A tracker that keeps everything, or fails where it is told to."""

    def __init__(self, failing=()):
        self.failing, self.calls, self.values = failing, [], []

    def _call(self, name):
        self.calls.append(name)
        if name in self.failing:
            raise OSError("server away.\nmore")

    def start(self, run, config):
        self._call("start")

    def log(self, values, step):
        self._call("log")
        self.values.append((step, dict(values)))

    def finish(self):
        self._call("finish")


def step(number, steps=20):
    return StepReport(number, steps, 1, 0.5, {"labels/image": 0.25}, 1e-3, 12.0)


EPOCH = EpochReport(
    epoch=1,
    loss=0.75,
    losses={"labels/image": 0.5},
    validation={"image/auroc": 0.7, "score": 0.7},
    rates={"loader": 40.0},
    seconds=3.0,
)
UNVALIDATED = replace(EPOCH, validation={})


def test_steps_are_thinned_and_epochs_are_whole(tmp_path):
    record, watcher = Record(), Notes()
    with track_run(watcher, [record], tmp_path, CONFIG) as tracking:
        tracking.on_images(1, 2)
        for number in range(1, 26):
            tracking.on_step(step(number, 25))
        tracking.on_epoch(EPOCH)
        tracking.on_epoch(UNVALIDATED)
        tracking.on_note("hello")
    steps = [place for place, values in record.values if "training/loss" in values]
    assert steps == [LOG_EVERY, 2 * LOG_EVERY, 25]
    assert record.values[0][1] == {
        "training/loss": 0.5,
        "training/loss/labels/image": 0.25,
        "training/learning_rate": 1e-3,
        "training/studies_per_s": 12.0,
        "training/epoch": 1.0,
    }
    assert record.values[-2] == (
        25,
        {
            "epoch/loss": 0.75,
            "epoch/loss/labels/image": 0.5,
            "epoch/seconds": 3.0,
            "rates/loader": 40.0,
            "validation/image/auroc": 0.7,
            "validation/score": 0.7,
        },
    )
    assert not [name for name in record.values[-1][1] if name.startswith("validation")]
    assert record.calls[-1] == "finish"
    assert watcher.steps == list(range(1, 26))
    assert (watcher.images, watcher.epochs, watcher.notes) == ([(1, 2)], [1, 1], ["hello"])


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(tmp_path):
    broken, whole, watcher = Record({"log"}), Record(), Notes()
    with track_run(watcher, [broken, whole], tmp_path, CONFIG) as tracking:
        tracking.on_step(step(10))
        tracking.on_step(step(20))
    assert broken.calls == ["start", "log"]
    assert len(whole.values) == 2
    assert whole.calls[-1] == "finish"
    assert watcher.notes == ["The tracker Record failed (server away). This tracker is no longer used."]


def test_a_tracker_that_does_not_start_ends_the_run_before_it_begins(tmp_path):
    first, broken = Record(), Record({"start"})
    with (
        pytest.raises(ConfigError, match="Record failed"),
        track_run(Silent(), [first, broken], tmp_path, CONFIG),
    ):
        pytest.fail("the body must not run")
    assert first.calls == ["start", "finish"]


def test_trackers_are_finished_when_training_fails(tmp_path):
    record = Record({"finish"})
    with pytest.raises(KeyboardInterrupt), track_run(Silent(), [record], tmp_path, CONFIG):
        raise KeyboardInterrupt
    assert record.calls == ["start", "finish"]


def test_tensorboard_writes_what_tensorboard_reads(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with track_run(Silent(), make_trackers(["tensorboard"]), tmp_path, CONFIG) as tracking:
        tracking.on_step(step(10))
        tracking.on_epoch(EPOCH)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert "muon" in str(events.Tensors("config/text_summary")[0].tensor_proto.string_val)
    [loss] = events.Scalars("training/loss")
    assert (loss.step, loss.value) == (10, 0.5)
    [score] = events.Scalars("validation/score")
    assert (score.step, round(score.value, 3)) == (10, 0.7)


@pytest.fixture
def fake_wandb(monkeypatch):
    calls = []
    run = SimpleNamespace(
        define_metric=lambda name, step_metric=None: calls.append(("axis", name, step_metric)),
        log=lambda values: calls.append(("log", values)),
        finish=lambda: calls.append(("finish",)),
    )
    module = ModuleType("wandb")
    module.init = lambda **given: calls.append(("init", given)) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return calls


def test_wandb_gets_settings_and_figures_with_a_step_of_their_own(fake_wandb, tmp_path):
    with track_run(Silent(), make_trackers(["wandb"]), tmp_path, CONFIG) as tracking:
        tracking.on_step(step(20))
        tracking.on_step(step(10))  # a smaller one: W&B's own step would drop it
    name, given = fake_wandb[0]
    assert (name, given["name"], given["dir"]) == ("init", tmp_path.name, str(tmp_path))
    assert given["config"] == CONFIG
    assert ("axis", "*", "step") in fake_wandb
    logged = [call[1] for call in fake_wandb if call[0] == "log"]
    assert [values["step"] for values in logged] == [20, 10]
    assert logged[0]["training/loss"] == logged[1]["training/loss"] == 0.5
    assert fake_wandb[-1] == ("finish",)


@pytest.fixture
def fake_mlflow(monkeypatch):
    calls = []
    module = ModuleType("mlflow")
    for name in ("set_experiment", "start_run", "log_params", "log_metrics", "end_run"):
        setattr(module, name, lambda *args, _name=name, **given: calls.append((_name, args, given)))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return calls


def test_mlflow_gets_settings_in_parts_and_figures_at_their_step(fake_mlflow, tmp_path):
    config = {**CONFIG, "model": {f"size_{number}": number for number in range(150)}, "long": "x" * 9000}
    with track_run(Silent(), make_trackers(["mlflow"]), tmp_path, config) as tracking:
        tracking.on_step(step(10))
    params = [args[0] for name, args, _ in fake_mlflow if name == "log_params"]
    assert max(len(part) for part in params) <= 100
    everything = {key: value for part in params for key, value in part.items()}
    assert everything["optimizer.name"] == "muon"
    assert len(everything) == 154
    assert max(len(value) for value in everything.values()) <= 500
    [(values, place)] = [
        (args[0], given["step"]) for name, args, given in fake_mlflow if name == "log_metrics"
    ]
    assert (values["training/loss"], place) == (0.5, 10)
    assert fake_mlflow[-1][0] == "end_run"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_names_its_install_command(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        make_trackers([name])


def test_names_of_trackers():
    assert make_trackers([]) == make_trackers(["none"]) == []
    assert len(make_trackers(["tensorboard", "tensorboard"])) == 1
    with pytest.raises(ConfigError, match="'paper'"):
        make_trackers(["paper"])
    with pytest.raises(ConfigError, match="combined with others"):
        make_trackers(["none", "tensorboard"])
