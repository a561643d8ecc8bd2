"""What transformers makes of a model's small files: config, recommended settings, tokenizer. Nothing is fetched."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers import __version__ as transformers_version

from client.model_files import ModelFiles
from client.token_ids import read_tokenizer
from client.tokenizer import ModelTokenizer
from protocol.errors import InvalidRequestError, UntrustedFileError

_CONFIGS = ("config.json", "generation_config.json")


def read_configs(files: ModelFiles) -> tuple[PreTrainedConfig, GenerationConfig]:
    """The model's config and the settings of generations that its authors recommend.

    Raises:
        UntrustedFileError: transformers can't read them.
    """
    with TemporaryDirectory(prefix="brigade-model-") as folder:
        for name in files.contents.keys() & set(_CONFIGS):
            (Path(folder) / name).write_bytes(files.contents[name])
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if "generation_config.json" not in files.contents:
                return config, GenerationConfig.from_model_config(config)
            return config, GenerationConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as exc:
            raise UntrustedFileError(
                f"transformers {transformers_version} can't read this model's {' and '.join(_CONFIGS)}: {exc}"
            ) from exc


def transformers_tokenizer(files: ModelFiles, known: ModelTokenizer) -> Any:
    """The tokenizer as transformers has them, from tokenizer.json as it stands; `known` is made of the same files.

    What else the files say of tokenizers is left aside, so that texts are the same ids here as in `Client`: classes
    that a config may name build their own tokenizers. It pads on the left, as answers need it.

    Raises:
        InvalidRequestError: the model has none.
        UntrustedFileError: it is malformed.
    """
    tokenizer = read_tokenizer(files.contents.get("tokenizer.json"))
    if tokenizer is None:
        raise InvalidRequestError("this model has no tokenizer: give generate token ids of your own")
    special = {name: text for name, text in known.special_tokens.items() if tokenizer.token_to_id(text) is not None}
    made: Any = PreTrainedTokenizerFast  # its methods have no types
    found = made(
        tokenizer_object=tokenizer,
        chat_template=known.chat_template.source if known.chat_template is not None else None,
        model_max_length=files.manifest.context_length,
        padding_side="left",
        **special,
    )
    if found.pad_token is None:
        found.pad_token = found.eos_token
    return found
