"""The base model in memory: loading from a local folder, and the hidden states of a batch."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import torch

from finetune_api import job, reasons
from finetune_trainer.engine import devices, loss
from finetune_trainer.process import errors, imports, log, machine

IGNORED = -1
"""Target of a position that is not learned."""
NO_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"


def load(
    folder: pathlib.Path,
    precision: job.Precision,
    where: torch.device,
    quantised: bool = False,
    part: tuple[int, int] | None = None,
) -> Any:
    """The frozen base model; quantised: its linear layers in 4 bits (nf4, double quantisation), except the head.

    part: rank and number of the processes that share its layers: of these one weight after the other is read, and only the
    process's part of it kept, for `sharded`. A model that is stored quantised in another way than bitsandbytes' 4 bits is loaded
    whole then, into the host's memory.
    Safetensors only, and no code of the model's own. Raises Failure(ModelInvalid), and as `devices.dtype`.
    """
    stored = json.loads((folder / "config.json").read_text()).get("quantization_config")
    if not quantised and not stored:
        imports.leave_out("bitsandbytes", "peft")  # which would import it, and torch's compiler with it
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch_dtype = devices.dtype(precision, where)
    storage = nf4(torch_dtype) if quantised else None
    given: dict[str, Any] = {}
    in_turn = False
    try:
        if part is not None and stored and not stored.get("load_in_4bit"):
            where = torch.device("cpu")
        elif part is not None:
            from finetune_trainer.engine import own_part

            if stored:  # else it quantises, where transformers starts no threads
                in_turn = True
                storage = transformers.BitsAndBytesConfig.from_dict(stored)
                given["config"] = transformers.AutoConfig.from_pretrained(
                    folder, trust_remote_code=False, local_files_only=True
                )
                del given["config"].quantization_config  # transformers would load the weights whole
            storage = own_part.OwnPart(*part, storage, stored=bool(stored))
        if storage is not None:  # None would be taken for what config.json says of it
            given["quantization_config"] = storage
        with _reading(in_turn):
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch_dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                device_map={"": where} if where.type == "cuda" or storage else None,
                **given,
            )
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        if errors.out_of_memory(error):
            raise
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID, f"the base model could not be loaded: {' '.join(str(error).split())[:500]}"
        ) from error
    loaded.requires_grad_(False)
    loaded.eval()
    copy_from_file(loaded)
    for module in loaded.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = (
                False  # it would change the weights' layout, and no other code could read them
            )
    log.info(
        "base model loaded",
        kind=type(loaded).__name__,
        dtype=str(torch_dtype).removeprefix("torch."),
        device=str(where),
    )
    return loaded


@contextlib.contextmanager
def _reading(in_turn: bool) -> Iterator[None]:
    """While transformers reads weights: memory that runs out as one is converted ends that at once, where transformers keeps the
    error's text and continues; in_turn: without threads that read others in advance."""
    from transformers import core_model_loading

    theirs, threads = core_model_loading.log_conversion_errors, os.environ.get(NO_THREADS)

    @contextlib.contextmanager
    def converting(*args: Any, **more: Any) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            with contextlib.nullcontext() if errors.out_of_memory(error) else theirs(*args, **more):
                raise

    core_model_loading.log_conversion_errors = converting
    if in_turn:
        os.environ[NO_THREADS] = "1"
    try:
        yield
    finally:
        core_model_loading.log_conversion_errors = theirs
        if in_turn:
            del os.environ[NO_THREADS]
        if in_turn and threads is not None:
            os.environ[NO_THREADS] = threads


def nf4(torch_dtype: torch.dtype) -> Any:
    """QLoRA's storage of frozen weights (arXiv 2305.14314)."""
    import transformers

    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch_dtype,
    )


def copy_from_file(loaded: Any) -> None:
    """Copies every weight but the linear layers' from the mapped file: the file's pages
    are freed once the linear layers are copied too, see `fused`."""
    layers = {id(module.weight) for module in loaded.modules() if isinstance(module, torch.nn.Linear)}
    layers -= {id(loaded.get_input_embeddings().weight), id(loaded.get_output_embeddings().weight)}
    for weight in loaded.parameters():
        if weight.device.type == "cpu" and weight.is_floating_point() and id(weight) not in layers:
            weight.data = weight.data.clone()


def pad(rows: list[list[int]], fill: int, where: torch.device) -> torch.Tensor:
    """Rows of ids as one tensor, padded on the right: with causal attention no position depends on what comes after it, so that
    neither a mask nor a special padding token is needed."""
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows], device=where)


def labelled(
    model: Any, head: loss.Head, rows: list[list[int]], learned: list[list[bool]], where: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states [n, d] that predict the learned tokens, and these tokens [n], row by row.

    With a head that is unknown (no weight) the states are the model's own logits [n, vocabulary].
    """
    ids = pad(rows, 0, where)
    shifted = [
        [token if mark else IGNORED for token, mark in zip(row[1:], marks[1:], strict=True)] + [IGNORED]
        for row, marks in zip(rows, learned, strict=True)
    ]
    targets = pad(shifted, IGNORED, where)
    chosen = targets != IGNORED
    if head.weight is None:
        return model(input_ids=ids, use_cache=False).logits[chosen], targets[chosen]
    return decoder(model)(input_ids=ids, use_cache=False).last_hidden_state[chosen], targets[chosen]


def head(model: Any) -> loss.Head:
    """The model's output head, after comparing it with the model's own logits; an unknown kind takes the slower path."""
    ours = loss.head_of(model)
    ids = torch.arange(1, 9, device=model.device)[None]
    with torch.no_grad():
        expected = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].float(), -1)
        hidden = decoder(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
        observed = torch.log_softmax(ours.logits(hidden), -1)
    difference = float((expected - observed).abs().max())
    # transformers caps Gemma 2's logits in the model's precision, we in float32
    bound = max(1e-3, 2 * torch.finfo(hidden.dtype).eps)
    if difference < bound * max(1.0, float(expected.abs().max())):
        return ours
    log.warning("the output head is of an unknown kind; full logits are computed", difference=round(difference, 4))
    return loss.Head(None)


def decoder(model: Any) -> Any:
    """The model below its output head."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model


def memory(where: torch.device) -> int:
    """Bytes of the device's memory, or of the process's limit on a CPU."""
    if where.type == "cuda":
        return int(torch.cuda.get_device_properties(where).total_memory)
    return machine.memory()


def peak(where: torch.device) -> int:
    """Peak memory in bytes: of the GPU, or of the process on a CPU."""
    return int(torch.cuda.max_memory_allocated(where)) if where.type == "cuda" else machine.peak()
