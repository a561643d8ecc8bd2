"""Which models may be served as far as signatures go, why not in words, and what follows from events about them."""

from __future__ import annotations

from dataclasses import replace

from coordinator.policy.changes import Change, model_view, save_model
from coordinator.policy.effects import DeleteAuthor, SaveAuthor
from coordinator.policy.events import AuthorAdded, AuthorRemoved, ModelSigned, PinnedEndsAsked
from coordinator.policy.state import ClusterState, ModelRecord
from protocol.author_keys import AuthorKey
from protocol.ids import ModelName
from protocol.model_signature import ModelSignature


def why_unsigned(state: ClusterState, name: ModelName, signature: ModelSignature | None) -> str:
    """Why nothing may be generated with a model that has this signature, and what to do; empty if it may."""
    if not state.settings.require_signed_models:
        return ""
    rule = "this coordinator serves only models that a trusted author signed (require_signed_models)"
    if signature is None:
        return (
            f"{name} isn't signed, and {rule}: get its signature from its author, or sign it yourself "
            f"(`coord model keygen`, `coord author add`, `coord model sign {name} --key FILE`)"
        )
    statement = signature.statement
    if statement.key in state.authors:
        return ""
    return (
        f"{name} is signed with the key {statement.key} (by {statement.signer!r}, as it says), who is no trusted "
        f"author, and {rule}: if that is who you think it is, `coord author add NAME {statement.key}`"
    )


def why_unserved(state: ClusterState, model: ModelRecord) -> str:
    """As `why_unsigned`, of a model that is there: no new generation begins with it. Empty if they may."""
    why = why_unsigned(state, model.name, model.signature)
    return f"no new generations: {why}" if why else ""


def author_changed(change: Change, event: AuthorAdded | AuthorRemoved) -> Change:
    """What follows when an operator trusts an author, or no longer does."""
    match event:
        case AuthorAdded(author=author):
            if author.key in change.state.authors:
                return change
            authors = {**change.state.authors, author.key: author}
            change = replace(change, state=replace(change.state, authors=authors)).then(SaveAuthor(author=author))
            return change.audited("author_added", author.name, author.key, after={"key": author.key})
        case AuthorRemoved(key=key):
            return _removed(change, key)


def model_signed(change: Change, event: ModelSigned) -> Change:
    """What follows when an operator brings a signature."""
    old = change.state.models.get(event.name)
    if old is None or old.signature == event.signature:
        return change
    model = replace(old, signature=event.signature)
    details = f"{old.revision}, with {event.signature.statement.key}"
    before, after = model_view(old), model_view(model)
    change = change.with_model(model).then(save_model(model))
    return change.audited("model_signed", event.name, details, before=before, after=after)


def pinned_ends_asked(change: Change, event: PinnedEndsAsked) -> Change:
    """What follows when an operator says who may see a model's tokens."""
    old = change.state.models.get(event.name)
    if old is None or old.pinned_ends == event.is_wanted:
        return change
    model = replace(old, pinned_ends=event.is_wanted)
    details = "on instead of off" if event.is_wanted else "off instead of on"
    before, after = model_view(old), model_view(model)
    change = change.with_model(model).then(save_model(model))
    return change.audited("pinned_ends_asked", event.name, details, before=before, after=after)


def _removed(change: Change, key: AuthorKey) -> Change:
    author = change.state.authors.get(key)
    if author is None:
        return change
    signed = [
        model.name
        for model in change.state.models.values()
        if model.signature is not None and model.signature.statement.key == key
    ]
    authors = {other: kept for other, kept in change.state.authors.items() if other != key}
    details = f"{key}; models signed with it: {', '.join(signed) or 'none'}"
    change = replace(change, state=replace(change.state, authors=authors))
    change = change.then(DeleteAuthor(key=key))
    return change.audited("author_removed", author.name, details, before={"key": key})
