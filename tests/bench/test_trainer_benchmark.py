"""The trainer's benchmark itself: what it trains on, how it measures, what it writes. No timing is asserted."""

import dataclasses
import json
import pathlib
import statistics
import sys
from typing import Any

import pytest
from tests.bench.trainer import (
    __main__,
    batch,
    course,
    lengths,
    machine,
    models,
    ours,
    peers,
    process,
    recipe,
    report,
    results,
    rounds,
    search,
    work,
    workloads,
)
from tests.trainer import tiny

from toolbox import say


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    tiny.make_tiny_model(folder)
    return folder


# --- workloads ---


@pytest.mark.parametrize("workload", workloads.ALL, ids=lambda workload: workload.name)
def test_texts_have_the_promised_lengths(workload: workloads.Workload) -> None:
    chats = workloads.chats(workload, 200, 1, words)
    for role, promised in (("user", workload.prompt), ("assistant", workload.answer)):
        found = [words(turn["content"]) for chat in chats for turn in chat if turn["role"] == role]
        assert len(found) == 200 * workload.turns
        assert statistics.mean(found) == pytest.approx(promised, rel=0.05)
        assert min(found) < 0.8 * promised
        assert max(found) > 1.2 * promised
        assert max(found) <= round(1.3 * promised)
    systems = {turn["content"] for chat in chats for turn in chat if turn["role"] == "system"}
    assert [words(text) for text in systems] == ([workload.system] if workload.system else [])


@pytest.mark.parametrize("workload", workloads.ALL, ids=lambda workload: workload.name)
def test_no_two_private_texts_begin_with_the_same_word(workload: workloads.Workload) -> None:
    chats = workloads.chats(workload, 200, 1, words)
    openings = [turn["content"].split()[0] for chat in chats for turn in chat if turn["role"] != "system"]
    assert len(set(openings)) == len(openings)


def test_the_same_seed_writes_the_same_chats() -> None:
    short = workloads.BY_NAME["short"]
    assert workloads.chats(short, 5, 1, words) == workloads.chats(short, 5, 1, words)
    assert workloads.chats(short, 5, 1, words) != workloads.chats(short, 5, 2, words)


def test_each_step_has_its_examples_and_the_first_step_has_the_small_ones(base: pathlib.Path) -> None:
    given = batch.make(workloads.BY_NAME["short"], 3, lengths.load(base))
    total = (3 + course.UNCOUNTED) * recipe.BATCH
    assert sorted(index for step in given.steps for index in step) == list(range(total))
    assert len({json.dumps(row) for row in given.rows}) == total
    first, *others = given.tokens()
    assert first < 0.7 * min(others)
    assert all(0 < learned < tokens for learned, tokens in zip(given.labelled(), given.tokens(), strict=True))


def test_a_peer_reads_the_same_steps_the_longest_example_first(base: pathlib.Path) -> None:
    counter = lengths.load(base)
    given = batch.make(workloads.BY_NAME["short"], 2, counter)
    read = given.ordered()
    for number, step in enumerate(given.steps):
        part = read[number * recipe.BATCH : (number + 1) * recipe.BATCH]
        assert sorted(map(json.dumps, part)) == sorted(json.dumps(given.rows[index]) for index in step)
        tokens = [counter.chat(chat).tokens for chat in part]
        assert tokens == sorted(tokens, reverse=True)


def test_the_marked_template_says_the_same_and_marks_each_answer_with_its_stop_token() -> None:
    tokenizer = tiny.make_tokenizer()
    plain = "{% for message in messages %}" + peers.TURN + "{% endfor %}"
    chat = [
        {"role": "user", "content": "Is 90 broken?"},
        {"role": "assistant", "content": "It is."},
        {"role": "user", "content": "Where is 12?"},
        {"role": "assistant", "content": "Late."},
    ]
    wanted = tokenizer.apply_chat_template(chat, chat_template=plain, tokenize=True, return_dict=True)["input_ids"]
    found = tokenizer.apply_chat_template(
        chat, chat_template=peers.marked(plain), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert found["input_ids"] == wanted
    marked = [token for token, mark in zip(wanted, found["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "It is.<|im_end|>Late.<|im_end|>"


def test_a_template_that_cannot_be_marked_is_refused() -> None:
    with pytest.raises(say.Problem, match="chat template"):
        peers.marked("{{ messages[0].content }}")


# --- measuring ---


SIDES = {ours.NAME: ours.train, "standard-path": __main__.sides([peers.STANDARD_PATH])["standard-path"]}


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_our_side_runs_the_product_and_reports_every_step(
    side: str, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    given = batch.make(workloads.BY_NAME["short"], 2, lengths.load(base))
    found = SIDES[side](base, tmp_path, given)
    assert len(found.ends) == len(found.losses) == len(found.tokens) == 2 + course.UNCOUNTED
    assert found.ends == sorted(found.ends)
    assert found.started < found.ends[0]
    assert found.peak > 100 * 2**20
    assert found.rate > 0
    assert found.final_loss == found.losses[-1] > 0


def test_the_peak_is_that_of_the_process_and_not_of_what_started_it(tmp_path: pathlib.Path) -> None:
    def peak(program: str) -> int:
        return process.run([sys.executable, "-c", program], {}, tmp_path / "log").peak

    idle, busy = peak("pass"), peak("text = b'x' * (200 * 2**20)")
    assert 190 * 2**20 < busy - idle < 300 * 2**20


def test_a_failed_run_is_reported_with_its_last_words(tmp_path: pathlib.Path) -> None:
    program = "import sys; print('no such model'); sys.exit(3)"
    with pytest.raises(say.Problem, match="exit code 3:\n    no such model"):
        process.run([sys.executable, "-c", program], {}, tmp_path / "log")


def test_a_run_that_takes_too_long_is_ended(tmp_path: pathlib.Path) -> None:
    with pytest.raises(say.Problem, match="was ended after 1 s"):
        process.run([sys.executable, "-c", "import time; time.sleep(60)"], {}, tmp_path / "log", limit=1)


def test_the_rate_leaves_out_the_warm_up_and_the_first_step_of_the_workload() -> None:
    ends, tokens = [110.0, 115.0, 117.0, 119.0], [1000, 900, 40, 60]
    run = course.Course(100.0, ends, [4.0, 3.0, 2.0, 1.0], tokens, [1, 1, 1, 1], 0, 20.0)
    assert run.rate == 100 / 4
    assert run.first_step == 10.0


def test_the_work_is_that_of_the_linear_layers() -> None:
    import torch
    import transformers

    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**models.SHAPE))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    weights = work.weights(models.SHAPE)
    assert weights.head == layers.pop("lm_head").weight.numel()
    assert weights.body == sum(layer.weight.numel() for layer in layers.values())
    assert weights.needed(10, 3) == 4 * (10 * weights.body + 3 * weights.head)


def test_a_side_that_fails_is_left_out_and_the_others_continue() -> None:
    seen: list[Any] = []

    def fails(*_: Any) -> course.Course:
        raise say.Problem("it ended:\n    /tmp/somewhere/model.py: out of memory")

    def works(*_: Any) -> course.Course:
        return run_of(2.0)

    cell = rounds.Cell(workloads.BY_NAME["short"], models.SMALL)
    given = batch.Batches([], [], [])
    rounds.run(cell, pathlib.Path(), given, {"ours": works, "theirs": fails}, 3, seen.append)
    records = [one for one in seen if isinstance(one, rounds.Record)]
    missing = [one for one in seen if isinstance(one, rounds.Missing)]
    assert [(one.side, one.repetition) for one in records] == [("ours", 0), ("ours", 1), ("ours", 2)]
    assert [one.problem for one in missing] == ["model.py: out of memory"]


# --- results ---


def run_of(seconds: float, peak: int = 2**30, loss: float = 2.0, first: float = 5.0) -> course.Course:
    """A run of one counted step of 1,000 tokens."""
    ends = [first, first + 1, first + 1 + seconds]
    return course.Course(0.0, ends, [4.0, 3.0, loss], [100, 1000, 1000], [20, 300, 300], peak, ends[-1])


@pytest.fixture
def found() -> results.Results:
    """Three repetitions on one cell; the third peer's run is missing a partner."""
    here = machine.Machine("a processor", 2, 2**34, ["avx2"], "Linux x86_64", "3.11.7", 500.0)
    made = results.Results(
        here, {"finetune-trainer": {"torch": "1"}}, {models.SMALL: work.Weights(10**8, 10**7)}, "make it"
    )
    for repetition, (mine, theirs) in enumerate([(1.0, 10.0), (2.0, 10.0), (1.0, 30.0)]):
        made.add(rounds.Record("short", models.SMALL, ours.NAME, repetition, run_of(mine, (repetition + 1) * 2**30)))
        made.add(rounds.Record("short", models.SMALL, "trl", repetition, run_of(theirs, 8 * 2**30, 2.001, 4.0)))
    made.add(rounds.Record("short", models.SMALL, "trl", 3, run_of(1.0)))
    return made


def test_a_row_has_the_promised_fields_and_the_median_of_the_pairs(found: results.Results) -> None:
    [row] = json.loads(results.text(found))
    assert list(row) == [
        "workload",
        "model",
        "ours_tokens_per_second",
        "peer",
        "peer_tokens_per_second",
        "ratio",
        "ours_peak_mib",
        "peer_peak_mib",
        "ours_final_loss",
        "peer_final_loss",
        "share_of_matmul_rate",
    ]
    assert (row["workload"], row["model"], row["peer"]) == ("short", models.SMALL, "trl")
    assert row["ours_tokens_per_second"] == 1000
    assert row["peer_tokens_per_second"] == 100
    assert row["ratio"] == 10  # of 10, 5 and 30
    assert (row["ours_peak_mib"], row["peer_peak_mib"]) == (3 * 1024, 8 * 1024)
    assert row["share_of_matmul_rate"] == round((4e8 * 1000 + 4e7 * 300) / 500e9, 3)


def test_what_was_written_is_read_back(found: results.Results, tmp_path: pathlib.Path) -> None:
    found.add(rounds.Missing("short", models.SMALL, "llama-factory", "out of memory"))
    results.write(found, "page", tmp_path)
    assert results.read(tmp_path) == found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trainer-runs.json", "trainer.json", "trainer.md"]


def test_the_page_says_where_we_are_not_ahead(found: results.Results) -> None:
    found.add(rounds.Missing("short", models.SMALL, "llama-factory", "out of memory"))
    page = report.render(found)
    assert "**10.0x**" in page
    assert "1.0 s later at the first step" in page
    assert "llama-factory did not finish: out of memory" in page
    slower = dataclasses.replace(results.rows(found)[0], ratio=0.5, ours_peak_mib=9000, peer_final_loss=4.0)
    text = " ".join(report.shortfalls(found, slower))
    assert "slower than the peer, 0.50x" in text
    assert "110% of the peer's memory" in text
    assert "the final losses differ" in text
    standard = dataclasses.replace(slower, ratio=1.5, peer=peers.STANDARD_PATH.name)
    assert report.shortfalls(found, standard) == [], "the goals are for peers"


def test_a_page_that_is_not_of_its_runs_is_noticed(found: results.Results, tmp_path: pathlib.Path) -> None:
    assert __main__.again(tmp_path, check=True) == 0  # nobody has measured yet
    results.write(found, report.render(found), tmp_path)
    assert __main__.again(tmp_path, check=True) == 0
    page = tmp_path / results.REPORT
    page.write_text(page.read_text().replace("10.0x", "11.0x"))
    assert __main__.again(tmp_path, check=True) == 1
    assert __main__.again(tmp_path, check=False) == 0
    assert __main__.again(tmp_path, check=True) == 0


def test_the_settings_of_trl_were_searched_for() -> None:
    for tokens in (100, 500):
        assert peers.TRL.chosen(tokens) in search.VARIANTS.values()
    assert peers.TRL.chosen(500) != peers.TRL.chosen(100) == peers.TRL.settings
    assert search.chosen(search.Found("bfloat16 base, micro-batch 1", "shared-system", 100.0, 1000, 2.0))
    assert peers.TRL_DEFAULTS.settings == {}


def test_every_workload_runs_on_the_small_model_and_two_on_the_large_one() -> None:
    cells = [(cell.workload.name, cell.model) for cell in rounds.cells([], [])]
    assert [name for name, model in cells if model == models.SMALL] == list(workloads.BY_NAME)
    assert len([name for name, model in cells if model == models.LARGE]) == 2
    assert [cell.model for cell in rounds.cells(["multi-turn"], [models.LARGE])] == [models.LARGE]
