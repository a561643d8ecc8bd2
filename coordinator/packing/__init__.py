"""Turn a model source (safetensors folder, GGUF file, Hub id) into content-addressed files and a manifest.

The one room of the coordinator that imports torch and transformers: import it only where a model is added.
"""

from coordinator.packing.pack import PackedModel, Progress, pack_model

__all__ = ["PackedModel", "Progress", "pack_model"]
