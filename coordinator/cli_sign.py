"""`coord model keygen`, `sign` and `verify`: who vouches for a model. What signers call themselves is quoted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from coordinator.admin_client import AdminTarget
from coordinator.cli_output import console, notes, print_answer, print_json, printable
from coordinator.cli_packing import packed
from coordinator.cli_passphrase import PassphraseFileOption, given_passphrase, opened_with_passphrase
from coordinator.cli_target import JsonOption, KeyFileOption, StateOption, UrlOption
from coordinator.hash_only_store import HashOnlyStore
from coordinator.served_models import (
    bring_signature,
    served_model,
    trusted_authors,
    verified_model,
)
from coordinator.signing_files import (
    new_key_pair,
    read_signature,
    signature_beside,
    signature_path,
    signed,
    write_signature,
)
from protocol.author_keys import AuthorKey, author_key_argument
from protocol.byte_sizes import human_bytes
from protocol.errors import ConfigError, UntrustedFileError
from protocol.ids import ModelName, Revision, checked_model_name
from protocol.model_signature import ModelSignature, check_author, verified_signature

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder of safetensors, a GGUF file, a Hugging Face id, or a served model (a path goes first).",
    ),
]


class VerifiedModel(msgspec.Struct, frozen=True, kw_only=True):
    """What `coord model verify` found; it finds nothing else than that all is right."""

    model: str
    revision: Revision
    key: AuthorKey
    author: str | None
    """What operators call the key's holder; None: the key was given by hand."""
    signer: str
    signed_as: str
    version: str
    signed_at: str
    n_files: int
    size_bytes: int


def keygen(
    file: Annotated[Path, typer.Argument(help="Where the private key goes; its public half goes to FILE.pub.")],
    *,
    is_encrypted: Annotated[
        bool, typer.Option("--encrypt", help="Ask for a passphrase, without which the key can't be used.")
    ] = False,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key to sign models with. Whoever has the file signs as you: keep it off the cluster's machines."""
    passphrase = given_passphrase(passphrase_file, is_new=True) if is_encrypted or passphrase_file else None
    public = new_key_pair(file.expanduser(), passphrase)
    if as_json:
        print_json({"key": public, "private_key_file": str(file), "public_key_file": f"{file}.pub"})
        return
    console().print(public, markup=False, soft_wrap=True)
    notes().print(
        f"the private key is in {file}, its public half in {file}.pub\n"
        f"sign:  coord model sign MODEL --key {file} --signer NAME\n"
        f"trust: coord author add NAME {file}.pub, and worker join --trust-author {file}.pub",
        markup=False,
        soft_wrap=True,
    )


def sign_model(
    source: SourceArgument,
    *,
    key: Annotated[Path, typer.Option(help="Private key, of `coord model keygen`.")],
    signer: Annotated[str, typer.Option(help="Who signs, for people to read; what counts is the key.")],
    name: Annotated[
        str | None, typer.Option(help="What the model is called. Else its file's or served name.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Which version of it this is. Else today's date.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the signature. Else in the folder, beside the file, or nowhere.")
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    url: UrlOption = None,
    admin_key_file: KeyFileOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a model: every byte of it, as workers will load it, its name and version.

    A served model takes the signature at once; one in a file is for `coord model add`, which finds it beside the
    model or by --signature. Of files it reads the whole model, and writes none of it. Of a served model it reads
    nothing, and signs the revision that the coordinator names: do so only if you trust what is served there.
    """
    private_key = opened_with_passphrase(key, passphrase_file)
    at = datetime.now(UTC)

    def sign(revision: Revision, label: str) -> ModelSignature:
        words = {"model": name or label, "version": version or at.date().isoformat(), "signer": signer}
        return verified_signature(signed(revision, private_key, **words, at=at), revision)

    if _is_source(source):
        signature, where = _signed_files(source, sign, out)
    else:
        target = AdminTarget.found(url=url, key_file=admin_key_file, state=state)
        signature, where = _signed_served(target, checked_model_name(source), sign, out)
    said = signature.statement
    if as_json:
        print_json(said)
        return
    console().print(f"signed revision {said.revision[:12]} with {said.key}, {where}", markup=False, soft_wrap=True)


_Sign = Callable[[Revision, str], ModelSignature]
"""Signs a revision; the text is what the model is called if nobody says."""


def _signed_files(source: str, sign: _Sign, out: Path | None) -> tuple[ModelSignature, str]:
    """A model's files are signed: the signature, and where it is now."""
    path = out or _place_for(source)
    signature = sign(packed(source, HashOnlyStore()).revision, label_of(source))
    write_signature(path, signature.envelope)
    return signature, f"in {path}"


def _signed_served(
    target: AdminTarget, served: ModelName, sign: _Sign, out: Path | None
) -> tuple[ModelSignature, str]:
    """A model that is served is signed there: the signature, and where it is now."""
    model = served_model(target, served)
    signature = sign(model.revision, model.name)
    if out is not None:
        write_signature(out, signature.envelope)
    bring_signature(target, model.name, signature.envelope)
    return signature, f"served as {model.name}"


def verify_model(
    source: SourceArgument,
    *,
    author: Annotated[
        list[str] | None,
        typer.Option(
            help="A key that may have signed it, or its .pub file; may be repeated. Else those that the "
            "coordinator trusts."
        ),
    ] = None,
    signature: Annotated[
        Path | None, typer.Option(help="File with the signature. Else in the folder, beside the file, or served.")
    ] = None,
    url: UrlOption = None,
    admin_key_file: KeyFileOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hash all of a model again, and say who signed it and when; or fail, and say what is wrong.

    A served model's files are read in the coordinator's store: run it on the coordinator's machine.
    """
    given = None if signature is None else read_signature(signature)
    trusted: dict[AuthorKey, str | None] = {author_key_argument(key, "--author"): None for key in author or ()}

    def target() -> AdminTarget:
        return AdminTarget.found(url=url, key_file=admin_key_file, state=state)

    if not trusted:
        trusted.update(trusted_authors(target()))
    if _is_source(source):
        found = _verified_source(source, signature_beside(source) if given is None else given, trusted)
    else:
        name = checked_model_name(source)
        revision, manifest, checked = verified_model(target(), name, given, _only(trusted))
        found = _verified(name, revision, checked, trusted, len(manifest.all_files()), manifest.size_bytes())
    print_answer(found, _verified_words(found), as_json=as_json)


def _verified_words(found: VerifiedModel) -> str:
    who = f"{found.author} ({found.key})" if found.author else found.key
    return (
        f"{printable(found.model)}, revision {found.revision[:12]}: all {found.n_files} files "
        f"({human_bytes(found.size_bytes)}) are as {printable(who)} signed them on {found.signed_at}, as "
        f"{found.signed_as!r} version {found.version!r}; the signer calls himself {found.signer!r}"
    )


def _verified_source(source: str, envelope: bytes | None, trusted: dict[AuthorKey, str | None]) -> VerifiedModel:
    if envelope is None:
        raise UntrustedFileError(
            f"{source} isn't signed: there is no {_place_for(source)}; name one with --signature"
        )
    model = packed(source, HashOnlyStore())
    checked = _only(trusted)(envelope, model.revision)
    manifest = model.manifest
    return _verified(source, model.revision, checked, trusted, len(manifest.all_files()), manifest.size_bytes())


def _only(trusted: dict[AuthorKey, str | None]) -> Callable[[bytes, Revision], ModelSignature]:
    """The check that one of the trusted made a signature."""

    def check(envelope: bytes, revision: Revision) -> ModelSignature:
        found = verified_signature(envelope, revision)
        check_author(found, trusted)
        return found

    return check


def _verified(
    model: str,
    revision: Revision,
    signature: ModelSignature,
    trusted: dict[AuthorKey, str | None],
    n_files: int,
    size_bytes: int,
) -> VerifiedModel:
    statement = signature.statement
    return VerifiedModel(
        model=model,
        revision=revision,
        key=statement.key,
        author=trusted[statement.key],
        signer=statement.signer,
        signed_as=statement.model,
        version=statement.version,
        signed_at=statement.signed_at,
        n_files=n_files,
        size_bytes=size_bytes,
    )


def _is_source(text: str) -> bool:
    """Whether it is a model's files and not the name of a model that is served. A path that exists goes before."""
    return Path(text).expanduser().exists() or "/" in text


def _place_for(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        raise ConfigError(f"{source} is no path, so the signature has no place beside it: name one with --out")
    return signature_path(path)


def label_of(source: str) -> ModelName:
    """What a model in these files is called: a file's name without its ending, all of a folder's or hub's."""
    path = Path(source).expanduser()
    if path.is_file():
        return ModelName(path.stem)
    return ModelName(path.resolve().name if path.name in ("", "..") else path.name)
