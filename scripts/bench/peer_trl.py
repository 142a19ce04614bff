"""TRL's SFTTrainer on the same chats, loss on the assistant's tokens: a chat a row, or packed by
its best fit. `lora` and `vocabulary` leave it the settings of memory that it has by itself."""

from __future__ import annotations

import tempfile
from typing import Any

from datasets import Dataset
from job import Job
from meter import Meter
from peer_transformers import Marking, arguments, counting, load
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from ondevice.common.rng import permutation


def main() -> None:
    job = Job.from_argv()
    meter = Meter(job)
    packed = job.what != "chats"
    chats = job.lines("chats.jsonl")
    if not packed:  # in the order in which our source deals them
        chats = [chats[i] for i in permutation(0, "chat rows", 0, len(chats))]
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    marked = "generation" in tokenizer.chat_template  # does the template say what is answered?
    if not marked:
        chats = [_halves(chat) for chat in chats]
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            **settings(job, folder, packed),
            assistant_only_loss=marked,
            max_length=job.shape.length,
            packing=packed,
            dataloader_drop_last=True,
        )
        trainer = SFTTrainer(
            model=load(job),
            args=args,
            train_dataset=Dataset.from_list(chats),
            processing_class=tokenizer,
            callbacks=[Marking(meter)],
            peft_config=adapter() if job.what == "lora" else None,
        )
        trainer.data_collator = counting(trainer.data_collator, meter)
        trainer.train()
    meter.report()


def _halves(chat: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": chat["messages"][:1], "completion": chat["messages"][1:]}


def settings(job: Job, folder: str, packed: bool) -> dict[str, Any]:
    rows = job.shape.rows if packed else job.shape.chats
    given = {**arguments(job, folder, rows), "max_steps": job.steps}
    if job.what in ("lora", "vocabulary"):
        del given["gradient_checkpointing"]
    return given


def adapter() -> LoraConfig:
    """Our defaults: rank 16, alpha 32, all matrices of the blocks."""
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


if __name__ == "__main__":
    main()
