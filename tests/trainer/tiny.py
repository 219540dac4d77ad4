"""A base model made in a second: a random Llama with a trained tokenizer and a chat template, which vLLM can serve too.

tiny.make_tiny_model(folder)      the files of a model folder
tiny.examples(40)                 chats that it can learn by heart
tiny.run_file(folder, ...)        a run file with file:// URIs
"""

import json
import pathlib
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The same for chats with tools, in the dialect of Hermes 2 Pro and Qwen 2.5."""

CORPUS = [
    "You sort mail. Answer with JSON only.",
    'user assistant system {"intent": "refund", "reply": true} {"intent": "praise", "reply": false}',
    "I want my money back for item 12. The parcel 345 is late. Thank you for 678, it is great! Is 90 broken?",
    "the quick brown fox jumps over the lazy dog, and where is the order of last week?",
]


def make_tiny_model(
    folder: pathlib.Path,
    *,
    seed: int = 0,
    hidden: int = 128,
    layers: int = 2,
    tied: bool = True,
    template: str = CHAT_TEMPLATE,
) -> None:
    """Writes config, safetensors, tokenizer and chat template of a random Llama with a vocabulary of 384."""
    import torch
    import transformers

    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    config = transformers.LlamaConfig(
        vocab_size=384,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer() -> Any:
    """A byte-level BPE tokenizer with 384 tokens."""
    import tokenizers
    import transformers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator(CORPUS * 10, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def examples(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    """Chats with distinct prompts whose answer is one of two JSON objects."""
    kinds = [
        ("I want my money back for item {n}.", {"intent": "refund", "reply": True}),
        ("Thank you for {n}, it is great!", {"intent": "praise", "reply": False}),
    ]
    found = []
    for number in range(start, start + count):
        prompt, answer = kinds[number % 2]
        turns = [("system", "You sort mail."), ("user", prompt.format(n=number)), ("assistant", json.dumps(answer))]
        found.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return found


def tool(name: str, **properties: str) -> dict[str, Any]:
    """A function as OpenAI's API has it; properties: names and JSON types of what it must be given."""
    schema = {name: {"type": kind} for name, kind in properties.items()}
    parameters = {"type": "object", "properties": schema, "required": list(schema)}
    return {"type": "function", "function": {"name": name, "description": f"To {name}", "parameters": parameters}}


def call(name: str, *, id: str = "", **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"type": "function", "function": function} | ({"id": id} if id else {})


SHORT = ["Base", "Prompt", "FewShot", "Retrieved", "ManyShot", "RAG", "Structured"]
"""Baselines without a search among prompts, which takes seconds even of a tiny model."""

TOOLS = [tool("refund", item="integer"), tool("thank")]


def calling(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    """Chats with distinct prompts that end with a call of one of two tools."""
    kinds = [
        ("I want my money back for item {n}.", call("refund", id="call_a", item=1)),
        ("Thank you for {n}, it is great!", call("thank", id="call_b")),
    ]
    found = []
    for number in range(start, start + count):
        prompt, made = kinds[number % 2]
        turns = [{"role": "user", "content": prompt.format(n=number)}]
        found.append({"messages": [*turns, {"role": "assistant", "tool_calls": [made]}], "tools": TOOLS})
    return found


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def run_document(base: str, train: list[str], output: str, **changes: Any) -> dict[str, Any]:
    """A run file's contents. `changes` replace whole sections, except training and dataset, which they complete."""
    document: dict[str, Any] = {
        "name": "tiny",
        "namespace": "ml",
        "uid": "tiny-uid",
        "revision": "r1",
        "evaluationHash": "e1",
        "servedModelName": "tiny-tuned",
        "baseModel": {"name": "tiny-base", "source": base},
        "dataset": {"train": train, "minimumExamples": 1},
        "storage": {"output": output},
        "training": {"lora": {"rank": 8, "alpha": 16}, "learningRate": 0.01, "batchSize": 8, "maxSteps": 12},
        "evaluation": {"generation": {"maxNewTokens": 24}, "gates": []},
    }
    for key, value in changes.items():
        merged = key in ("training", "dataset", "storage")
        document[key] = document[key] | value if merged else value
    document["evaluation"] = {"baselines": SHORT} | document["evaluation"]
    return document


def run_file(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """A whole world in a folder: tiny model, 60 examples, and the run file that this returns."""
    if not (folder / "base").exists():
        make_tiny_model(folder / "base")
    if not (folder / "train.jsonl").exists():
        (folder / "train.jsonl").write_text(jsonl(examples(60)))
    document = run_document(
        f"file://{folder}/base", [f"file://{folder}/train.jsonl"], f"file://{folder}/out", **changes
    )
    path = folder / "run.json"
    path.write_text(json.dumps(document))
    return path
