"""Public benchmarks: which tasks run, of which data, and that the numbers are those of lm-evaluation-harness itself."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tests.trainer import tiny

from finetune_api import job, reasons, results, run
from finetune_trainer.data import tokens
from finetune_trainer.engine import generate, lora, model
from finetune_trainer.evaluation import answers, contenders, in_process, task_gates
from finetune_trainer.harness import catalogue, description, measures, play, player, refusal, tasks
from finetune_trainer.process import errors
from finetune_trainer.stages import evaluate, preflight, train
from finetune_trainer.store import storage

World = Callable[..., run.Run]
Data = Callable[[str, list[Any]], list[str]]
CPU = torch.device("cpu")

ARC = [
    {
        "id": str(n),
        "question": f"Where is the parcel {n}, and is it late?",
        "choices": {"text": ["a refund", "praise", f"the quick fox {n}", "late"], "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[n % 4],
    }
    for n in range(14)
]
GSM = [
    {"question": f"I have {n} items and 2 more. How many?", "answer": f"They are {n + 2}.\n#### {n + 2}"}
    for n in range(9)
]
LAMBADA = [{"text": f"the quick brown fox {n} jumps over the lazy dog"} for n in range(6)]
WIKI = [{"page": f"Thank you for {n}, it is great! " * (3 + 60 * (n == 2))} for n in range(4)]
GPQA = [
    {
        "Question": f"Which {n}?",
        "Correct Answer": f"right {n}",
        **{f"Incorrect Answer {k}": f"wrong {n} {k}" for k in (1, 2, 3)},
    }
    for n in range(8)
]


@pytest.fixture
def data(tmp_path: pathlib.Path) -> Data:
    """Writes rows into a file; its URIs."""

    def write(name: str, rows: list[Any]) -> list[str]:
        (tmp_path / name).write_text(tiny.jsonl(rows))
        return [f"file://{tmp_path}/{name}"]

    return write


@pytest.fixture
def wanted(data: Data) -> dict[str, Any]:
    """Tasks of every kind, with data in their fields."""
    return {
        "maximumExamples": 8,
        "tasks": [
            {"name": "arc_easy", "uris": data("arc.jsonl", ARC)},
            {
                "name": "gsm8k",
                "uris": data("gsm.jsonl", GSM),
                "fewShotUris": data("shots.jsonl", GSM[:4]),
                "fewShot": 2,
            },
            {"name": "lambada_openai", "uris": data("lambada.jsonl", LAMBADA)},
            {"name": "wikitext", "uris": data("wiki.jsonl", WIKI)},
        ],
    }


def loaded(spec: run.Run) -> list[tasks.Task]:
    assert spec.evaluation.harness is not None
    return tasks.load(spec, spec.evaluation.harness, storage.of(spec.storage))


def page(spec: run.Run) -> str:
    return pathlib.Path(spec.layout.report.removeprefix("file://")).read_text()


def failure_of(spec: run.Run) -> errors.Failure:
    with pytest.raises(errors.Failure) as caught:
        loaded(spec)
    return caught.value


# --- Numbers ---


@pytest.mark.slow
@pytest.mark.parametrize("template", [False, True], ids=["plain", "chat"])
def test_the_numbers_are_those_of_the_packages_own_wrapper(
    world: World, base: pathlib.Path, wanted: dict[str, Any], template: bool
) -> None:
    """Of every kind of task, of the base and of an adapted model, question by question; one text is longer than the model."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    spec = world(training={"precision": "Float32"}, evaluation={"harness": wanted | {"chatTemplate": template}})
    rules = spec.evaluation.harness
    assert rules is not None
    plain = model.load(base, job.Precision.FLOAT32, CPU)
    encoder = tokens.load(base, spec.training)
    ours = in_process.InProcess(plain, model.head(plain), CPU, spec, encoder.tokenizer)
    asked = answers.ModelRunner(ours, encoder, contenders.Script(job.Prompt()), spec.evaluation)
    seen: dict[str, list[float]] = {}
    for adapted in (False, True):
        if adapted:
            ours.model = lora.add(plain, spec.training.lora, "tiny-base").eval()
            for weight in lora.parameters(ours.model).values():
                torch.nn.init.normal_(weight, std=0.3)
        for task in loaded(spec):
            if task.name == "gsm8k":
                task.built.config.generation_kwargs["max_gen_toks"] = 20
            mine = play.run_task(asked, job.Contender.TUNED if adapted else job.Contender.BASE, task, rules)
            task.built.set_fewshot_seed(tasks.FEW_SHOT_SEED)
            with tasks.silenced():
                theirs = evaluator.evaluate(
                    lm=HFLM(pretrained=ours.model, tokenizer=encoder.tokenizer, batch_size=3),
                    task_dict={"tasks": {task.name: task.built}},
                    bootstrap_iters=10,
                    apply_chat_template=template,
                    fewshot_as_multiturn=template,
                )
            report = theirs["results"][task.name]
            assert mine.values, task.name
            for (metric, way), value in mine.values.items():
                assert value == pytest.approx(report[f"{metric},{way}"], rel=1e-3), (task.name, metric)
                seen.setdefault(f"{task.name}/{metric}", []).append(value)
            for sample in theirs["samples"][task.name]:
                for metric in sample["metrics"]:
                    each = mine.each[metric, sample["filter"]][sample["doc_id"]]
                    assert each == pytest.approx(sample[metric], rel=1e-3), (task.name, metric)
    assert {"arc_easy/acc_norm", "gsm8k/exact_match", "lambada_openai/perplexity", "wikitext/bits_per_byte"} <= set(
        seen
    )
    changed = seen["wikitext/bits_per_byte"]
    assert changed[0] != pytest.approx(changed[1], rel=1e-3), "the adapter counts where it is on"


@pytest.mark.slow
def test_answers_and_likelihoods_are_those_of_the_packages_own_wrapper(world: World, base: pathlib.Path) -> None:
    """Request by request, stop sequences and whether an answer is the greedy one included."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    spec = world(training={"precision": "Float32"})
    plain = model.load(base, job.Precision.FLOAT32, CPU)
    encoder = tokens.load(base, spec.training)
    ours = in_process.InProcess(plain, model.head(plain), CPU, spec, encoder.tokenizer)
    asked = answers.ModelRunner(ours, encoder, contenders.Script(job.Prompt()), spec.evaluation)
    mine = player.Player(asked, job.Contender.BASE, lambda share: None)
    theirs = HFLM(pretrained=plain, tokenizer=encoder.tokenizer, batch_size=2)

    def requests(kind: str, *arguments: Any) -> list[Any]:
        return [Instance(kind, {}, one, n) for n, one in enumerate(arguments)]

    contexts = ["", "You sort mail. ", "the quick brown fox", "<|im_start|>user\nIs it late?" * 90]
    free = [
        theirs.generate_until(requests("generate_until", (one or "a", {"until": [], "max_gen_toks": 12})))[0]
        for one in contexts
    ]
    greedy = [(one, text) for one, text in zip(contexts, free, strict=True) if one and text]
    pairs = [(one, text) for one in contexts for text in (" a refund", " praise for 12", "x")] + greedy
    found = mine.loglikelihood(requests("loglikelihood", *pairs))
    expected = theirs.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], rel=1e-4)
    assert [best for _, best in found] == [best for _, best in expected]
    ways = [
        {"until": ["\n\n", free[2][3:5]], "max_gen_toks": 24},
        {"until": [], "max_gen_toks": 7},
        {"until": free[1][:1], "max_gen_toks": 20},
    ]
    questions = [(one or "a", dict(how)) for how in ways for one in contexts]
    assert mine.generate_until(requests("generate_until", *questions)) == theirs.generate_until(
        requests("generate_until", *questions), disable_tqdm=True
    )


def test_an_answer_ends_at_a_text_that_is_cut_off_anyway(base: pathlib.Path) -> None:
    plain = model.load(base, job.Precision.FLOAT32, CPU)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    head, prompts = model.head(plain), [tokenizer.encode("You sort mail."), tokenizer.encode("the quick")]
    long = generate.greedy(plain, head, prompts, frozenset(), 40, CPU)
    stop = tokenizer.decode(long[0][5:7])
    short = generate.greedy(plain, head, prompts, frozenset(), 40, CPU, ended=in_process.ends_with(tokenizer, [stop]))
    assert len(short[0]) < 40
    assert all(whole[: len(part)] == part for whole, part in zip(long, short, strict=True))
    assert stop in tokenizer.decode(short[0])
    assert stop not in tokenizer.decode(short[0][:-1])


def played(values: list[Any], of: Any, *, higher: bool = True) -> play.TaskResult:
    return play.TaskResult({("m", "none"): of(values)}, {("m", "none"): values}, {"m": of}, {"m": higher})


def test_differences_are_paired_by_question_and_have_the_sign_of_better() -> None:
    from lm_eval.api import metrics

    entry = catalogue.find(["arc_easy"])[0]
    questions = type("Built", (), {"eval_docs": range(40)})()
    task = tasks.Task(entry, questions, 0)
    before, after = [float(n < 30) for n in range(40)], [float(n < 18) for n in range(40)]
    (worse,) = play.comparisons(task, played(before, metrics.mean), played(after, metrics.mean))
    assert (worse.base.value, worse.tuned.value, worse.gain) == pytest.approx((0.75, 0.45, -0.3))
    assert worse.base.stderr == pytest.approx(metrics.mean_stderr(before))
    assert worse.base.low is not None
    assert worse.base.low < 0.75
    assert worse.p_value == pytest.approx(2 * 0.5**12)
    assert worse.high is not None
    assert worse.high < 0
    texts = [(-10.0 - n % 3, 5 + n % 2) for n in range(40)]
    lower = [(-9.0 - n % 3, 5 + n % 2) for n in range(40)]
    (better,) = play.comparisons(
        task,
        played(texts, metrics.weighted_perplexity, higher=False),
        played(lower, metrics.weighted_perplexity, higher=False),
    )
    assert better.base.value == pytest.approx(metrics.weighted_perplexity(texts))
    assert better.gain is not None
    assert better.gain > 0
    assert better.p_value is not None
    assert better.p_value < 0.01
    assert better.base.stderr is None
    (whole,) = play.comparisons(task, played(before, metrics.median), played(after, metrics.median))
    assert (whole.base.value, whole.tuned.value, whole.gain) == (1.0, 0.0, -1.0)
    assert whole.low is whole.p_value is whole.base.low is None, "no function of sums over questions"


# --- A job ---


@pytest.mark.slow
def test_base_and_tuned_model_are_in_results_and_report(world: World, wanted: dict[str, Any]) -> None:
    gates = [
        {"task": "arc_easy", "measure": "acc_norm", "minimum": 0.1, "confidence": 0.5},
        {"task": "wikitext", "measure": "bits_per_byte", "improvement": 100},
    ]
    spec = world(evaluation={"generation": {"maxNewTokens": 4}, "harness": wanted | {"gates": gates}, "gates": []})
    preflight.preflight(spec)
    train.train(spec, 1, 1.0)
    outcome = evaluate.evaluate(spec, None, None, 1)
    folder = pathlib.Path(spec.layout.evaluation("e1").removeprefix("file://"))
    parsed = results.Results.model_validate_json((folder / "results.json").read_text())
    report = parsed.harness
    assert report is not None
    reached, missed = parsed.evaluation.gates
    acc = next(one for one in report.benchmarks if one.metric == "acc_norm").tuned.value
    assert acc is not None
    assert (reached.task, reached.passed) == ("arc_easy", acc >= 0.1)
    assert reached.observed.startswith(f"{acc:.4f} (95 %:")
    assert (missed.requirement, missed.passed) == ("wikitext bits_per_byte better than Base by at least 100", False)
    assert not parsed.evaluation.passed
    assert "gates failed: " in outcome.message
    more = parsed.training.more_data
    assert more is not None
    assert (more.text in page(spec), parsed.evaluation.more_data) == (True, more.text)
    assert report.release == tasks.release()
    found = {(one.task, one.metric, one.filter): one for one in report.benchmarks}
    assert {task for task, _, _ in found} == {"arc_easy", "gsm8k", "lambada_openai", "wikitext"}
    assert found["arc_easy", "acc", None].examples == 8
    strict = found["gsm8k", "exact_match", "strict-match"]
    assert (strict.few_shot, strict.version) == (2, "3.0")
    bits = found["wikitext", "bits_per_byte", None]
    assert not bits.higher_is_better
    assert bits.base.value != bits.tuned.value
    assert bits.low is not None
    assert bits.gain is not None
    assert bits.low < bits.gain
    assert "Public benchmarks" in page(spec)
    assert "strict-match" in page(spec)
    assert missed.requirement in page(spec)


def test_no_model_waits_for_a_benchmark_whose_data_is_gone(
    world: World, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preflight ends the job for it; once a model is trained the report says what is missing."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    listed = [{"name": "piqa"}, {"name": "lambada_openai", "uris": data("lambada.jsonl", LAMBADA)}]
    spec = world(evaluation={"harness": {"tasks": listed}})
    assert spec.evaluation.harness is not None
    found, problems = tasks.available_tasks(spec, spec.evaluation.harness, storage.of(spec.storage))
    assert [one.name for one in found] == ["lambada_openai"]
    assert len(problems) == 1
    assert "piqa takes its dataset" in problems[0]
    gated = spec.evaluation.harness.model_copy(update={"gates": [job.TaskGate(task="piqa", margin=0.1)]})
    with pytest.raises(errors.Failure, match="piqa takes its dataset"):
        tasks.available_tasks(spec, gated, storage.of(spec.storage))
    wrong = spec.evaluation.harness.model_copy(update={"tasks": [job.Task(name="humaneval")]})
    with pytest.raises(errors.Failure, match="runs code"):
        tasks.available_tasks(spec, wrong, storage.of(spec.storage))


def test_preflight_refuses_what_the_evaluation_could_not_play(world: World, data: Data) -> None:
    spec = world(evaluation={"harness": {"tasks": [{"name": "humaneval", "uris": data("x.jsonl", ARC)}]}})
    with pytest.raises(errors.Failure, match="humaneval cannot run here: it runs code that the model wrote"):
        preflight.preflight(spec)


def test_a_gate_on_a_benchmark_is_checked_against_what_the_task_measures(world: World, wanted: dict[str, Any]) -> None:
    known = {task.name: measures.known(task) for task in loaded(world(evaluation={"harness": wanted}))}
    assert known["arc_easy"] == task_gates.Known(14, {"acc": True, "acc_norm": True}, ["none"])
    assert known["gsm8k"].filters == ["strict-match", "flexible-extract"]
    assert set(known["wikitext"].measures) == {"word_perplexity", "byte_perplexity", "bits_per_byte"}
    assert all(known["wikitext"].measures.values())


def test_preflight_refuses_a_gate_on_a_benchmark_that_no_model_passes_and_says_where_questions_are_few(
    world: World, data: Data
) -> None:
    listed = [{"name": "arc_easy", "uris": data("arc.jsonl", ARC)}]

    def gated(**gate: Any) -> run.Run:
        harness = {"tasks": listed, "gates": [{"task": "arc_easy", "measure": "acc", **gate}]}
        return world(evaluation={"harness": harness})

    with pytest.raises(errors.Failure, match=r"evaluation.harness.gates\[0\]: arc_easy .* cannot be passed") as caught:
        preflight.preflight(gated(minimum=0.9))
    assert caught.value.reason is reasons.Reason.INVALID_SPEC
    found = preflight.preflight(gated(margin=0.2)).preflight
    assert found is not None
    assert any("not worse than Base by 0.2 or more: with 14 questions" in line for line in found.advice)
    with pytest.raises(errors.Failure, match="cannot be passed"):
        preflight.preflight(gated(minimum=0.9))  # the split is frozen now: what was recorded of the task decides


@pytest.mark.slow
def test_without_benchmarks_the_package_is_not_imported() -> None:
    code = (
        "import sys; import finetune_trainer.stages.preflight, finetune_trainer.stages.evaluate; "
        "sys.exit(', '.join({'lm_eval', 'datasets', 'pandas', 'sklearn', 'evaluate'} & set(sys.modules)) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_chat_template_that_the_model_does_not_have_is_refused(
    world: World, data: Data, tmp_path: pathlib.Path
) -> None:
    tiny.make_tiny_model(tmp_path / "plain", template="")
    harness = {"chatTemplate": True, "tasks": [{"name": "lambada_openai", "uris": data("lambada.jsonl", LAMBADA)}]}
    texts = [{"text": f"Thank you for {n}, it is great!"} for n in range(60)]
    model_ = {"name": "plain", "source": f"file://{tmp_path}/plain"}
    with pytest.raises(errors.Failure, match="has no chat template; leave it out"):
        preflight.preflight(world(texts, baseModel=model_, evaluation={"harness": harness}))


def test_a_failing_benchmark_task_does_not_fail_the_others(world: World, base: pathlib.Path, data: Data) -> None:
    """Its aggregation cannot say how surprised a broken model is, for example."""
    listed = [{"name": name, "uris": data("lambada.jsonl", LAMBADA)} for name in ("lambada_openai", "lambada_standard")]
    spec = world(evaluation={"harness": {"tasks": listed}})
    rules = spec.evaluation.harness
    assert rules is not None
    plain = model.load(base, job.Precision.FLOAT32, CPU)
    encoder = tokens.load(base, spec.training)
    ours = in_process.InProcess(plain, model.head(plain), CPU, spec, encoder.tokenizer)
    asked = answers.ModelRunner(ours, encoder, contenders.Script(job.Prompt()), spec.evaluation)
    there = loaded(spec)

    def broken(items: Any) -> float:
        raise OverflowError("math range error")

    there[0].built.aggregation()["perplexity"] = broken
    shares: list[float] = []
    report, _ = play.measure(asked, there, ["piqa has no questions"], rules, shares.append)
    assert {one.task for one in report.benchmarks} == {"lambada_standard"}
    assert report.problems == [
        "piqa has no questions",
        "lambada_openai could not be run: OverflowError: math range error",
    ]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares.count(1.0) == 1


# --- Questions ---


def test_questions_are_chosen_by_the_seed_and_stay_as_they_are(world: World, data: Data) -> None:
    """gpqa shuffles the choices of a question whenever its questions are read."""
    harness = {"maximumExamples": 5, "tasks": [{"name": "gpqa_main_zeroshot", "uris": data("gpqa.jsonl", GPQA)}]}
    spec = world(evaluation={"harness": harness})
    (first,), (again,) = loaded(spec), loaded(spec)
    docs = list(first.built.eval_docs)
    assert len(docs) == first.questions == 5
    assert docs == list(first.built.eval_docs) == list(again.built.eval_docs)
    assert [doc["Question"] for doc in docs] == sorted(doc["Question"] for doc in docs)
    for doc in docs:
        letter = doc["answer"].strip("()")
        assert doc[f"choice{'ABCD'.index(letter) + 1}"].startswith("right"), "the answer is that of these choices"
    (other,) = loaded(world(training={"seed": 7}, evaluation={"harness": harness}))
    assert [doc["Question"] for doc in other.built.eval_docs] != [doc["Question"] for doc in docs]


def test_examples_to_show_come_from_their_own_files(world: World, data: Data) -> None:
    shots = [{"question": "Is 90 broken?", "answer": "It is.\n#### 90"}] * 3
    harness = {"tasks": [{"name": "gsm8k", "uris": data("gsm.jsonl", GSM), "fewShotUris": data("shots.jsonl", shots)}]}
    (task,) = loaded(world(evaluation={"harness": harness | {"tasks": [harness["tasks"][0] | {"fewShot": 3}]}}))
    assert all(one.args[0].count("#### 90") == 3 for one in task.built.instances)
    (none,) = loaded(
        world(evaluation={"harness": {"tasks": [{"name": "gsm8k", "uris": data("g.jsonl", GSM), "fewShot": 0}]}})
    )
    assert none.built.instances[0].args[0].count("Question:") == 1


def test_tasks_with_built_in_examples_need_no_files(world: World, data: Data) -> None:
    (task,) = loaded(world(evaluation={"harness": {"tasks": [{"name": "gsm8k_cot", "uris": data("gsm.jsonl", GSM)}]}}))
    assert task.shots == 8
    assert task.built.instances[0].args[0].count("Q:") == 9


@pytest.mark.parametrize(
    "task, words",
    [
        ({"name": "gsm8k"}, "gsm8k shows 5 questions with answers before each question: give them in fewShotUris"),
        ({"name": "gsm8k_cot_zeroshot", "fewShot": 2}, "does not support few-shot examples"),
        (
            {"name": "arc_easy"},
            r"cannot build questions from these rows, with the fields question, answer: .*allenai/ai2_arc",
        ),
    ],
)
def test_incomplete_benchmark_data_are_reported(world: World, data: Data, task: dict[str, Any], words: str) -> None:
    spec = world(evaluation={"harness": {"tasks": [task | {"uris": data("gsm.jsonl", GSM)}]}})
    with pytest.raises(errors.Failure, match=words):
        loaded(spec)


def test_a_row_that_does_not_fit_is_reported_though_the_first_one_does(world: World, data: Data) -> None:
    rows = [*ARC[:3], ARC[3] | {"answerKey": "Z"}]
    failure = failure_of(
        world(evaluation={"harness": {"tasks": [{"name": "arc_easy", "uris": data("arc.jsonl", rows)}]}})
    )
    assert "cannot build questions from these rows" in failure.message
    assert failure.reason is reasons.Reason.DATASET_INVALID


def test_rows_of_different_kinds_are_reported(world: World, data: Data) -> None:
    rows = [ARC[0], ARC[1] | {"choices": "none"}]
    failure = failure_of(
        world(evaluation={"harness": {"tasks": [{"name": "arc_easy", "uris": data("a.jsonl", rows)}]}})
    )
    assert "arc_easy cannot build questions from these rows" in failure.message


def test_files_that_cannot_be_read_are_reported_by_line(world: World, tmp_path: pathlib.Path) -> None:
    (tmp_path / "arc.jsonl").write_text(json.dumps(ARC[0]) + "\n{broken\n")
    (tmp_path / "empty.jsonl").write_text("\n")

    def of(name: str) -> errors.Failure:
        return failure_of(
            world(evaluation={"harness": {"tasks": [{"name": "arc_easy", "uris": [f"file://{tmp_path}/{name}"]}]}})
        )

    assert "arc.jsonl:2: not valid JSON" in of("arc.jsonl").message
    assert "has no questions" in of("empty.jsonl").message
    assert of("nowhere.jsonl").reason is reasons.Reason.DATASET_NOT_FOUND


# --- The hub ---


def test_without_a_way_to_the_hub_the_error_says_what_to_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    failure = failure_of(world(evaluation={"harness": {"tasks": [{"name": "arc_easy"}]}}))
    assert failure.reason is reasons.Reason.STORAGE_UNAVAILABLE
    assert (
        "arc_easy takes its dataset allenai/ai2_arc, ARC-Easy, test from the hub, which cannot be reached"
        in failure.message
    )
    assert "Give the task's data as files: uris" in failure.message


def test_datasets_that_are_made_by_a_script_are_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    config = {"dataset_path": "some/dataset", "dataset_kwargs": {"trust_remote_code": True}}
    with pytest.raises(errors.Failure, match="made by a script on the hub"):
        tasks._check_hub(catalogue.Entry("x", pathlib.Path(), config))


# --- Which tasks ---


@pytest.mark.parametrize(
    "name, words",
    [
        ("arc_esay", "is not a task of lm-evaluation-harness in this release; similar ones are arc_easy"),
        ("zzzzzzz", "for example arc_easy and hellaswag"),
        ("mmlu", "is a group of tasks: name single tasks, for example mmlu_"),
        ("humaneval", "it runs code that the model wrote"),
        ("20_newsgroups", "it is a Python class"),
        ("chartqa", "it asks about images or sounds"),
        ("babilong_qa1", "it makes or downloads its questions with its own code"),
        ("afrimmlu_direct_amh_prompt_1", "it downloads a metric as code"),
        ("wmt-ro-en-t5-prompt", "it downloads a metric as code: wer"),
        ("xlsum_amharic_prompt_1", "its utils.py imports evaluate"),
        ("gsm8k_cot_self_consistency", "its answers are sampled"),
        ("longbench_dureader", "its metrics.py imports jieba"),
        ("acp_areach_gen", "imports os"),
    ],
)
def test_tasks_that_may_not_run_are_refused_before_anything_of_theirs_is_imported(name: str, words: str) -> None:
    with pytest.raises(errors.Failure, match=words) as caught:
        catalogue.find([name])
    assert caught.value.reason is reasons.Reason.INVALID_SPEC
    assert f"evaluation.harness.tasks: {name} " in caught.value.message


def test_well_known_tasks_may_run() -> None:
    some = "arc_easy arc_challenge hellaswag winogrande piqa boolq openbookqa sciq copa commonsense_qa social_iqa race triviaqa"
    more = "nq_open drop gpqa_main_zeroshot bbh_cot_fewshot_navigate mmlu_anatomy mmlu_pro_math gsm8k gsm8k_cot lambada_openai"
    rest = "truthfulqa_mc2 wikitext belebele_deu_Latn mgsm_direct_de xnli_en"
    names = f"{some} {more} {rest}".split()
    assert [one.name for one in catalogue.find(names)] == names


@pytest.mark.parametrize(
    "text, words",
    [
        ("import subprocess", "imports subprocess"),
        ("def f():\n    from os import path", "imports os"),
        ("from . import other", "imports ."),
        ("def f(doc):\n    return eval(doc['answer'])", "uses eval"),
        ("import datasets\nd = datasets.load_dataset('x')", "uses load_dataset"),
        ("import pandas\nd = pandas.read_pickle('x')", "uses read_pickle"),
        ("from lm_eval.tasks.ruler.common_utils import f", "imports transformers"),
        ("from lm_eval.models.huggingface import HFLM", "imports lm_eval.models"),
        ("def f(:", "cannot be read"),
        ("import re, json\nfrom lm_eval.utils import weighted_f1_score", None),
        ("from lm_eval.tasks.hellaswag.utils import process_docs", None),
    ],
)
def test_functions_are_read_before_they_are_imported(tmp_path: pathlib.Path, text: str, words: str | None) -> None:
    (tmp_path / "utils.py").write_text(text)
    (tmp_path / "task.yaml").write_text("task: x\nmetric_list:\n  - metric: !function utils.f\n")
    found = refusal.of(description.read(tmp_path / "task.yaml"))
    assert words in found if words and found else found is words is None


def test_the_files_that_a_task_includes_are_checked_too(tmp_path: pathlib.Path) -> None:
    (tmp_path / "_common.yaml").write_text("unsafe_code: true\nnum_fewshot: 3\n")
    (tmp_path / "task.yaml").write_text("include: _common.yaml\ntask: x\nnum_fewshot: 1\n")
    config = description.read(tmp_path / "task.yaml")
    assert config["num_fewshot"] == 1
    assert refusal.of(config) == "it runs code that the model wrote"
