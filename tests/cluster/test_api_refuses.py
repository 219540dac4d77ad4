"""What a real API server refuses, each with the field and the words that tell what to do."""

from typing import Any

import pytest

from support import manifests

pytestmark = pytest.mark.cluster

GATE = "evaluation.gates"
TAINT = "resources.tolerations"
ONE_OF = "supported values: "
JUDGE = {"endpoint": "https://judge.example/v1", "model": "wise"}
LARGE = {"name": "large", "endpoint": "https://models.example/v1", "model": "wise"}


def full(path: str) -> str:
    """The tables leave out `spec.`, where nearly everything lies."""
    return path if path.startswith(("metadata", "spec")) else f"spec.{path}".rstrip(".")


# A sentence, what is changed in the minimal job, the field that is named, words of the message.
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    # metadata
    ("a name above 40 characters", {"metadata.name": "a" * 41}, "metadata.name", "must have at most 40 characters"),
    ("a name with a dot", {"metadata.name": "a.b"}, "metadata.name", "must not contain a dot"),
    ("a name that begins with a digit", {"metadata.name": "7b"}, "metadata.name", "must begin with a letter"),
    (
        "the base model's own name for the tuned one",
        {"deployment": {"servedModelName": "qwen2.5-7b-instruct"}},
        "metadata.name",
        "must differ from baseModel.name",
    ),
    ("a name with capitals", {"metadata.name": "Support"}, "metadata.name", "lower case"),
    # what every job needs
    ("no spec", {"spec": manifests.REMOVED}, "spec", "Required value"),
    ("no base model", {"baseModel": manifests.REMOVED}, "baseModel", "Required value"),
    ("no dataset", {"dataset": manifests.REMOVED}, "dataset", "Required value"),
    ("no storage", {"storage": manifests.REMOVED}, "storage", "Required value"),
    ("no output", {"storage": {}}, "storage.output", "Required value"),
    # baseModel
    ("no model at all", {"baseModel": {}}, "baseModel", "set exactly one of baseModel.name"),
    (
        "both name and source of a model",
        {"baseModel": {"name": "a", "source": "hf://a/b"}},
        "baseModel",
        "set exactly one of baseModel.name",
    ),
    (
        "a revision for an entry of the catalogue",
        {"baseModel.revision": "main"},
        "baseModel",
        "baseModel.source",
    ),
    (
        "several base models beside one",
        {"baseModel.candidates": ["a", "b"]},
        "baseModel",
        "baseModel.candidates (several of them)",
    ),
    ("a single candidate", {"baseModel": {"candidates": ["a"]}}, "baseModel.candidates", "at least 2"),
    ("a candidate twice", {"baseModel": {"candidates": ["a", "a"]}}, "baseModel.candidates", "name a BaseModel twice"),
    (
        "candidates without a gate",
        {"baseModel": {"candidates": ["a", "b"]}, GATE: []},
        "spec",
        "baseModel.candidates needs gates",
    ),
    (
        "candidates in a pool",
        {"baseModel": {"candidates": ["a", "b"]}, "deployment": {"pool": "chat"}},
        "spec",
        "a ServingPool serves one base model",
    ),
    (
        "a candidate's own name for the tuned model",
        {"baseModel": {"candidates": ["a", "b"]}, "deployment": {"servedModelName": "b"}},
        "metadata.name",
        "must differ from each of baseModel.candidates",
    ),
    (
        "a model's name in capitals",
        {"baseModel.name": "Qwen2.5-7B"},
        "baseModel.name",
        "lower-case letters, digits",
    ),
    ("a model's URL", {"baseModel": {"source": "https://example.com/a/b"}}, "baseModel.source", "hf://"),
    ("a model without organisation", {"baseModel": {"source": "hf://gpt2"}}, "baseModel.source", "hf://org"),
    # dataset
    ("no training file", {"dataset.train": []}, "dataset.train", "at least 1 items"),
    ("no list of training files", {"dataset.train": manifests.REMOVED}, "dataset.train", "Required value"),
    ("a training file by https", {"dataset.train[0]": "https://a/b"}, "dataset.train[0]", "must be s3://"),
    ("a training file without a path", {"dataset.train[0]": "s3://b"}, "dataset.train[0]", "must be s3://"),
    ("a training file that ends with a space", {"dataset.train[0]": "s3://b/a "}, "dataset.train[0]", "white space"),
    ("a training file that ends with a line break", {"dataset.train[0]": "s3://b/a\n"}, "dataset.train[0]", "white space"),
    ("an output that ends with a space", {"storage.output": "s3://acme/out "}, "storage.output", "white space"),
    ("a training file twice", {"dataset.train": ["s3://b/a", "s3://b/a"]}, "dataset.train[1]", "Duplicate"),
    (
        "65 training files",
        {"dataset.train": [f"s3://b/{n}" for n in range(65)]},
        "dataset.train",
        "must have at most 64 items",
    ),
    ("a format that does not exist", {"dataset.format": "ShareGPT"}, "dataset.format", ONE_OF + '"Auto"'),
    (
        "both fraction and files of a split",
        {"dataset.test": {"fraction": 0.1, "uris": ["s3://b/a"]}},
        "dataset.test",
        "set exactly one of fraction and uris",
    ),
    ("a group without a name", {"dataset.groupBy": " "}, "dataset.groupBy", "name of a field of the rows"),
    ("an empty split", {"dataset.validation": {}}, "dataset.validation", "set exactly one of fraction and"),
    ("a fraction of zero", {"dataset.test.fraction": 0}, "dataset.test.fraction", "above 0"),
    ("a fraction in percent", {"dataset.test.fraction": 10}, "dataset.test.fraction", "at most 0.5: write 0.1 for 10 %"),
    (
        "splits that leave nothing to train on",
        {"dataset.test.fraction": 0.5, "dataset.validation.fraction": 0.5},
        "dataset",
        "below 1",
    ),
    (
        "a test file that is trained on",
        {"dataset.test": {"uris": ["s3://acme/support/train.jsonl"]}},
        "dataset",
        "dataset.test.uris must not name a file of dataset.train",
    ),
    (
        "a validation file that is trained on",
        {"dataset.validation": {"uris": ["s3://acme/support/train.jsonl"]}},
        "dataset",
        "dataset.validation.uris must not name a file of dataset.train",
    ),
    ("a check that does not exist", {"dataset.checks": {"typos": "Drop"}}, "dataset.checks", "are unreadable, schema"),
    ("a policy that YAML reads as false", {"dataset.checks": {"leakage": False}}, "dataset.checks.leakage", "type string"),
    ("a policy that does not exist", {"dataset.checks": {"secrets": "Off"}}, "dataset.checks.secrets", ONE_OF + '"Drop"'),
    ("a warning of what is no example", {"dataset.checks": {"schema": "Warn"}}, "dataset.checks", "write Drop or Fail"),
    ("dropping what is no row", {"dataset.checks": {"constantAnswers": "Drop"}}, "dataset.checks", "write Warn, Fail or Ignore"),
    ("zero minimum examples", {"dataset.minimumExamples": 0}, "dataset.minimumExamples", "greater than or equal to 1"),
    # intent
    ("a goal that does not exist", {"intent.goals": ["Fame"]}, "intent.goals[0]", ONE_OF + '"Style"'),
    ("a goal twice", {"intent.goals": ["Format", "Format"]}, "intent.goals[1]", "Duplicate"),
    ("an empty prompt of today", {"intent.prompt.system": ""}, "intent.prompt.system", "at least 1"),
    ("65 examples in a prompt", {"intent.prompt.fewShot": 65}, "intent.prompt.fewShot", "less than or equal to 64"),
    ("a budget of 1,000 %", {"evaluation.baselineBudget": 11}, "evaluation.baselineBudget", "write 0.1 for 10 %"),
    (
        "an optimizer of prompts that are not tried",
        {
            "intent.prompt.optimizer": {"endpoint": "https://models.example/v1", "model": "wise"},
            "evaluation.baselines": ["Prompt"],
        },
        "",
        "name it in evaluation.baselines, too",
    ),
    (
        "to train with a prompt that is not there",
        {"training.prompt": "Prompt"},
        "",
        "training.prompt Prompt needs intent.prompt.system",
    ),
    (
        "a teacher without a prompt",
        {"training.teacher": "Prompt"},
        "",
        "training.teacher Prompt needs intent.prompt.system",
    ),
    (
        "to be better than the teacher",
        {"training.teacher": "Prompt", "intent.prompt.system": "Sort.", GATE: [{"metric": "Loss", "over": "FewShot"}]},
        "",
        "the answers with it are the reference",
    ),
    (
        "a teacher that is nobody",
        {"training.teacher": "large"},
        "",
        "training.teacher must be Prompt or the name of one of evaluation.candidates",
    ),
    (
        "to be better than the candidate that teaches",
        {
            "training.teacher": "large",
            "evaluation.candidates": [{"name": "large", "endpoint": "https://models.example/v1", "model": "wise-70b"}],
            GATE: [{"metric": "ExactMatch", "over": "large"}],
        },
        "",
        "a gate cannot be over training.teacher",
    ),
    (
        "to be better than a prompt that is not there",
        {GATE: [{"metric": "Loss", "over": "Prompt"}]},
        "",
        "a gate over Prompt needs intent.prompt.system",
    ),
    (
        "to be better than examples that are not shown",
        {"intent.prompt.fewShot": 0, GATE: [{"metric": "Loss", "over": "FewShot"}]},
        "",
        "a gate over FewShot needs intent.prompt.fewShot",
    ),
    # what a gate's metric needs
    (
        "a baseline that is to be beaten and takes no part",
        {"evaluation": {"baselines": ["Base"], "gates": [{"metric": "Loss", "over": "FewShot"}]}},
        "evaluation",
        "must be one of evaluation.baselines",
    ),
    ("labels that nobody named", {GATE: [{"metric": "MacroF1", "minimum": 0.8}]}, "evaluation", "needs evaluation.labels"),
    ("one label", {"evaluation.labels": ["yes"]}, "evaluation.labels", "at least 2 items"),
    ("a schema that nobody gave", {GATE: [{"metric": "JsonSchema", "minimum": 1}]}, "evaluation", "evaluation.outputSchema"),
    ("samples that are not requested", {GATE: [{"metric": "Consistency", "minimum": 1}]}, "evaluation", "evaluation.consistency"),
    (
        "a judge that nobody named",
        {GATE: [{"metric": "JudgeWinRate", "over": "Base"}]},
        "evaluation",
        "a gate on JudgeWinRate needs evaluation.judge",
    ),
    (
        "a judge of one answer",
        {"evaluation": {"judge": JUDGE, "gates": [{"metric": "JudgeWinRate", "minimum": 0.6}]}},
        f"{GATE}[0]",
        "set over",
    ),
    (
        "wins by a margin",
        {"evaluation": {"judge": JUDGE, "gates": [{"metric": "JudgeWinRate", "over": "Base", "improvement": 0.1}]}},
        f"{GATE}[0]",
        "set minimum, for example 0.6",
    ),
    ("a judge without a name", {"evaluation.judge": {"endpoint": JUDGE["endpoint"]}}, "evaluation.judge.model", "Required value"),
    ("a judge by file", {"evaluation.judge": JUDGE | {"endpoint": "file:///x"}}, "evaluation.judge.endpoint", "http or https"),
    (
        "a judge's key in its URL",
        {"evaluation.judge": JUDGE | {"endpoint": "https://me:key@judge.example/v1"}},
        "evaluation.judge.endpoint",
        "without user, query and fragment",
    ),
    ("no benchmark", {"evaluation.harness": {"tasks": []}}, "evaluation.harness.tasks", "at least 1 items"),
    (
        "a benchmark by its folder",
        {"evaluation.harness": {"tasks": [{"name": "s3://acme/tasks/mine.yaml"}]}},
        "evaluation.harness.tasks[0].name",
        "the name of a task of lm-evaluation-harness",
    ),
    (
        "a benchmark twice",
        {"evaluation.harness": {"tasks": [{"name": "arc_easy"}, {"name": "arc_easy", "fewShot": 1}]}},
        "evaluation.harness.tasks[1]",
        "Duplicate value",
    ),
    (
        "examples of files and questions of the hub",
        {"evaluation.harness": {"tasks": [{"name": "gsm8k", "fewShotUris": ["s3://acme/gsm8k/train.jsonl"]}]}},
        "evaluation.harness.tasks[0]",
        "fewShotUris needs uris",
    ),
    (
        "a gate on a benchmark that is not asked",
        {"evaluation.harness": {"tasks": [{"name": "arc_easy"}], "gates": [{"task": "gsm8k", "minimum": 0.5}]}},
        "evaluation.harness",
        "must be the name of one of evaluation.harness.tasks",
    ),
    (
        "a gate on a benchmark that requires nothing",
        {"evaluation.harness": {"tasks": [{"name": "arc_easy"}], "gates": [{"task": "arc_easy"}]}},
        "evaluation.harness.gates[0]",
        "needs minimum, maximum, improvement or margin",
    ),
    (
        "a gain and a loss on a benchmark",
        {
            "evaluation.harness": {
                "tasks": [{"name": "arc_easy"}],
                "gates": [{"task": "arc_easy", "improvement": 0.1, "margin": 0.1}],
            }
        },
        "evaluation.harness.gates[0]",
        "give one of them",
    ),
    (
        "to beat a model that is not named",
        {"evaluation": {"candidates": [LARGE], "gates": [{"metric": "ExactMatch", "over": "larger"}]}},
        "evaluation",
        "the name of one of evaluation.candidates",
    ),
    (
        "to beat what no contender is called",
        {GATE: [{"metric": "ExactMatch", "over": "Best Baseline"}]},
        f"{GATE}[0].over",
        "must be one of Base, Prompt",
    ),
    (
        "a lower loss than a model at an endpoint",
        {"evaluation": {"candidates": [LARGE], "gates": [{"metric": "Loss", "over": "large"}]}},
        f"{GATE}[0]",
        "has only metrics of its answers",
    ),
    (
        "a candidate with the name of a baseline",
        {"evaluation": {"candidates": [LARGE | {"name": "Base"}]}},
        "evaluation.candidates[0].name",
        "must be lower-case letters, digits",
    ),
    ("to forget less than the base", {GATE: [{"metric": "Forgetting", "over": "Base"}]}, f"{GATE}[0]", "set maximum"),
    ("to diverge less than the base", {GATE: [{"metric": "Divergence", "over": "Base"}]}, f"{GATE}[0]", "set maximum"),
    ("certainty", {GATE: [{"metric": "Loss", "maximum": 1, "confidence": 1}]}, f"{GATE}[0].confidence", "write 0.95 for 95 %"),
    ("one sample", {"evaluation.consistency": {"samples": 1}}, "evaluation.consistency.samples", "greater than or equal to 2"),
    # storage
    ("an output without scheme", {"storage.output": "acme/x"}, "storage.output", "must be s3://bucket/prefix"),
    ("an output with a wildcard", {"storage.output": "s3://acme/*"}, "storage.output", "wildcards"),
    ("an output that climbs", {"storage.output": "s3://acme/a/../b"}, "storage.output", "must not contain '..'"),
    ("a bucket in capitals", {"storage.output": "s3://Acme"}, "storage.output", "must be s3://bucket/prefix"),
    ("an endpoint without scheme", {"storage.endpoint": "minio:9000"}, "storage.endpoint", "https://minio"),
    ("a KMS key without KMS", {"storage.kmsKeyId": "k"}, "storage", "storage.encryption KMS"),
    ("an addressing of another kind", {"storage.addressing": "Auto"}, "storage.addressing", "VirtualHost"),
    ("an endpoint with a line break", {"storage.endpoint": "https://minio:9000\n"}, "storage.endpoint", "https://minio"),
    ("an endpoint with a query", {"storage.endpoint": "https://minio/?a=1"}, "storage.endpoint", "https://minio"),
    (
        "an endpoint with a password",
        {"storage.endpoint": "https://key:secret@minio:9000"},
        "storage.endpoint",
        "https://minio.example:9000",
    ),
    ("a region with a space", {"storage.region": "EU West"}, "storage.region", "for example eu-west-1"),
    ("a Secret's name with a slash", {"storage.credentialsSecret": "ml/s3"}, "storage.credentialsSecret", "name of"),
    # training
    ("an objective that is not there", {"training.objective": "PPO"}, "training.objective", ONE_OF + '"SFT", "DPO"'),
    ("a method that is not there", {"training.method": "DoRA"}, "training.method", ONE_OF + '"LoRA", "QLoRA"'),
    ("settings of another objective", {"training.dpo": {"beta": 0.1}}, "training", "training.dpo needs training.objective DPO"),
    (
        "a beta of zero",
        {"training": {"objective": "DPO", "dpo": {"beta": 0}}},
        "training.dpo.beta",
        "greater than 0",
    ),
    (
        "a beta above ten",
        {"training": {"objective": "DPO", "dpo": {"beta": 11}}},
        "training.dpo.beta",
        "less than or equal to 10",
    ),
    (
        "chats to prefer",
        {"training.objective": "DPO", "dataset.format": "Chat"},
        "",
        "set dataset.format to Preference or Auto",
    ),
    (
        "preferences to imitate",
        {"dataset.format": "Preference"},
        "",
        "dataset.format Preference needs training.objective DPO",
    ),
    ("a rank that vLLM does not serve", {"training.lora.rank": 12}, "training.lora.rank", ONE_OF + '"8", "16"'),
    ("a dropout of one", {"training.lora.dropout": 1}, "training.lora.dropout", "less than 1"),
    ("layers by name", {"training.lora.targetModules": ["q_proj"]}, "training.lora.targetModules", "string"),
    ("layers of another kind", {"training.lora.targetModules": "all"}, "training.lora.targetModules", "AllLinear"),
    ("replay of pairs", {"training": {"objective": "DPO", "replay": {"share": 0.1}}}, "training", "needs training.objective SFT"),
    ("nothing but replay", {"training.replay": {"share": 0.9}}, "training.replay.share", "at most 0.5"),
    ("both epochs and steps", {"training": {"epochs": 1, "maxSteps": 1}}, "training", "set at most one of"),
    ("zero epochs", {"training.epochs": 0}, "training.epochs", "greater than 0"),
    ("half a step", {"training.maxSteps": 1.5}, "training.maxSteps", "integer"),
    ("a learning rate of zero", {"training.learningRate": 0}, "training.learningRate", "greater than 0"),
    ("a search of one learning rate", {"training.search": {"learningRates": 1}}, "training.search.learningRates", "2"),
    ("a learning rate above one", {"training.learningRate": 2}, "training.learningRate", "less than or equal to 1"),
    ("a learning rate as text", {"training.learningRate": "2e-4"}, "training.learningRate", "number"),
    ("a batch of nothing", {"training.batchSize": 0}, "training.batchSize", "greater than or equal to 1"),
    ("sequences of 8 tokens", {"training.maxSequenceLength": 8}, "training.maxSequenceLength", "equal to 16"),
    ("a precision of NumPy", {"training.precision": "bf16"}, "training.precision", "BFloat16"),
    ("21 retries", {"training.retries": 21}, "training.retries", "less than or equal to 20"),
    ("a negative seed", {"training.seed": -1}, "training.seed", "greater than or equal to 0"),
    ("checkpoints that are not kept", {"training.checkpoints.keep": 0}, "training.checkpoints.keep", "equal to 1"),
    # resources
    ("no nodes", {"resources.nodes": 0}, "resources.nodes", "greater than or equal to 1"),
    ("65 nodes", {"resources.nodes": 65, "training.batchSize": 65}, "resources.nodes", "less than or equal to 64"),
    ("half a node", {"resources.nodes": 1.5}, "resources.nodes", "integer"),
    (
        "GPUs without an example",
        {"resources": {"nodes": 3, "gpus": 8}},
        "",
        "training.batchSize must be at least resources.nodes times resources.gpus",
    ),
    (
        "nodes without an example",
        {"resources": {"nodes": 17, "gpus": 0}},
        "",
        "training.batchSize must be at least resources.nodes times resources.gpus",
    ),
    ("17 GPUs in a pod", {"resources.gpus": 17}, "resources.gpus", "less than or equal to 16"),
    ("a GPU type without GPUs", {"resources": {"gpus": 0, "gpuType": "l4"}}, "resources", "gpuType needs"),
    ("a queue with a slash", {"resources.queueName": "ml/team-a"}, "resources.queueName", "must be the name of a LocalQueue"),
    ("a queue of 64 letters", {"resources.queueName": "q" * 64}, "resources.queueName", "Too long"),
    ("cores of nonsense", {"resources.requests.cpu": "four"}, "resources.requests.cpu", "500m, 4 or 32Gi"),
    ("negative cores", {"resources.requests.cpu": -1}, "resources.requests.cpu", "must be a quantity"),
    ("no cores", {"resources.requests.cpu": 0}, "resources.requests.cpu", "above 0"),
    ("millicores without the m", {"resources.requests.cpu": 4000}, "resources.requests.cpu", "at most 1024"),
    ("a fraction of a core as a number", {"resources.requests.cpu": 0.5}, "resources.requests.cpu", "integer,string"),
    ("memory without a unit", {"resources.requests.memory": 32}, "resources.requests.memory", "write 32Gi, not 32"),
    ("memory in thousandths", {"resources.requests.memory": "512m"}, "resources.requests.memory", "at least 64Mi"),
    ("memory in GB", {"resources.requests.memory": "32GB"}, "resources.requests.memory", "32Gi"),
    ("disk without a unit", {"resources.requests.ephemeralStorage": 40}, "resources.requests.ephemeralStorage", "write 40Gi"),
    ("less cores than it requests", {"resources": {"requests": {"cpu": 4}, "limits": {"cpu": "500m"}}}, "resources",
     "resources.limits.cpu must not be below"),
    ("less memory than it requests", {"deployment.resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "2G"}}},
     "deployment.resources", "resources.limits.memory must not be below"),
    ("a label with spaces", {"resources.nodeSelector": {"a b": "c"}}, "resources.nodeSelector", "kubernetes.io/arch"),
    ("a label's value with spaces", {"resources.nodeSelector": {"a": "b c"}}, "resources.nodeSelector[a]", "letters, digits"),
    ("Exists with a value", {TAINT: [{"key": "a", "operator": "Exists", "value": "b"}]}, f"{TAINT}[0]", "not have a value"),
    ("Equal without a key", {TAINT: [{"value": "b"}]}, f"{TAINT}[0]", "without a key needs operator Exists"),
    ("seconds without NoExecute", {TAINT: [{"key": "a", "tolerationSeconds": 1}]}, f"{TAINT}[0]", "needs effect NoExecute"),
    # evaluation
    ("a gate without a bound", {GATE: [{"metric": "Loss"}]}, f"{GATE}[0]", "needs minimum, maximum or over"),
    ("a gate without a metric", {GATE: [{"minimum": 0.5}]}, f"{GATE}[0].metric", "Required value"),
    ("a gate in percent", {GATE: [{"metric": "ExactMatch", "minimum": 80}]}, f"{GATE}[0]", "write 0.8 for 80 %"),
    ("a gate for nobody", {GATE: [{"metric": "Loss", "minimum": 2, "maximum": 1}]}, f"{GATE}[0]", "maximum"),
    ("better than whom", {GATE: [{"metric": "Loss", "maximum": 1, "improvement": 1}]}, f"{GATE}[0]", "needs over"),
    ("better than itself", {GATE: [{"metric": "Loss", "over": "Tuned"}]}, f"{GATE}[0].over", "must be one of Base"),
    ("a worsening", {GATE: [{"metric": "Loss", "over": "Base", "improvement": -1}]}, f"{GATE}[0].improvement", "equal to 0"),
    ("a metric that is not measured", {GATE: [{"metric": "BLEU", "minimum": 0}]}, f"{GATE}[0].metric", ONE_OF + '"ExactMatch"'),
    # deployment
    ("no replicas", {"deployment.replicas": 0}, "deployment.replicas", "greater than or equal to 1"),
    ("an image with a space", {"deployment.image": "vllm :1"}, "deployment.image", "vllm/vllm-openai:v0.20.0"),
    ("a route without a key", {"deployment.route": {"host": "a.b"}}, "deployment", "needs deployment.apiKeySecret"),
    ("a pool's job with its own sleep", {"deployment": {"pool": "chat", "idle": {}}}, "deployment", "by its own spec.idle"),
    ("a URL as host", {"deployment": {"route": {"host": "https://a.b"}, "apiKeySecret": "key"}}, "deployment.route.host",
     "without scheme, port"),
    ("a served name with a space", {"deployment.servedModelName": "my model"}, "deployment.servedModelName", "letters, digits"),
    ("an argument of the operator's", {"deployment.extraArgs": ["--model=x"]}, "deployment.extraArgs", "--model=x: jobs may"),
    ("code from the hub", {"deployment.extraArgs": ["--trust_remote_code"]}, "deployment.extraArgs", "BaseModel spec.defaults"),
    ("code by half a name", {"deployment.extraArgs": ["--seed=1", "--trust-rem"]}, "deployment.extraArgs", "--trust-rem:"),
    ("an argument by half a name", {"deployment.extraArgs": ["--max-model=8"]}, "deployment.extraArgs", "--max-model-len"),
    ("code from the hub with a dot", {"deployment.extraArgs": ["--trust-remote-code.a"]}, "deployment.extraArgs", "serving.args"),
    ("a short argument", {"deployment.extraArgs": ["-O3"]}, "deployment.extraArgs", "contain -O3:"),
    ("an end of all arguments", {"deployment.extraArgs": ["--"]}, "deployment.extraArgs", "jobs may set"),
    ("two arguments in one", {"deployment.extraArgs": ["--max-model-len 4096"]}, "deployment.extraArgs", "joined by '='"),
    ("steps that fall", {"deployment": {"pool": "a", "rollout": {"steps": [{"weight": 50}, {"weight": 10}]}}},
     "deployment.rollout", "must not fall"),
    ("a rollout of Kubernetes", {"deployment.rollout.strategy": "RollingUpdate"}, "deployment.rollout.strategy", "BlueGreen"),
    # the rest
    ("advice that is off", {"intent.advice": "Off"}, "intent.advice", ONE_OF + '"Enforce"'),
    ("suspend as text", {"suspend": "yes"}, "suspend", "boolean"),
    ("no time at all", {"activeDeadlineSeconds": 0}, "activeDeadlineSeconds", "greater than or equal to 1"),
    ("a negative time to live", {"ttlSecondsAfterFinished": -1}, "ttlSecondsAfterFinished", "equal to 0"),
]  # fmt: skip


@pytest.mark.parametrize(
    "changes, field, words", [pytest.param(*case[1:], id=case[0].replace(" ", "_")) for case in REFUSED]
)
def test_a_job_is_refused_that_has(dry, changes, field, words):
    found = dry.refusal(manifests.changed(manifests.MINIMAL, **{full(path): value for path, value in changes.items()}))
    assert [message for at, message in found if at == full(field) and words in message], found


@pytest.mark.parametrize(
    "path",
    [
        "spec.epochs",
        "spec.training.learning_rate",
        "spec.deployment.vllm",
        "spec.dataset.test.split",
        "spec.dataset.storage.output",
        "spec.evaluation.resources.nodes",
        "spec.deployment.resources.nodes",
    ],
)
def test_a_field_that_does_not_exist_is_refused_by_name(dry, path):
    base = manifests.changed(manifests.MINIMAL, **{"spec.dataset.test.fraction": 0.1})
    [(_, message)] = dry.refusal(manifests.changed(base, **{path: 1}))
    assert f'unknown field "{path}"' in message


REFUSED_ENTRIES: list[tuple[str, dict[str, Any], str, str]] = [
    ("no source", {"source": manifests.REMOVED}, "source", "Required value"),
    ("a folder as source", {"source": "/models/qwen"}, "source", "file:///path"),
    ("no layers", {"architecture.layers": 0}, "architecture.layers", "greater than or equal to 1"),
    ("heads that do not divide", {"architecture.keyValueHeads": 5}, "architecture", "must divide attentionHeads"),
    ("half an architecture", {"architecture": {"layers": 28}}, "architecture.hiddenSize", "Required value"),
    ("a token's value", {"accessTokenSecret": "hf_AbC"}, "accessTokenSecret", "must be the name of a Kubernetes"),
    (
        "an argument of the operator's",
        {"defaults.serving.extraArgs": ["--served_model_name=x"]},
        "defaults.serving.extraArgs",
        "which the operator sets",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "changes, field, words", [pytest.param(*case[1:], id=case[0].replace(" ", "_")) for case in REFUSED_ENTRIES]
)
def test_an_entry_of_the_catalogue_is_refused_that_has(dry, changes, field, words):
    found = dry.refusal(manifests.changed(manifests.ENTRY, **{full(path): value for path, value in changes.items()}))
    assert [message for at, message in found if at == full(field) and words in message], found
