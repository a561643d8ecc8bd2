"""Model files as people have them, read with distrust: for who packs a model, and for a worker's draft model.

The only part of the protocol that needs torch and transformers; nothing else of it imports this.
"""
