"""Load the weights of a range of blocks into a cut model, through transformers' own conversion.

Weights are never held twice: tensors are read slice by slice from files, cast (or rounded to codes, see
`worker.quantised_loading`) and put in place, and the files are closed. Nothing is ever initialised at random: a
tensor that is missing, too many or of another shape is an error that names it.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from protocol.background import garbage_collected_at_end
from protocol.errors import BrigadeError, StorageError, UntrustedFileError
from protocol.ids import BlockRange
from protocol.messages import Quantization
from worker.cut import cut_config, cut_modules, has_stand_ins
from worker.file_tensors import FileTensor, file_tensors
from worker.gguf_blocks import with_encodings
from worker.gguf_file import GgufFile
from worker.heap import give_back_free_memory
from worker.quantised_cache import QuantisedCache
from worker.quantised_forms import matrix_forms
from worker.quantised_loading import QuantisedLayers, put_quantised_layers

_BLOCK_NUMBER = re.compile(r"^((?:[^.]+\.)*?)(\d+)(\..+)$")
_MAX_NAMED = 5

_ONE_LOAD = threading.Lock()
"""transformers swaps methods of `PreTrainedModel` while it loads; two loads at once would leave them swapped."""


def lacks_memory(exc: BaseException) -> bool:
    """Whether it says that there is no memory; torch's allocator on the CPU does so by a plain RuntimeError."""
    return isinstance(exc, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(exc)


def load_config(source: Path | GgufFile) -> PreTrainedConfig:
    """The model's config from its folder or GGUF file, with nothing in it that could fetch or run code.

    Raises:
        UntrustedFileError: missing, malformed, of an unknown architecture, or of a quantised checkpoint.
    """
    config = source.config if isinstance(source, GgufFile) else _folder_config(source)
    if getattr(config, "quantization_config", None) is not None:
        raise UntrustedFileError("the model's config.json is of a quantised checkpoint; add the unquantised one")
    if not isinstance(getattr(config, "num_hidden_layers", None), int):
        raise UntrustedFileError(
            f"the model's config.json ({config.model_type}) doesn't say how many blocks it has"
        )
    config.fusion_config = None
    return config


def _folder_config(folder: Path) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as exc:  # a config is read by hundreds of classes, each with errors of its own
        raise UntrustedFileError(f"the model's config.json can't be used: {exc}") from exc
    return config


def load_cut_model(
    config: PreTrainedConfig,
    files: Iterable[Path | GgufFile],
    blocks: BlockRange,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization | None = None,
    quantised: QuantisedCache | None = None,
) -> PreTrainedModel:
    """The causal model, or encoder, cut to `blocks`, its weights in `dtype` on `device`, in evaluation mode.

    With `quantization` its linear layers hold codes instead, and `dtype` is the one that they compute in; codes
    that had to be made are kept in `quantised` if it is given, under the names of `files`. These are safetensors
    files that hold, under the checkpoint's names, what the stage needs and no other block; or a whole GGUF.

    Raises:
        UntrustedFileError: a file isn't safetensors, a tensor is missing, too many or of another shape.
        StorageError: a file can't be read.
        MemoryError: there is too little.
    """
    model_class = _model_class(config)
    with _ONE_LOAD, garbage_collected_at_end():  # cycles of transformers' loading hold tensors
        with _quiet(), _open_tensors(files) as tensors:
            state = _renumbered(tensors, blocks, _ignored_names(model_class))
            making = _Making(blocks=blocks, tensors=state, quantization=quantization)
            try:
                model, info = _made(_cut_class(model_class, making), config, state, dtype, device)
                if quantization is not None:
                    making.layers.fill(matrix_forms(device, dtype), quantised)
            except BrigadeError:
                raise
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as exc:
                if lacks_memory(exc):
                    raise MemoryError(str(exc)) from exc
                raise UntrustedFileError(f"the weights of blocks {blocks} can't be loaded: {exc}") from exc
            finally:
                state.clear()  # the model's class keeps it, and a slice keeps its file open
        _check_loaded(model, info, blocks, making.outside)
        cut_config(model, blocks)
    give_back_free_memory()
    return model


def _made(
    cut_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: dict[str, Any],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """An instance that has its weights, and what transformers says of the loading."""
    load: Any = cut_class.from_pretrained  # declared to give a model alone
    model, info = load(
        None,
        config=config,
        state_dict=state,
        dtype=dtype,
        device_map=None if device.type == "cpu" else {"": device},
        attn_implementation="sdpa" if getattr(cut_class, "_supports_sdpa", False) else "eager",
        ignore_mismatched_sizes=True,  # reported then, rather than logged; _check_loaded refuses them
        output_loading_info=True,
    )
    return model, info


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The base model's class if the config names that, as packing has an encoder's do; else the causal one."""
    bare: Any = transformers.MODEL_MAPPING
    named = config.architectures[0] if config.architectures else None
    for mapping in (bare, transformers.MODEL_FOR_CAUSAL_LM_MAPPING):
        found: Any = mapping.get(type(config), None)
        if isinstance(found, type) and (mapping is not bare or found.__name__ == named):
            return found
    raise UntrustedFileError(f"transformers {transformers.__version__} has no causal {config.model_type} model")


@dataclass(slots=True, kw_only=True)
class _Making:
    """What happens while transformers instantiates the class of a stage, and what is known afterwards."""

    blocks: BlockRange
    tensors: dict[str, Any]
    """What transformers is to load; the weights of quantised layers are taken out."""
    quantization: Quantization | None
    outside: set[str] = field(default_factory=set)
    """All parameters that the whole model has outside of its blocks."""
    layers: QuantisedLayers = field(default_factory=QuantisedLayers)


def _cut_class(model_class: type[PreTrainedModel], making: _Making) -> type[PreTrainedModel]:
    """A class like `model_class` that cuts itself once it is built (without weights, on the meta device).

    It goes by the same name, which is what transformers' conversion mappings look up.
    """
    blocks = making.blocks

    # a pooler is for heads that aren't packed either
    extra = {"add_pooling_layer": False} if "add_pooling_layer" in signature(model_class).parameters else {}

    def __init__(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        model_class.__init__(self, config, *args, **kwargs, **extra)
        making.outside.update(name for name in self.state_dict() if _BLOCK_NUMBER.match(name) is None)
        if blocks.end > config.num_hidden_layers:
            raise UntrustedFileError(f"blocks {blocks} of a model whose config has {config.num_hidden_layers}")
        cut_modules(self, blocks)
        if making.quantization is not None:
            making.layers = put_quantised_layers(self, making.tensors, making.quantization)

    initialise: Any = model_class._init_weights  # noqa: SLF001 - the library's hook for subclasses

    def _init_weights(self: PreTrainedModel, module: nn.Module) -> None:
        try:
            initialise(self, module)
        except AttributeError:
            if not has_stand_ins(module):
                raise  # else it looks for weights that another stage has

    namespace = {
        "__init__": __init__,
        "_init_weights": _init_weights,
        "__module__": model_class.__module__,
        "__qualname__": model_class.__qualname__,
        "__doc__": model_class.__doc__,
        "_keys_to_ignore_on_load_missing": None,  # what is missing is missing
    }
    return type(model_class.__name__, (model_class,), namespace)


@contextlib.contextmanager
def _open_tensors(files: Iterable[Path | GgufFile]) -> Iterator[dict[str, Any]]:
    """All tensors of the files as lazy slices, by name; the files are closed afterwards."""
    with contextlib.ExitStack() as stack:
        tensors: dict[str, FileTensor] = {}
        for path in files:
            if isinstance(path, GgufFile):
                tensors.update(path.tensors())
                continue
            try:
                handle = stack.enter_context(safe_open(path, framework="pt", backend="pread"))
                tensors.update(file_tensors(handle, path.name))
            except SafetensorError as exc:
                raise UntrustedFileError(f"{path.name} is no safetensors file: {exc}") from exc
            except OSError as exc:
                raise StorageError(f"{path.name} can't be read: {exc.strerror or exc}") from exc
        yield with_encodings(tensors)


def _renumbered(tensors: dict[str, Any], blocks: BlockRange, ignored: re.Pattern[str] | None) -> dict[str, Any]:
    """The tensors with their blocks counted from 0."""
    matches = {name: _BLOCK_NUMBER.match(name) for name in tensors}
    prefixes = Counter(match[1] for match in matches.values() if match)
    blocks_prefix = prefixes.most_common(1)[0][0] if prefixes else None
    state: dict[str, Any] = {}
    for name, tensor in tensors.items():
        match = matches[name]
        if match is None or match[1] != blocks_prefix:
            state[name] = tensor
        elif blocks.start <= int(match[2]) < blocks.end:
            state[f"{match[1]}{int(match[2]) - blocks.start}{match[3]}"] = tensor
        elif ignored is None or ignored.search(name) is None:
            raise UntrustedFileError(f"the files of blocks {blocks} also hold {name}")
    return state


def _ignored_names(model_class: type[PreTrainedModel]) -> re.Pattern[str] | None:
    patterns = getattr(model_class, "_keys_to_ignore_on_load_unexpected", None)
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns)) if patterns else None


def _check_loaded(model: PreTrainedModel, info: dict[str, Any], blocks: BlockRange, outside: set[str]) -> None:
    """Refuse a model that isn't exactly what the files should hold."""
    problems = {
        "missing": set(info["missing_keys"]),
        # a file of what comes before or after may hold a little more than this stage needs (a tied head)
        "unexpected": set(info["unexpected_keys"]) - outside,
        "of the wrong shape": {str(key[0]) for key in info["mismatched_keys"]},
        "not convertible": set(info.get("conversion_errors") or ()) | set(info["error_msgs"]),
        "without a value": {name for name, tensor in _tensors_of(model) if tensor.is_meta},
    }
    for what, names in problems.items():
        if names:
            shown = ", ".join(sorted(names)[:_MAX_NAMED])
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            raise UntrustedFileError(f"weights of blocks {blocks} (counted from 0 here) {what}: {shown}{more}")


def _tensors_of(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no loading reports from transformers: ours are errors and log events."""
    logging: Any = transformers.utils.logging
    verbosity = logging.get_verbosity()
    had_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
