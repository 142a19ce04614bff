"""What a stage's result follows from, and whether what already stands in its folder fits that."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.files import digest, digest_path, sha256
from ondevice.common.json_files import parse_json
from ondevice.config.auto import BY_RULE, left_to_rules
from ondevice.config.beside import ChatsBesideConfig
from ondevice.config.corpus import CorpusConfig
from ondevice.config.earlier import upgraded
from ondevice.config.finetuning import TuningConfig
from ondevice.config.load import to_mapping
from ondevice.config.preference import GRPOConfig, PairsConfig
from ondevice.config.recipe import STAGES
from ondevice.config.stages import StageConfig, TrainingConfig
from ondevice.datasets.chats_beside import chats_wanted
from ondevice.datasets.pairs_beside import kept_pairs
from ondevice.datasets.preference_pairs import pairs_digest
from ondevice.datasets.spec import data_digest
from ondevice.models.digest import model_digest
from ondevice.rewards.scorer import named_file
from ondevice.runs import checkpoint
from ondevice.runs.folder import StageFolder
from ondevice.stages.continued import state_of
from ondevice.training.lr_schedule import same_so_far

_NO_MATTER = {
    "out",
    "resume",
    "memory",
    "anyway",
    "keep_awake",
    "track",
    "backend",
    "device",
    "dtype",
    "micro_batch",
    "decode_batch",
    "checkpointing",
    "shard",
    "keep",
    "save_every",
    "sample_every",
    "sample_prompts",
    "eval_batches",
    "push_every",
    "push_to",
    "ratings",
    "reward_timeout",
}
"""Fields that do not decide what the result is: a run may go on with other ones."""
_OF_MEASURING = ("eval_batches",)
"""Those that decide it all the same where a measurement ends the stage or picks its weights."""
RATES = ("learning_rate", "muon_learning_rate", "clip_norm")
"""Fields that a person may change when an unfinished stage goes on: a wrong one ends in weights
that are not finite.
"""
_BEFORE = {
    "limit": 0,
    "pair": "",
    "chat_template_kwargs": "",
    "separator": "",
    "columns": [],
    "bad_share": 0.01,
    "continue_from": "",
    "partition": 64,
    "sft_batch": 16,
}
"""What a field was taken to be where a fingerprint has none."""
_UNKNOWN = ("sources", *_OF_MEASURING)
"""Fields that older fingerprints do not tell, whatever they were."""
_HASH = re.compile(r"[0-9a-f]{16} [0-9a-f]{16}")
_OF_ADAPTERS = {f.name for f in fields(TuningConfig)} - {f.name for f in fields(TrainingConfig)}


def fingerprint_of(
    cfg: StageConfig, corpus: CorpusConfig, folder: StageFolder, resume: bool
) -> dict[str, Any]:
    """Field → value, or a hash where the value is a file's contents: what the stage's result
    follows from.
    """
    if getattr(cfg, "patience", 0) or getattr(cfg, "take_best", False):
        decides: Collection[str] = _OF_MEASURING
    else:
        decides = ()
    # what is left to a rule is put in once it is settled
    unknown = left_to_rules(cfg) | _NO_MATTER.difference(decides)
    out = {name: value for name, value in to_mapping(cfg).items() if name not in unknown}
    if isinstance(cfg, TuningConfig) and cfg.adapter == "none":
        out = {k: v for k, v in out.items() if k not in _OF_ADAPTERS}
    for name in type(cfg).without_effect:
        out.pop(name, None)
    if isinstance(cfg, PairsConfig):
        # the stage goes on with its copy, whatever they hold now
        out["sources"] = [cfg.data, out.pop("validation")]
        out["data"] = pairs_digest(cfg, folder.path, resume, corpus)
    elif "data" in out:
        out["data"] = data_digest(out["data"], out.pop("validation", ""), corpus)
    if out.get("replay"):
        out["replay"] = data_digest(out["replay"], "", corpus)
    if isinstance(cfg, ChatsBesideConfig):
        _put_beside(out, cfg, corpus)
    if isinstance(cfg, GRPOConfig):
        for name in [name for name in out if name.startswith("pair_")]:
            if not cfg.pair_coef:
                del out[name]
        kept = kept_pairs(cfg, folder.path.parent)
        if kept is not None:
            out["pair_data"] = pairs_digest(kept, folder.path, resume, corpus)
    for name in ("model", "other", "reward_model"):
        if out.get(name):
            out[name] = model_digest(Path(out[name]))
    if isinstance(cfg, GRPOConfig):
        out["rewards"] = list(cfg.judges())
    if out.get("reward_file"):
        file, names = named_file(out["reward_file"])
        if file.is_file():  # else it is told where it is opened
            out["reward_file"] = digest([sha256(file), names])
    if out.get("continue_from") and (start := state_of(folder.name, cfg)) is not None:
        out["continue_from"] = digest(sha256(start.optimizer))
    if out.get("tokenizer"):
        out["tokenizer"] = digest_path(Path(out["tokenizer"]))
    return out


def _put_beside(out: dict[str, Any], cfg: ChatsBesideConfig, corpus: CorpusConfig) -> None:
    """What of the chats that are learned beside decides the result: nothing where there are none."""
    data = out.pop("sft_data")
    if not out["sft_coef"]:
        del out["sft_coef"], out["sft_batch"]
        return
    wanted = chats_wanted(cfg, corpus)
    if wanted.why_not:
        out["sft_data"] = f"none, not {data}"
    else:
        out["sft_data"] = wanted.digest()


def settle_fingerprint(fingerprint: dict[str, Any], cfg: TrainingConfig) -> None:
    """Puts settings that a rule has decided into the stage's fingerprint."""
    unknown = left_to_rules(cfg) | _NO_MATTER
    for name in BY_RULE:
        if hasattr(cfg, name) and name not in unknown:
            fingerprint[name] = getattr(cfg, name)
    fingerprint.pop(cfg.epochs_field, None)  # the steps say it


def check_start(cfg: StageConfig, fingerprint: Mapping[str, Any]) -> None:
    """Raises UserError where a model that the stage began from is another one by now: another
    process may have written to its folder.
    """
    for name in ("model", "reward_model"):
        folder = getattr(cfg, name, "")
        if folder and model_digest(Path(folder)) != fingerprint.get(name):
            raise UserError(
                "has changed since the stage began, which was to go back to it",
                where=str(folder),
                hint="put it back as it was and give --resume, or begin anew with another --out",
            )


def goes_on_longer(
    cfg: StageConfig, folder: StageFolder, fingerprint: dict[str, Any], restart_hint: str
) -> bool:
    """Whether a complete stage is to be trained for more steps, and its schedule allows it. Raises
    UserError where a setting beside the steps differs.
    """
    done = folder.done_record()
    if done is None or not cfg.resume or not isinstance(cfg, TrainingConfig):
        return False
    before = done.get("fingerprint", {})
    steps, now = before.get("steps"), fingerprint.get("steps")
    if not isinstance(steps, int) or not isinstance(now, int) or now <= steps:
        return False
    # an early end is no schedule's
    last = checkpoint.path_at(folder.checkpoints, steps)
    if not same_so_far(cfg, steps, steps) or checkpoint.find_damage(last) is not None:
        return False
    changes = {name: value for name, (_, value) in changed_rates(before, fingerprint).items()}
    old = {**before, **changes, "steps": now}
    compare(old, fingerprint, folder, "is complete", restart_hint)
    return True


def complete(
    folder: StageFolder, fingerprint: dict[str, Any], resume: bool, restart_hint: str
) -> bool:
    """Whether the stage is done with these settings. Raises UserError naming the first field that
    differs.
    """
    done = folder.done_record()
    if done is None:
        return False
    steps, now = done.get("fingerprint", {}).get("steps"), fingerprint.get("steps")
    if now is not None and now != steps:
        hint = f"set it back; or {restart_hint}"
        if "continue_from" not in STAGES[folder.name].without_effect:
            on = (
                f"go on from it: ondevice {folder.name} --continue {folder.path} with another --out"
            )
            hint = f"{on}; set it back; or {restart_hint}"
        schedule = done.get("fingerprint", {}).get("schedule", "")
        why = ""
        if resume and schedule != "constant":
            why = f", and its {schedule} schedule has ended: longer, it would have been another one"
        raise UserError(
            f"is complete, with steps {steps}, not {now}{why}", where=str(folder.path), hint=hint
        )
    compare(done.get("fingerprint", {}), fingerprint, folder, "is complete", restart_hint)
    if not resume:
        raise UserError("is complete already", where=str(folder.path), hint=restart_hint)
    return True


def changed_rates(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Those of the rates that differ between two fingerprints: what they were, and are."""
    return {
        name: (old[name], new[name])
        for name in RATES
        if name in old and name in new and old[name] != new[name]
    }


def changed_steps(
    cfg: StageConfig, old: dict[str, Any], new: dict[str, Any], done: int
) -> dict[str, tuple[float, float]]:
    """`steps` where it is another one than at the checkpoint of `done` steps: what it was, and is.

    Raises UserError where the steps so far would have had other rates, or where there are more of
    them already.
    """
    before, now = old.get("steps"), new.get("steps")
    if not isinstance(cfg, TrainingConfig) or before is None or now in (None, before):
        return {}
    if now < done:
        raise UserError(
            f"{done} steps are done already", where="steps", hint=f"give {done} or more"
        )
    if not same_so_far(cfg, before, done):
        raise UserError(
            f"the {done} steps so far had the rates of a {cfg.schedule} schedule over {before} steps",
            where="steps",
            hint=f"give --steps {before}, then --continue goes on from its end; a run that may "
            "become longer takes --schedule constant, or wsd, which can before its decay",
        )
    return {"steps": (before, cfg.steps)}


def compare(
    old: dict[str, Any], new: dict[str, Any], folder: StageFolder, what: str, restart_hint: str
) -> None:
    """Raises UserError naming the first field in which two fingerprints differ."""
    old = upgraded(folder.name, old)
    plain = parse_json(json.dumps(new))
    for field in plain:
        unknown = plain[field] if field in _UNKNOWN else None
        before, now = old.get(field, _BEFORE.get(field, unknown)), plain[field]
        if before != now:
            if _HASH.fullmatch(f"{before} {now}"):
                differs = f"with other contents of {field} than now"
            else:
                differs = f"with {field} {before}, not {now}"
            raise UserError(
                f"{what}, {differs}", where=str(folder.path), hint=f"set it back, or {restart_hint}"
            )


def refuse_unfinished(folder: StageFolder, restart_hint: str) -> None:
    """Raises UserError where an earlier process has left checkpoints."""
    if checkpoint.steps(folder.checkpoints):
        raise UserError(
            "an unfinished run stands here",
            where=str(folder.path),
            hint=f"--resume goes on with it; {restart_hint}",
        )
