"""A cluster's model in the shape of a transformers model. Of the client this alone needs `brigade[worker]`."""

try:
    from client.causal_lm.model import BrigadeForCausalLM
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(
        f"BrigadeForCausalLM gives tensors, and {exc.name} isn't installed here: pip install '.[worker]' in "
        "Brigade's folder",
        name=exc.name,
    ) from exc

__all__ = ["BrigadeForCausalLM"]
