"""The model behind lm-evaluation-harness's interface: the numbers of its own wrapper, computed by the evaluation's engine."""

from collections.abc import Callable
from typing import Any

from lm_eval import utils
from lm_eval.api import model
from lm_eval.models import utils as models

from finetune_api import job
from finetune_trainer.data import tokens
from finetune_trainer.evaluation import answers, engines

LENGTH = 2048
"""Positions of a model whose configuration does not say how many it has; the same default as there."""

ANSWER = 256
"""Tokens of an answer where a task does not say how many; the same default as there."""

Done = Callable[[float], None]


class Player(model.TemplateLM):  # type: ignore[misc]
    """The model as one contender. `done` is called with the share of a kind of request that is done."""

    def __init__(self, runner: answers.ModelRunner, which: job.Contender, done: Done) -> None:
        super().__init__()
        self.tokenizer = runner.encoder.tokenizer
        self._runner, self._which, self._done = runner, which, done
        self.max_length: int = runner.engine.positions or LENGTH

    @property
    def eot_token_id(self) -> int:
        found: int = self.tokenizer.eos_token_id
        return found

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Adds no second begin-of-sequence token to a text that has one."""
        if add_special_tokens is None and models.has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        found: list[int] = self.tokenizer.encode(string, **options)
        return found

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """For each (texts, context, continuation): the log-probability of the continuation, and whether it is the greedy
        answer."""
        encoded = []
        for _texts, context, continuation in requests:
            ids = (context + continuation)[-self.max_length - 1 :]
            known = max(1, len(ids) - len(continuation))
            encoded.append(tokens.Encoded(ids, [False] * known + [True] * (len(ids) - known)))
        return self._runner.engine.likelihoods(
            self._which, encoded, lambda count: self._done(count / max(1, len(encoded)))
        )

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, in windows of the model's length."""
        windows = [
            [
                (None, *utils.make_disjoint_window(pair))
                for pair in utils.get_rolling_token_windows(
                    self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
                )
            ]
            for request in requests
        ]
        found = iter(self._loglikelihood_tokens([window for text in windows for window in text]))
        return [sum(next(found)[0] for _ in text) for text in windows]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The greedy answer to each request, up to the first of its stop sequences."""
        found = [""] * len(requests)
        of_one_kind: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            of_one_kind.setdefault(repr(request.args[1]), []).append(place)
        over = 0
        for places in of_one_kind.values():

            def done(count: int, before: int = over) -> None:
                self._done((before + count) / len(requests))

            contexts = [requests[place].args[0] for place in places]
            for place, answer in zip(places, self._answers(contexts, requests[places[0]].args[1], done), strict=True):
                found[place] = answer
            over += len(places)
        return found

    def _answers(self, contexts: list[str], how: dict[str, Any], done: Callable[[int], None]) -> list[str]:
        wanted = models.normalize_gen_kwargs(how, ANSWER)
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        until = models.handle_stop_sequences(wanted.get("until"), eos=end)
        limit = wanted["max_gen_toks"]
        room = max(1, self.max_length - limit)
        prompts = [self.tok_encode(context)[-room:] for context in contexts]
        stops = self._runner.encoder.stops | {self.eot_token_id}
        ending = engines.Ending(stops, limit, tuple(text for text in until if text))
        written = self._runner.engine.greedy(self._which, prompts, ending, done)
        texts = (self.tokenizer.decode(ids, skip_special_tokens=True) for ids in written)
        return [models.postprocess_generated_text(text, until, None) for text in texts]

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text; without its system turn where the template does not support one."""
        try:
            return self._rendered(chat_history, add_generation_prompt)
        except Exception:
            return self._rendered([turn for turn in chat_history if turn["role"] != "system"], add_generation_prompt)

    def _rendered(self, turns: list[dict[str, str]], answer: bool) -> str:
        found: str = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=answer, continue_final_message=not answer
        )
        return found
