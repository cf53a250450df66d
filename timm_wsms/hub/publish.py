"""Publishes a checkpoint folder on the Hugging Face Hub: checks first, then one commit.

    python -m timm_wsms.publish OUT/model --repo owner/name [--private] [--tag v1] [--dry-run] [--register]
    python -m timm_wsms.publish OUT/model --repo owner/name --as-backbone [STAGE] [--data SOURCE]

`--dry-run` checks everything and shows what would change. The token is that of `hf auth login` or HF_TOKEN. The card is
filled in again, with the repo's name. `--as-backbone` publishes one stage of the network as a plain timm model, which
loads without timm_wsms. Whatever happens before the commit, the repo stays unchanged.
"""

from __future__ import annotations

import argparse
import tempfile
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file

from timm_wsms.errors import UserError
from timm_wsms.files import tensor_bytes
from timm_wsms.hub import backbone_folder, card, diff, register, results, verify
from timm_wsms.hub.client import Remote, look, look_if_there, retried
from timm_wsms.hub.errors import in_one_line
from timm_wsms.hub.verify_folder import FILES, TENSORS, check_folder
from timm_wsms.network.plain import to_backbone
from timm_wsms.training.checkpoint_folder import reference_images, reference_tensors


@dataclass(frozen=True)
class Options:
    """The options: see the command line's help."""

    repo: str
    private: bool = False
    tag: str | None = None
    dry_run: bool = False
    register: str | None = None
    as_backbone: int | None = None
    data: str | None = None


def publish(folder: Path, options: Options) -> str:
    """Checks a checkpoint folder and uploads it.

    Returns:
        The commit that holds it; with `dry_run`, an empty string if the repo does not exist yet.

    Raises:
        UserError: The folder is inconsistent, or the Hub refuses; one line with the remedy.
    """
    check_repo(options.repo)
    if options.as_backbone is not None:
        with tempfile.TemporaryDirectory() as temporary:
            plain = take_stage(folder, Path(temporary), options.as_backbone, options.data)
            return publish(plain, replace(options, as_backbone=None, data=None))
    if options.data:
        raise UserError("--data is for measuring what --as-backbone publishes; leave it out")
    model = check_folder(folder)
    files = contents(folder, options.repo, model)
    if options.register:
        register.check_default(model, folder, options.register)
    api = HfApi()
    with in_one_line(options.repo):
        before = look_if_there(api, options.repo)
        if before and options.private and not before.private:
            raise UserError(f"{options.repo} already exists and is public; make it private on its page")
        check_tag(api, options, before, files)
        print(diff.describe(api, options.repo, files, before))
        if options.dry_run:
            return before.commit if before else ""
        check_access(options.repo)
        commit = upload(api, options, files, before)
    if options.register:
        print(register.add(folder, options.register, options.repo, commit))
    return commit


def take_stage(folder: Path, place: Path, stage: int, data: str | None) -> Path:
    """Writes one stage of a checkpoint folder's network as a plain timm model's folder, and returns that.

    Args:
        folder: The network's.
        place: Where to create the new folder.
        stage: Number of the stage.
        data: Source of images to measure the stage's accuracy on, with timm's transform; None: what the run measured.
    """
    network = check_folder(folder)
    backbone_folder.check(network, stage)
    figures = verify.figures(to_backbone(network, stage), folder, data) if data else None
    target = place / "model_backbone"
    target.mkdir()
    backbone_folder.write(folder, target, stage, figures)
    return target


def check_repo(repo: str) -> None:
    """Check that a name is valid for a repo.

    Raises:
        UserError: It is not.
    """
    with in_one_line(repo):
        validate_repo_id(repo)
    if "/" not in repo:
        raise UserError(f"{repo!r} is not a name on the Hub; it must be owner/name")


def check_access(repo: str) -> None:
    """Check before any work, without asking the Hub, that something can be published there.

    Raises:
        UserError: The name is invalid, or there is no token.
    """
    check_repo(repo)
    if not get_token():
        raise UserError("no token was found; `hf auth login`, or set HF_TOKEN")


def check_tag(api: HfApi, options: Options, before: Remote | None, files: dict[str, Path | bytes]) -> None:
    """Check that a tag is new, or already where it would be set."""
    if before is None or options.tag is None:
        return
    refs = retried(lambda: api.list_repo_refs(options.repo))
    target = {tag.name: tag.target_commit for tag in refs.tags}.get(options.tag)
    if target is not None and (target != before.commit or diff.changed(files, before)):
        raise UserError(f"{options.repo} has a tag {options.tag} already, of another commit; choose another name")


def contents(folder: Path, repo: str, model: Any) -> dict[str, Path | bytes]:
    """File in the repo → what goes there: files of the folder, and the card filled in for this repo.

    Folders of older runs recorded outputs for two of their test images, which may be private: these are replaced.
    """
    files: dict[str, Path | bytes] = {name: folder / name for name in FILES if (folder / name).is_file()}
    if not torch.equal(load_file(folder / TENSORS)["input"], reference_images(model.pretrained_cfg["input_size"])):
        files[TENSORS] = tensor_bytes(reference_tensors(model))
    return {**files, "README.md": card.render(folder, repo).encode()}


def upload(api: HfApi, options: Options, files: dict[str, Path | bytes], before: Remote | None) -> str:
    """Creates the repo if needed, uploads what has changed in one commit, tags it; returns the commit."""
    repo = options.repo
    if before is None:
        # private is always given, since an organization may have another default
        retried(lambda: api.create_repo(repo, private=options.private, exist_ok=True))
        before = look(api, repo)
    changed = diff.changed(files, before)
    commit = before.commit
    if changed:
        added = [CommitOperationAdd(name, files[name]) for name in changed if name in files]
        gone = [CommitOperationDelete(name) for name in changed if name not in files]
        upload_large(api, repo, added)
        commit = retried(lambda: commit_once(api, repo, files, before, [*added, *gone]))
    if tag := options.tag:
        retried(lambda: api.create_tag(repo, tag=tag, revision=commit, exist_ok=True))
    return commit


def upload_large(api: HfApi, repo: str, added: list[CommitOperationAdd]) -> None:
    """Uploads the large files before the commit; the client itself retries.

    Raises:
        HTTPError: The Hub's final answer.
        UserError: It failed for another reason.
    """
    try:
        api.preupload_lfs_files(repo, added)
    except RuntimeError as error:  # raised by a thread of the client's, or by Xet
        if isinstance(error.__cause__, HTTPError):
            raise error.__cause__ from error
        why = textwrap.shorten(str(error), 160, placeholder=" …")
        raise UserError(f"the upload failed ({why}); {repo} is unchanged, run it again") from error


def commit_once(api: HfApi, repo: str, files: dict[str, Path | bytes], before: Remote, operations: list) -> str:
    """Commits on top of what was seen before; not again if an earlier try succeeded and only its answer was lost."""
    now = look(api, repo)
    if now.commit != before.commit and not diff.changed(files, now):
        return now.commit
    message = f"Publish {Path(repo).name} with timm-wsms"
    return api.create_commit(repo, operations, commit_message=message, parent_commit=before.commit).oid


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the `model` folder of a run")
    parser.add_argument("--repo", required=True, help="owner/name on the Hub; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create the repo as private")
    parser.add_argument("--tag", help="git tag for this version")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, show what would change, change nothing"
    )
    parser.add_argument(
        "--register",
        metavar="TAG",
        nargs="?",
        const="",
        help="make it a pretrained tag, by default the data set's name",
    )
    parser.add_argument(
        "--as-backbone",
        metavar="STAGE",
        type=int,
        nargs="?",
        const=1,
        help="publish this stage of the network (1 if none is named) as a plain timm model, which needs no timm_wsms",
    )
    parser.add_argument(
        "--data", metavar="SOURCE", help="with --as-backbone: measure its accuracy on the test split of this source"
    )
    options = vars(parser.parse_args(argv))
    folder = options.pop("folder")
    if options["register"] == "":
        options["register"] = register.data_tag(folder)
    chosen = Options(**options)
    commit = publish(folder, chosen)
    if not chosen.dry_run:
        print(f"published {chosen.repo} at {commit}")
        plain = chosen.as_backbone is not None or results.read(folder).taken is not None
        needed = "timm" if plain else "timm, timm_wsms"
        print(f'Load it: import {needed}; model = timm.create_model("hf-hub:{chosen.repo}", pretrained=True)')
