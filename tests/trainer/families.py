"""Tokenizers and chat templates in the ways that model families write them, small and made on the spot.

families.TOKENIZERS   name -> a function that makes a fast tokenizer of transformers
families.TEMPLATES    name -> a chat template (None: a base model without one)
families.TOOL_TEMPLATES  name -> a chat template that writes tools and calls as that family does, for tiny's tokenizer
"""

import functools
from collections.abc import Callable
from typing import Any

from tests.trainer import tiny

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>", "<start_of_turn>", "<end_of_turn>"]

TEXTS = [
    *tiny.CORPUS,
    "dog the fox answer th e quick\n\n  two lines\tand a tab",
    "ünï cödé ✓ 漢字 <think> </think> [INST] x [/INST]",
]

TEMPLATES: dict[str, str | None] = {
    "ChatML": tiny.CHAT_TEMPLATE,
    "Llama 3": (
        "{{ '<s>' }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_end|>\n\n' + m['content'] | trim + '</s>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\n\n' }}{% endif %}"
    ),
    "Llama 2": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
        "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
    ),
    # The system turn stands before the last question, and only while that is the last turn.
    "Mistral": (
        "{% if messages[0]['role'] == 'system' %}{% set system, turns = messages[0]['content'] + '\n\n', messages[1:] %}"
        "{% else %}{% set system, turns = '', messages %}{% endif %}{{ bos_token }}{% for m in turns %}"
        "{% if m['role'] == 'user' %}{{ '[INST]' + (system if loop.last else '') + m['content'] + '[/INST]' }}"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "Gemma": (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "a token that eats the spaces after it": (
        "{% for m in messages %}{{ m['role'] }}<|end|>{{ ' ' + m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant<|end|> {% endif %}"
    ),
    "blank lines before the answer": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n\n' }}{% endif %}"
    ),
    "no special token at all": (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    ),
    "a prompt that the answer merges with": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<|im_end|>{% else %}{{ m['content'] }} th"
        "{% endif %}{% endfor %}"
    ),
    "without": None,
}


TOOL_TEMPLATES: dict[str, str] = {
    "tiny": tiny.TOOL_TEMPLATE,
    # Tools in a system turn; results, those of one turn together, as a turn of the user.
    "Qwen 2.5": (
        "{% if tools %}<|im_start|>system\n<tools>{% for t in tools %}\n{{ t | tojson }}{% endfor %}\n</tools><|im_end|>\n"
        "{% endif %}{% for m in messages %}{% if m.role == 'tool' %}"
        "{% if loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}\n<tool_response>\n{{ m.content }}\n</tool_response>"
        "{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}"
        "{% else %}<|im_start|>{{ m.role }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
        "{% for c in m.tool_calls or [] %}{% set f = c.function %}"
        "{{ '\n<tool_call>\n{\"name\": \"' + f.name + '\", \"arguments\": ' + (f.arguments | tojson) + '}\n</tool_call>' }}"
        "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # Tools before the first question; one call at a time, distinguished from an answer by the presence of the key.
    "Llama 3.1": (
        "{% for m in messages %}{% if 'tool_calls' in m %}"
        "{% if m.tool_calls | length != 1 %}{{ raise_exception('only one call at a time') }}{% endif %}"
        "{% set f = m.tool_calls[0].function %}{{ '<|im_start|>assistant\n\n' }}"
        "{{ '{\"name\": \"' + f.name + '\", \"parameters\": ' + (f.arguments | tojson) + '}<|im_end|>' }}"
        "{% elif m.role == 'tool' %}{{ '<|im_start|>ipython\n\n' + (m.content | tojson) + '<|im_end|>' }}"
        "{% else %}{{ '<|im_start|>' + m.role + '\n\n' }}{% if loop.first and tools is not none %}"
        "{% for t in tools %}{{ (t | tojson(indent=4)) + '\n\n' }}{% endfor %}{% endif %}"
        "{{ (m.content | trim) + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
    ),
    # Tools before the last question; ids of nine letters and digits, which the model writes itself.
    "Mistral": (
        "{% set last = (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}{% for m in messages %}"
        "{% if m.role == 'user' %}{% if m == last and tools is not none %}[AVAILABLE_TOOLS] {{ tools | tojson }}"
        "[/AVAILABLE_TOOLS]{% endif %}[INST] {{ m.content }}[/INST]"
        "{% elif m.tool_calls is defined and m.tool_calls is not none %}[TOOL_CALLS] ["
        "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('ids of length 9') }}{% endif %}"
        "{{ (c.function | tojson)[:-1] + ', \"id\": \"' + c.id + '\"}' }}{% if not loop.last %}, {% endif %}{% endfor %}]"
        "<|im_end|>{% elif m.role == 'tool' %}"
        "{% if m.tool_call_id | length != 9 %}{{ raise_exception('ids of length 9') }}{% endif %}"
        '[TOOL_RESULTS] {"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]'
        "{% else %} {{ m.content | trim }}<|im_end|>{% endif %}{% endfor %}"
    ),
}


def _byte_level() -> Any:
    """As GPT-2, Llama 3 and Qwen: bytes as letters, the text cut by a pattern first."""
    import tokenizers as t

    inner = t.Tokenizer(t.models.BPE())
    inner.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = t.decoders.ByteLevel()
    inner.post_processor = t.processors.ByteLevel(trim_offsets=True)
    alphabet = t.pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXTS * 9, t.trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return inner


def _prepending() -> Any:
    """As Llama 2: a normalizer puts a space before every piece of text; the tokenizer adds a begin-of-sequence token."""
    import tokenizers as t

    inner = t.Tokenizer(t.models.BPE(unk_token="<unk>", fuse_unk=True))
    inner.normalizer = t.normalizers.Sequence([t.normalizers.Prepend("▁"), t.normalizers.Replace(" ", "▁")])
    inner.decoder = t.decoders.Metaspace()
    inner.train_from_iterator(TEXTS * 9, t.trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL))
    inner.post_processor = t.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return inner


def _unigram() -> Any:
    """As Gemma 1 and T5: a unigram model over whitespace marks, which come before the first word alone."""
    import tokenizers as t

    inner = t.Tokenizer(t.models.Unigram())
    inner.normalizer = t.normalizers.NFKC()
    inner.pre_tokenizer = t.pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = t.decoders.Metaspace(prepend_scheme="first")
    inner.train_from_iterator(
        TEXTS * 9, t.trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>")
    )
    ends = [("<s>", 1), ("</s>", 2)]
    inner.post_processor = t.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return inner


def _tokenizer(make: Callable[[], Any]) -> Any:
    import tokenizers as t
    import transformers

    inner = make()
    inner.add_special_tokens([t.AddedToken("<|end|>", rstrip=True, normalized=False)])
    inner.add_tokens(
        [t.AddedToken("parcel", normalized=True), t.AddedToken("item", single_word=True, normalized=False)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bytes": functools.cache(lambda: _tokenizer(_byte_level)),
    "prepended spaces": functools.cache(lambda: _tokenizer(_prepending)),
    "unigram": functools.cache(lambda: _tokenizer(_unigram)),
}
