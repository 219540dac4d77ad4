"""A base model of which a process loads its own part of each layer's weights alone, for `sharded`.

    file -> one weight on the device, in 4 bits if wanted -> its rows of this process; the rest is freed before the next is read

Transformers reads the files, and renames and joins their tensors; we are a quantizer of it, which gets them one by one, also
weights that bitsandbytes stored in 4 bits. Weights outside of the layers, and vectors, are loaded whole.
"""

from typing import Any

import torch
import transformers.quantizers
import transformers.quantizers.auto
import transformers.utils.quantization_config as configs

METHOD = "finetune_own_part"

WHOLE = "finetune_whole"
"""Attribute of a weight that was loaded in part: the shape of the whole one."""


class OwnPart(configs.QuantizationConfigMixin):  # type: ignore[misc]
    """What this process keeps: the part `rank` of `size`; nf4: how linear layers are held in 4 bits, None: as they are; stored:
    whether the files have them so."""

    def __init__(
        self, rank: int, size: int, nf4: transformers.BitsAndBytesConfig | None = None, stored: bool = False
    ) -> None:
        self.quant_method: Any = METHOD
        self.rank, self.size, self.nf4, self.stored = rank, size, nf4, stored


class Loader(transformers.quantizers.HfQuantizer):  # type: ignore[misc]
    """Keeps the rows of this process, as FSDP2 divides them."""

    def __init__(self, quantization_config: OwnPart, **kwargs: Any) -> None:
        kwargs["pre_quantized"] = quantization_config.stored
        super().__init__(quantization_config, **kwargs)
        self._own, self._names = quantization_config, set[str]()
        inner = quantization_config.nf4
        self._nf4 = inner and transformers.quantizers.auto.AutoHfQuantizer.from_config(inner, **kwargs)

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if self._nf4:
            self._nf4.validate_environment(*args, **kwargs)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if self._nf4:
            self._nf4._process_model_before_weight_loading(model, **kwargs)
        precision = model.get_input_embeddings().weight.dtype
        for prefix, layer in layers(model):
            for name, weight in layer.named_parameters(prefix):
                # others, such as routers, keep a precision of their own
                if weight.dim() > 1 and (weight.dtype == precision or self._in_4_bits(model, name)):
                    self._names.add(name)

    def _in_4_bits(self, model: Any, name: str) -> bool:
        return bool(self._nf4 and self._nf4.param_needs_quantization(model, name))

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return param_name in self._names or self._in_4_bits(model, param_name)

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        each = 0.5 if self._in_4_bits(model, param_name) else param.element_size()
        return each / (self._own.size if param_name in self._names else 1)

    def get_quantize_ops(self) -> Any:
        return _Keep(self)

    def get_weight_conversions(self) -> Any:
        """Where weights are stored in 4 bits: their several tensors become one, of which a part is kept."""
        conversions = self._nf4.get_weight_conversions() if self._nf4 else []
        for each in conversions:
            each.operations.append(_Keep(self))
        return conversions

    def keep(self, model: Any, name: str, weight: torch.Tensor) -> torch.Tensor:
        """What is kept of a weight that was read. Raises ValueError when config.json gives it another shape."""
        if not self.param_needs_quantization(model, name):
            return weight
        state = getattr(weight, "quant_state", None)
        self._check_shape(model, name, weight.shape if state is None else state.shape)
        if self._nf4 and self._in_4_bits(model, name):
            made: torch.Tensor = weight
            if state is None:
                made = self._nf4.get_quantize_ops().convert({name: weight}, model=model)[name]
            if name not in self._names:
                return made
            model.get_submodule(name.rpartition(".")[0]).quant_state = made.quant_state  # type: ignore[attr-defined]
            weight = made.data
        parts = torch.chunk(weight, self._own.size)
        part = parts[self._own.rank] if self._own.rank < len(parts) else weight[:0]
        own = torch.nn.Parameter(part.clone(), requires_grad=False)
        setattr(own, WHOLE, weight.shape)
        return own

    def _check_shape(self, model: Any, name: str, found: torch.Size) -> None:
        """Transformers leaves this check to a quantizer."""
        module, wanted = model.get_submodule(name.rpartition(".")[0]), None
        if not self._in_4_bits(model, name):
            wanted = model.get_parameter(name).shape
        elif isinstance(module, torch.nn.Linear):
            wanted = torch.Size((module.out_features, module.in_features))
        if wanted is not None and found != wanted:
            raise ValueError(f"size mismatch: {name} has {tuple(found)}, and {tuple(wanted)} by config.json")

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
        self.remove_quantization_config(model)  # for PEFT these are linear layers like others

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


class _Keep(transformers.core_model_loading.ConversionOps):  # type: ignore[misc]
    """One step of transformers' loading."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def convert(
        self, input_dict: dict[str, Any], model: Any = None, full_layer_name: str = "", **_: Any
    ) -> dict[str, torch.Tensor]:
        """The names are those of the model, or the last part of the only one."""
        parts = {}
        for key, read in input_dict.items():
            name = key if "." in key else full_layer_name
            parts[key] = self._loader.keep(model, name, read[0] if isinstance(read, list) else read)
        return parts


def layers(base: Any) -> list[tuple[str, Any]]:
    """The layers of a model, which it must not be split within, by name; none where it does not say."""
    names = set(base._no_split_modules or ())
    return [(name, module) for name, module in base.named_modules() if type(module).__name__ in names]


transformers.quantizers.auto.register_quantizer(METHOD)(Loader)
