"""The loop: its gradient, its order, its promises. Tiny real networks, one thread's seconds."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional

from model.errors import DataError, SettingsError, TrainingError
from model.network import Network, create_network, default_input_spec
from training import fine_tuning
from training.augment import shrink
from training.callbacks import AverageWeights, Callback
from training.fine_tuning import (
    body_trainer,
    fine_tune,
    layer_groups,
    train_from_scratch,
)
from training.linear_head import LinearHead
from training.loading import NONE_OF_THEM
from training.loop import Arrays, Trainer, predict_all
from training.loss import class_weights, loss_for, metric, row_weights
from training.mixing import soft_targets
from training.precision import PRECISIONS
from training.progress import ProgressBar
from training.settings import HeadName, TrainingSettings

QUICK = TrainingSettings(
    epochs=2, batch_size=16, precision="fp32", device="cpu", flip=False, shift_share=0.0
)
pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = default_input_spec("small-resnet")
SIXTY = Arrays(np.eye(4, dtype=np.float32)[np.arange(60) % 4], np.arange(60) % 2)  # features


def stripes(count: int, seed: int = 0) -> Arrays:
    """Noisy images with stripes: lying (class 0), standing (class 1) or slanting (class 2)."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, 3, count)
    row, column = np.mgrid[:28, :28]
    patterns = np.stack([row, column, row + column]) // 4 % 2 * 150
    images = patterns[targets] + random.integers(0, 100, (count, 28, 28))
    return Arrays(np.repeat(images[..., None], 3, axis=3).astype(np.uint8), targets)


def hard(count: int, seed: int = 0) -> Arrays:
    """Stripes under so much noise that random features do not show them all."""
    plain = stripes(count, seed)
    noise = np.random.default_rng(seed + 50).normal(0, 300, plain.images.shape)
    noisy = np.clip(plain.images + noise, 0, 255).astype(np.uint8)
    return Arrays(noisy, plain.targets)


def network(seed: int = 0) -> Network:
    return create_network("small-resnet", 3, SPEC, seed=seed)


def test_gradient_of_cross_entropy_is_softmax_minus_one_hot() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([0, 3, 1, 1, 2])
    loss_for("single", 0.0)(logits, targets).backward()
    expected = logits.softmax(dim=1) - functional.one_hot(targets, 4)
    torch.testing.assert_close(logits.grad, expected.detach() / 5)  # the mean over 5 rows


def test_gradient_of_binary_cross_entropy_is_sigmoid_minus_target() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = (torch.arange(20).reshape(5, 4) % 3 == 0).float()
    loss_for("multi", 0.1)(logits, targets).backward()
    torch.testing.assert_close(logits.grad, (logits.sigmoid() - targets).detach() / 20)


def test_a_row_of_no_class_pulls_softmax_towards_any_and_a_sigmoid_towards_none() -> None:
    logits = torch.tensor([[2.0, 0.0, -2.0]], requires_grad=True)
    none = torch.tensor([-1])
    (by_softmax,) = torch.autograd.grad(
        loss_for("single", 0.0, learn_none=True)(logits, none), logits
    )
    torch.testing.assert_close(by_softmax, (logits.softmax(dim=1) - 1 / 3).detach())
    (by_sigmoid,) = torch.autograd.grad(
        loss_for("single", 0.0, head="sigmoid")(logits, none), logits
    )
    torch.testing.assert_close(by_sigmoid, logits.sigmoid().detach())


def test_rows_of_a_class_cost_the_same_where_none_is_learned_too() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 3, 1, 1, 2])
    plain, learning = (loss_for("single", 0.1, learn_none=its) for its in (False, True))
    torch.testing.assert_close(plain(logits, targets), learning(logits, targets))
    shares = soft_targets(torch.tensor([2, -1]), 4)
    assert shares.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]


class OneHiddenLayer(nn.Module):
    """With hidden units softmax can be unsure of some rows and sure of others."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers(features), features


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_rows_without_a_label_teach_to_be_unsure(head: HeadName) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(400, 6)).astype(np.float32)
    targets = features[:, :3].argmax(axis=1)
    targets[features[:, 3] > 0.5] = NONE_OF_THEM
    data, held = Arrays(features[:300], targets[:300]), Arrays(features[300:], targets[300:])
    surest = []
    for learn_none in (False, True):
        settings = replace(
            QUICK,
            epochs=20,
            learning_rate=0.5,
            label_smoothing=0.0,
            head=head,
            learn_none=learn_none,
        )
        torch.manual_seed(0)
        trainer = Trainer(OneHiddenLayer(), data, held, settings, "single")
        assert len(trainer.rows) == (300 if learn_none else (targets[:300] >= 0).sum())
        trainer.fit()
        logits = torch.from_numpy(predict_all(trainer.network, held.images)[0])
        chances = logits.sigmoid() if head == "sigmoid" else logits.softmax(dim=1)
        none, some = (chances[held.targets == -1], chances[held.targets >= 0])
        surest.append(float(some.amax(dim=1).mean() - none.amax(dim=1).mean()))
    assert surest[1] > surest[0] + 0.1


def test_small_resnet_learns_what_can_be_learned() -> None:
    fit, validation = stripes(96), stripes(48, seed=1)
    settings = replace(QUICK, epochs=5, learning_rate=0.1)
    history = train_from_scratch(network(), fit, validation, settings, "single")
    assert history.metric == 1.0
    assert len(history.losses) == len(history.learning_rates) == 5 * 6
    for which in ("train_loss", "validation_loss"):
        assert getattr(history.epochs[-1], which) < 0.5 * getattr(history.epochs[0], which)
    assert max(history.learning_rates) == pytest.approx(0.1, rel=0.02)


def test_multi_label_learns_each_class_by_itself() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(300, 6)).astype(np.float32)
    targets = (features[:, :3] > 0.5).astype(np.float32)  # rows with none, one or several
    fit, validation = Arrays(features[:200], targets[:200]), Arrays(features[200:], targets[200:])
    settings = replace(QUICK, epochs=20, learning_rate=0.5)
    history = Trainer(LinearHead(6, 3), fit, validation, settings, "multi").fit()
    assert history.metric_name == "mean average precision"
    assert history.metric > 0.95


class XorNetwork(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, hidden)
        self.out = nn.Linear(hidden or 2, 2)

    def forward(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.tanh(self.hidden(points)) if len(self.hidden.bias) else points
        return self.out(hidden), hidden


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("hidden", "learns"), [(0, False), (8, True)])
def test_xor_takes_a_hidden_layer(hidden: int, learns: bool) -> None:
    points = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    xor = Arrays(points, np.array([0, 1, 1, 0]))
    settings = replace(QUICK, epochs=300, batch_size=4, learning_rate=0.3, label_smoothing=0.0)
    torch.manual_seed(0)
    history = Trainer(XorNetwork(hidden), xor, xor, settings, "single").fit()
    assert (history.metric == 1.0) is learns


def test_same_seed_same_losses_and_another_seed_others() -> None:
    fit, validation = stripes(64), stripes(16, seed=1)
    settings = replace(QUICK, flip=True, shift_share=0.1, erase_probability=0.5)

    def losses(seed: int) -> list[float]:
        chosen = replace(settings, seed=seed)
        return train_from_scratch(network(), fit, validation, chosen, "single").losses

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train_from_scratch(network(), stripes(32), stripes(16), QUICK, "single")
    assert torch.equal(torch.rand(1), expected)


class Diary(Callback):
    def __init__(self, name: str, order: int, pages: list[str]) -> None:
        self.name, self.order, self.pages = name, order, pages

    def before_fit(self, trainer: Trainer) -> None:
        self.pages.append(f"{self.name} before_fit")

    def before_batch(self, trainer: Trainer) -> None:
        self.pages.append(f"{self.name} before_batch")

    def after_loss(self, trainer: Trainer) -> None:
        assert all(weight.grad is None for weight in trainer.network.parameters())
        self.pages.append(f"{self.name} after_loss")

    def after_backward(self, trainer: Trainer) -> None:
        assert all(weight.grad is not None for weight in trainer.network.parameters())
        self.pages.append(f"{self.name} after_backward")

    def after_batch(self, trainer: Trainer) -> None:
        assert all(weight.grad is None for weight in trainer.network.parameters())
        self.pages.append(f"{self.name} after_batch")

    def after_epoch(self, trainer: Trainer) -> None:
        self.pages.append(f"{self.name} after_epoch")

    def after_fit(self, trainer: Trainer) -> None:
        self.pages.append(f"{self.name} after_fit")


def test_callbacks_run_by_their_order_at_every_point() -> None:
    pages: list[str] = []
    diaries = [Diary("late", 70, pages), Diary("early", 5, pages)]
    settings = replace(QUICK, epochs=1)
    Trainer(network(), stripes(16), stripes(16), settings, "single", callbacks=diaries).fit()
    points = ["before_fit", "before_batch", "after_loss", "after_backward", "after_batch"]
    points += ["after_epoch", "after_fit"]
    assert pages == [f"{name} {point}" for point in points for name in ("early", "late")]


def test_a_loss_that_is_not_finite_stops_with_step_and_rate() -> None:
    fit = stripes(64)
    broken = Arrays(np.full((64, 4), np.nan, np.float32), fit.targets)
    pages: list[str] = []
    trainer = Trainer(
        LinearHead(4, 3), broken, broken, QUICK, "single", callbacks=[Diary("d", 50, pages)]
    )
    with pytest.raises(TrainingError, match=r"nan at step 0 of 8.*learning rate.*lower"):
        trainer.fit()
    assert pages[-1] == "d after_fit"
    assert all(torch.isfinite(weight).all() for weight in trainer.network.parameters())


def test_items_without_a_class_are_not_trained_on() -> None:
    fit = stripes(64)
    targets = fit.targets.copy()
    targets[:20] = -1
    trainer = Trainer(network(), Arrays(fit.images, targets), fit, QUICK, "single")
    assert trainer.rows.tolist() == list(range(20, 64))
    assert math.isfinite(trainer.fit().losses[-1])


def test_only_items_without_a_class_is_an_error() -> None:
    empty = Arrays(stripes(8).images, np.full(8, -1))
    with pytest.raises(DataError, match="no labelled rows"):
        Trainer(network(), empty, empty, QUICK, "single")


def test_auto_precision_measures_and_leaves_weights_and_results_alone() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    seen: list[bool] = []

    class Compare(Callback):
        order = 1  # right after the choice

        def before_fit(self, trainer: Trainer) -> None:
            state = trainer.network.state_dict()
            seen.append(all(torch.equal(before[name], state[name]) for name in before))

    settings = replace(QUICK, epochs=1, precision="auto")
    history = train_from_scratch(
        net, stripes(32), stripes(16), settings, "single", callbacks=[Compare()]
    )
    assert seen == [True]
    assert history.precision in {one.name for one in PRECISIONS}


def test_features_are_put_away_in_parts_that_several_processes_can_share() -> None:
    lengths = [len(part) for part in fine_tuning._parts_of(8_001)]
    assert lengths == [2667, 2667, 2667]
    assert np.concatenate(list(fine_tuning._parts_of(8_001))).tolist() == list(range(8_001))


@pytest.mark.parametrize("precision", [one.name for one in PRECISIONS])
def test_every_precision_trains(precision: str) -> None:
    settings = replace(QUICK, epochs=4, learning_rate=0.1, precision=precision)
    history = train_from_scratch(network(), stripes(64), stripes(30, 1), settings, "single")
    assert history.precision == precision
    assert history.metric > 0.9


def test_frozen_batch_norm_keeps_its_statistics_and_others_move() -> None:
    def moved(freeze: bool) -> bool:
        net = network()
        before = net.body.state_dict()["stem.1.running_mean"].clone()
        settings = replace(QUICK, freeze_batch_norm=freeze)
        train_from_scratch(net, stripes(32), stripes(16), settings, "single")
        return not torch.equal(before, net.body.state_dict()["stem.1.running_mean"])

    assert not moved(freeze=True)
    assert moved(freeze=False)


def pretrained() -> Network:
    """Random weights, with batch norm statistics that suit the images."""
    net = network()
    settings = replace(QUICK, epochs=5, learning_rate=1e-6)
    train_from_scratch(net, stripes(96), stripes(16), settings, "single")
    return net


def test_fine_tuning_that_helps_is_kept() -> None:
    net = pretrained()
    settings = replace(
        QUICK, epochs=8, optimizer="adamw", learning_rate=5e-3, body_learning_rate=5e-3
    )
    tuned = fine_tune(net, hard(96), hard(96, 1), settings, "single")
    assert tuned.body_history is not None
    assert tuned.kept == "fine-tuned"
    assert tuned.history.metric > tuned.head_history.metric
    logits, _ = predict_all(net, hard(96, 1).images)
    assert metric(logits, hard(96, 1).targets, "single") == tuned.history.metric


def test_fine_tuning_that_does_not_help_is_undone() -> None:
    net = pretrained()
    body_before = {name: value.clone() for name, value in net.body.state_dict().items()}
    settings = replace(QUICK, epochs=1, learning_rate=1e-6)
    tuned = fine_tune(net, stripes(96), stripes(48, 1), settings, "single")
    assert tuned.kept == "linear head"
    assert tuned.history is tuned.head_history
    assert all(
        torch.equal(value, net.body.state_dict()[name]) for name, value in body_before.items()
    )
    logits, _ = predict_all(net, stripes(48, 1).images)
    assert metric(logits, stripes(48, 1).targets, "single") == pytest.approx(
        tuned.head_history.metric, abs=0.03
    )


def test_layer_groups_cover_every_weight_once_with_rising_rates() -> None:
    net = network()
    groups = layer_groups(net, 1e-4, 1e-2)
    weights = [weight for group in groups for weight in group["params"]]
    assert {id(one) for one in weights} == {id(one) for one in net.parameters()}
    assert len(weights) == len(list(net.parameters()))
    assert [group["peak"] for group in groups] == pytest.approx([1e-4, 1e-3, 1e-2])


def test_progress_bar_shows_epoch_loss_metric_rate_and_time_left() -> None:
    page = io.StringIO()
    console = Console(file=page, width=200, force_terminal=True)
    bar = ProgressBar("training", console=console)
    train_from_scratch(network(), stripes(32), stripes(16), QUICK, "single", callbacks=[bar])
    for word in ("training", "epoch 2/2", "loss ", "accuracy ", "rate ", "left"):
        assert word in page.getvalue()


def test_progress_is_a_line_an_epoch_where_there_is_no_terminal() -> None:
    page = io.StringIO()
    bar = ProgressBar("training", console=Console(file=page, width=200))
    train_from_scratch(network(), stripes(32), stripes(16), QUICK, "single", callbacks=[bar])
    lines = page.getvalue().splitlines()
    assert [line.split(" loss")[0] for line in lines] == [
        "training: epoch 1/2",
        "training: epoch 2/2",
    ]


def test_progress_bar_is_silent_when_a_program_reads() -> None:
    page = io.StringIO()
    bar = ProgressBar("training", enabled=False, console=Console(file=page))
    train_from_scratch(network(), stripes(32), stripes(16), QUICK, "single", callbacks=[bar])
    assert page.getvalue() == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", -1),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("label_smoothing", 1.5),
        ("small_epochs_share", 1.0),  # no epoch would see what the network is served
        ("small_share", 0.1),
    ],
)
def test_settings_refuse_what_no_training_can_use(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=rf"{name} is {value}; it must be"):
        replace(QUICK, **{name: value})


def test_training_from_scratch_needs_an_epoch() -> None:
    with pytest.raises(SettingsError, match="epochs is 0"):
        train_from_scratch(network(), stripes(8), stripes(8), replace(QUICK, epochs=0), "single")


def test_settings_refuse_a_body_rate_above_the_head_rate() -> None:
    with pytest.raises(SettingsError, match="at most the learning rate of the head"):
        replace(QUICK, learning_rate=0.01, body_learning_rate=0.1)


def test_batches_that_share_a_step_learn_as_one_batch_of_their_size() -> None:
    settings = replace(QUICK, optimizer="sgd", learning_rate=0.05, freeze_batch_norm=True)
    data = stripes(64)
    whole = Trainer(network(), data, data, settings, "single")
    parts = Trainer(
        network(), data, data, replace(settings, batch_size=4, accumulate_batches=4), "single"
    )
    # One cycle counts batches: a rate that stays makes the two alike.
    for trainer in (whole, parts):
        trainer.callbacks = [one for one in trainer.callbacks if type(one).__name__ != "OneCycle"]
        trainer.fit()
    for name, tensor in whole.network.state_dict().items():
        torch.testing.assert_close(tensor, parts.network.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_a_step_of_fewer_batches_at_the_end_of_an_epoch_weighs_them_alike() -> None:
    settings = replace(QUICK, batch_size=16, accumulate_batches=3)
    trainer = Trainer(network(), stripes(80), stripes(16), settings, "single")
    found = []
    for trainer.batch_number in range(5):
        found.append((trainer.batches_of_step, trainer.ends_step))
    assert found == [(3, False), (3, False), (3, True), (2, False), (2, True)]


def test_gradients_are_clipped_to_the_bound() -> None:
    lengths = []

    class Measure(Callback):
        order = 51  # right after ClipGradients

        def before_step(self, trainer: Trainer) -> None:
            gradients = [its.grad.norm() for its in trainer.network.parameters()]  # type: ignore[union-attr]
            lengths.append(torch.stack(gradients).norm().item())

    data = stripes(32)
    for bound in (None, 0.01):
        settings = replace(QUICK, epochs=1, clip_gradient_norm=bound)
        Trainer(network(), data, data, settings, "single", callbacks=[Measure()]).fit()
    assert min(lengths[:2]) > 0.1
    assert max(lengths[2:]) <= 0.0101


def test_the_average_takes_in_every_step_once_however_many_batches_it_has() -> None:
    settings = replace(QUICK, average_decay=0.9, accumulate_batches=3)
    trainer = Trainer(LinearHead(4, 2), SIXTY, SIXTY, settings, "single")
    trainer.fit()
    (average,) = (its for its in trainer.callbacks if isinstance(its, AverageWeights))
    steps = 2 * -(-trainer.steps_per_epoch // 3)
    assert int(average.state()["n_averaged"]) == steps < trainer.step_number


def test_out_of_memory_in_prediction_says_what_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    head = LinearHead(4, 2)
    monkeypatch.setattr(head, "forward", full)
    with pytest.raises(TrainingError, match=r"out of memory predicting 500 inputs.*--size"):
        predict_all(head, SIXTY.images)


def test_the_average_of_the_weights_is_validated_and_kept() -> None:
    seen = []

    class Look(Callback):
        def after_batch(self, trainer: Trainer) -> None:
            seen.append(trainer.network.head.weight.detach().clone())  # type: ignore[union-attr,operator]

    data = stripes(64)
    settings = replace(QUICK, average_decay=0.9)
    trainer = Trainer(network(), data, data, settings, "single", callbacks=[Look()])
    history = trainer.fit()
    expected = seen[0]
    for step, weight in enumerate(seen[1:], start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(trainer.network.state_dict()["head.weight"], expected)
    logits, _ = predict_all(trainer.network, data.images)
    assert history.metric == metric(logits, data.targets, "single")


def test_balanced_sampling_draws_rare_classes_as_often_as_frequent_ones() -> None:
    data = stripes(400)
    targets = np.where(np.arange(400) < 20, 1, 0)
    settings = replace(QUICK, sampling="balanced")
    trainer = Trainer(network(), Arrays(data.images, targets), data, settings, "single")
    assert targets[trainer.order(1)].mean() == pytest.approx(0.5, abs=0.1)
    assert (trainer.order(1) == trainer.order(1)).all()
    assert (trainer.order(1) != trainer.order(2)).any()


def test_balanced_sampling_goes_by_the_rarest_of_several_labels() -> None:
    rare_and_frequent, frequent, none = [1, 1], [0, 1], [0, 0]
    weights = row_weights(np.array([rare_and_frequent] + [frequent] * 7 + [none] * 2))
    assert weights[0] == pytest.approx(8 * weights[1])
    assert weights[8] == pytest.approx(4 * weights[1])


def test_class_weights_make_mistakes_on_rare_classes_dearer() -> None:
    single = class_weights(np.array([0] * 90 + [1] * 10))
    assert single.tolist() == pytest.approx([100 / 180, 5.0])
    several = class_weights(np.array([[1, 0]] * 50 + [[0, 1]] + [[0, 0]] * 49))
    assert several.tolist() == pytest.approx([1.0, 20.0])
    logits = torch.zeros(2, 2)
    weighted = loss_for("single", 0.0, torch.from_numpy(single))
    both = [weighted(logits[:1], torch.tensor([its])).item() for its in (0, 1)]
    assert both[0] == both[1]  # the mean is weighted too, so that only mixtures differ
    mixed = weighted(torch.tensor([[5.0, 0.0], [5.0, 0.0]]), torch.tensor([0, 1])).item()
    plain = loss_for("single", 0.0)(torch.tensor([[5.0, 0.0], [5.0, 0.0]]), torch.tensor([0, 1]))
    assert mixed > 1.5 * plain.item()


def test_deterministic_mode_holds_inside_alone() -> None:
    inside = []

    class Look(Callback):
        def after_batch(self, trainer: Trainer) -> None:
            inside.append(torch.are_deterministic_algorithms_enabled())

    data = stripes(32)
    settings = replace(QUICK, epochs=1, deterministic=True)
    Trainer(network(), data, data, settings, "single", callbacks=[Look()]).fit()
    assert inside == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_out_of_memory_says_which_batch_size_to_try() -> None:
    class Burst(Callback):
        def after_backward(self, trainer: Trainer) -> None:
            torch.empty(2**60, dtype=torch.uint8)

    data = stripes(32)
    with pytest.raises(TrainingError, match="--batch-size 8, with --accumulate-batches 2"):
        Trainer(network(), data, data, QUICK, "single", callbacks=[Burst()]).fit()


@pytest.mark.slow
def test_a_compiled_network_learns_the_same() -> None:
    data = stripes(64)
    plain = Trainer(network(), data, data, QUICK, "single").fit()
    compiled = Trainer(network(), data, data, replace(QUICK, compile=True), "single").fit()
    assert compiled.losses == pytest.approx(plain.losses, rel=0.02)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_groups_stay_as_they_are_and_the_others_learn(frozen: int) -> None:
    net = network()
    settings = replace(QUICK, learning_rate=0.05, frozen_groups=frozen)
    before = [parameter.clone() for parameter in net.body_parameters()]
    head = net.head.weight.clone()
    body_trainer(net, stripes(64), stripes(16, 1), settings, "single").fit()
    moved = [
        not torch.equal(old, new) for old, new in zip(before, net.body_parameters(), strict=True)
    ]
    middle = len(moved) // 2
    assert any(moved[:middle]) == (frozen < 1)
    assert any(moved[middle:]) == (frozen < 2)
    assert not torch.equal(head, net.head.weight)


@pytest.mark.parametrize("presized_side", [28, 42])
def test_the_first_epochs_are_trained_and_validated_on_smaller_images(presized_side) -> None:
    sides: list[tuple[bool, int]] = []  # in training, and of how many px

    class Watched(Network):
        def embed(self, images: torch.Tensor) -> torch.Tensor:
            sides.append((self.training, images.shape[1]))
            return super().embed(images)

    plain = network()
    watched = Watched(plain.body, plain.embedding_size, 3, SPEC)
    rows = np.random.default_rng(0).integers(
        0, 256, (16, presized_side, presized_side, 3), np.uint8
    )
    fit = Arrays(rows, np.arange(16) % 3)
    settings = replace(QUICK, epochs=3, small_epochs_share=0.7, small_share=0.5)
    Trainer(watched, fit, stripes(9), settings, "single").fit()
    assert sides == [
        *[(True, 14), (False, 14)] * 2,
        (True, 28),
        (False, 28),
    ]


def test_smaller_images_show_what_larger_ones_showed() -> None:
    images = torch.from_numpy(stripes(4).images)
    shrunk = shrink(images, 14)
    assert shrunk.shape == (4, 14, 14, 3)
    torch.testing.assert_close(
        shrunk.mean(dim=(1, 2)), images.float().mean(dim=(1, 2)), atol=2, rtol=0
    )
    learned = Trainer(
        network(),
        stripes(300),
        stripes(90, 1),
        replace(QUICK, epochs=4, small_epochs_share=0.5),
        "single",
    ).fit()
    assert learned.metric > 0.9
