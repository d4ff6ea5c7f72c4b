"""What a captured step may not do, on a stand-in for a GPU that refuses it as CUDA would.

Whole runs through GraphRunner: no host read, no copy between host and device, no new kernel and no
other stream within a capture, whatever is trained on and however much is recomputed.
"""

import numpy as np
import pytest
import torch
from steps import CONFIG, Run, mixed
from streams import Fixed, sample
from tiny import tiny_model

from liftcore.kernels.device import HAS_TRITON, INTERPRET
from liftcore.layers.attention import fast_attention
from liftcore.layers.lora import Adapter, only_adapter_trains
from liftcore.objectives.replay import Replay
from liftcore.objectives.segments import Segments
from liftcore.questions.own_words import OwnWords
from liftcore.training import runner
from liftcore.training.graph import GraphRunner
from liftcore.training.loop import train
from liftcore.training.memory_plan import MemoryPlan
from liftcore.training.source import StepSource, segments_alone
from liftcore.training.together import Learner, TogetherSource
from liftcore.training.together_runner import TogetherGraphRunner

pytestmark = pytest.mark.skipif(not HAS_TRITON or INTERPRET, reason="no Triton that compiles")
FROZEN = dict(train_a=False, layers=0.5)


@pytest.fixture
def card():
    from bench.rehearsal.card import stand_in

    with stand_in() as card:
        yield card


def questions(rng, tokens, config):
    asked = [sample(12, 4, "qa", first=3 + i) for i in range(9)]
    return StepSource([Segments(tokens, config, [1]), Fixed(asked, "qa")], config, 200, prefix=1)


def replay(rng, tokens, config):
    lengths = rng.integers(6, 14, size=12)
    rows = [OwnWords(rng.integers(3, 200, n), int(rng.integers(1, n - 1))) for n in lengths]
    config = config.replace(replay_share=0.3, replay_targets="hard")
    objectives = [Segments(tokens, config, [1]), Replay(None, rows, config)]
    return StepSource(objectives, config, 200, prefix=1)


def segments(rng, tokens, config):
    return segments_alone(tokens, config, [1])


def few_scored(rng, tokens, config):
    """The last layer then runs for chosen rows."""
    config = config.replace(schedule="overlap", overlap_loss="new", segment_length=64)
    return segments_alone(np.tile(tokens, 3), config, [1])


def made(source, **options):
    return Run(GraphRunner, source, dtype=torch.bfloat16, device="cuda", **options)


def taken(run, count=10**6):
    with fast_attention(run.model, 65) as why:
        assert not why
        return run.take(count)


@pytest.mark.parametrize(
    ("make", "settings", "recompute"),
    [
        (segments, {}, 0),
        (segments, {}, 1),
        (segments, {"base_dtype": "fp8"}, 0),
        (few_scored, {}, 0),
        (questions, {}, 1),
        (replay, {}, 0),
        (mixed, {}, 1),
        (mixed, FROZEN, 0),
        (mixed, FROZEN, 1),
    ],
)
def test_a_step_is_captured_whatever_it_trains_on(card, rng, make, settings, recompute):
    tokens = rng.integers(3, 200, size=170)
    config = CONFIG.replace(epochs=3, **settings)
    run = made(make(rng, tokens, config))
    run.runner.use(MemoryPlan(2, 2, recompute))
    taken(run, 1)
    card.reset()
    taken(run)
    graphs = [graph for graph in run.runner.graphs.values() if graph is not None]
    assert not run.runner.why and graphs, run.runner.why
    assert all(graph.seconds for graph in graphs), "a graph of nothing"
    # Beside the reader's, which is bounded, a run waits for nothing but captures.
    allowed = {"a synchronisation before a capture", "a synchronisation"}
    assert set(card.waits) <= allowed, card.waits


def test_graphs_behind_another_plan_have_a_pool_of_their_own(card, rng, monkeypatch):
    pools, handle = [], torch.cuda.graph_pool_handle

    def counted():
        pools.append(handle())
        return pools[-1]

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", counted)
    run = made(segments(rng, rng.integers(3, 200, size=170), CONFIG.replace(epochs=6)))
    run.runner.use(MemoryPlan(4, 1))
    taken(run, 6)
    assert len(pools) == 1 and list(card.pools) == pools
    run.runner.use(MemoryPlan(2, 2))
    taken(run)
    assert len(pools) == 2 and list(card.pools) == pools[1:]


class Document(Learner):
    def ended(self):
        pass


def test_joint_steps_of_documents_are_captured(card, rng):
    config = CONFIG.replace(epochs=3)
    model = tiny_model(dtype=torch.bfloat16).to("cuda")
    texts = [rng.integers(3, 200, size=n) for n in (300, 90, 170)]
    documents = [
        Document(Adapter.of(model, config), segments_alone(text, config, [1])) for text in texts
    ]
    adapter = Adapter.of(model, config, slots=2)
    source = TogetherSource(adapter, iter(documents), config, 200, prefix=1)
    source.fill()
    adapter.install()
    run, waits = TogetherGraphRunner(adapter, source), set()
    with only_adapter_trains(adapter), fast_attention(model, 65) as why:
        assert not why
        for step in source.steps():
            card.waits.clear()
            run.run(step)
            waits |= set(card.waits) if step.number else set()
    assert any(run.graphs.values()) and not run.why, run.why
    assert waits <= {"a synchronisation before a capture", "a synchronisation"}, waits


def reads(loss):
    loss.sum().item()


def copies(loss):
    torch.zeros(3).to(loss.device, non_blocking=True)


def copies_pinned(loss):
    torch.zeros(3).pin_memory().to(loss.device, non_blocking=True)


def brings_back(loss):
    loss.detach().to("cpu", non_blocking=True)


def compares(loss):
    torch.equal(loss, loss)


def selects(loss):
    loss.expand(3)[loss.expand(3) > 0]


def changes_streams(loss):
    with torch.cuda.stream(torch.cuda.Stream()):
        loss + 1


def synchronises(loss):
    torch.cuda.synchronize()


def compiles(loss):
    from liftcore.kernels.head_loss_dhidden import scale_rows

    # Another number of columns is another constant of the kernel.
    columns = 300 if torch.cuda.is_current_stream_capturing() else 20
    scale_rows(torch.empty(2, columns, device=loss.device), torch.empty(2, device=loss.device))


WRONG = [reads, copies, copies_pinned, brings_back, compares, selects, changes_streams,
         synchronises, compiles]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cuda_refuses_is_refused(card, wrong):
    from bench.rehearsal.card import Refused

    x = torch.ones(1, device="cuda")
    wrong(x)
    with (
        pytest.raises(RuntimeError, match="previous error") as end,
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        wrong(x)
    assert isinstance(end.value.__context__, Refused)


def test_a_refused_capture_goes_on_eagerly(card, rng, monkeypatch):
    real = runner.batch_loss
    monkeypatch.setattr(runner, "batch_loss", lambda *a: (loss := real(*a), reads(loss))[0])
    run = taken(made(segments(rng, rng.integers(3, 200, size=60), CONFIG)))
    assert "the host reads a number" in run.runner.why and "the capture failed" in run.runner.how
    assert not any(run.runner.graphs.values())


def test_a_capture_that_fails_without_a_word_is_named(card, rng, monkeypatch):
    real = runner.batch_loss

    def silent(*given):
        if card.capture is not None:
            raise RuntimeError
        return real(*given)

    monkeypatch.setattr(runner, "batch_loss", silent)
    run = taken(made(segments(rng, rng.integers(3, 200, size=60), CONFIG)))
    assert run.runner.why == "the capture failed: RuntimeError"


def test_all_work_of_a_run_is_in_the_order_of_the_caller(card, rng, monkeypatch):
    """Who reads a loss, generates or marks a time on the caller's stream finds every step before
    it done, though passes run on a stream of their own."""
    from bench.rehearsal.streams import Graph, Stream

    order, replay, caller = [], Graph.replay, card.stream
    monkeypatch.setattr(Stream, "wait_stream", lambda one, other: order.append((one, other)))
    monkeypatch.setattr(Graph, "replay", lambda graph: (order.append(card.stream), replay(graph)))
    run = made(segments(rng, rng.integers(3, 200, size=170), CONFIG.replace(epochs=3)))
    monkeypatch.setattr(run.runner, "mark", lambda part: order.append(part))
    taken(run)
    aside = run.runner.stream
    there, back = order.index((aside, caller)), order.index((caller, aside))
    assert there < back < order.index("backward") and caller in order
    pairs = [at for at in order if isinstance(at, tuple)]
    assert pairs == [(aside, caller), (caller, aside)] * (len(pairs) // 2)
    assert {at for at in order if isinstance(at, Stream)} == {caller}


def test_losses_are_read_on_the_device_of_the_model(card, rng, monkeypatch):
    """On another one the event behind their copy would be over at once."""
    current, recorded = [1], []

    class Device:
        def __init__(self, device):
            self.index = getattr(device, "index", device)

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device", Device)
    record = torch.cuda.Event.record
    monkeypatch.setattr(
        torch.cuda.Event, "record", lambda event: (recorded.append(current[-1]), record(event))
    )
    model = tiny_model(dtype=torch.bfloat16).to("cuda")
    adapter = Adapter(model, CONFIG.rank, CONFIG.lora_alpha)
    adapter.install()
    source = segments(rng, rng.integers(3, 200, size=60), CONFIG.replace(epochs=1))
    train(adapter, source)
    assert recorded and set(recorded) == {0} and current == [1]


def test_devices_do_not_mix_on_the_stand_in(card):
    x = torch.ones(3, device="cuda")
    assert x.is_cuda and x.device == torch.device("cuda:0") and not torch.ones(3).is_cuda
    with pytest.raises(RuntimeError, match="two devices"):
        x + torch.ones(3)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2**40, device="cuda")
    before = card.allocated
    y = torch.empty(1000, device="cuda")
    assert card.allocated - before == 4096 and y[3:].data_ptr() == y.data_ptr() + 12
    assert y[3:].untyped_storage().data_ptr() == y.data_ptr() != x.data_ptr() > 0
    del y
    assert card.allocated == before
