"""TRL's SFTTrainer on the same chats, loss on the assistant's tokens: a chat a row, or packed by
its best fit.
"""

from __future__ import annotations

import tempfile

from common import Job, Meter
from datasets import Dataset
from peer_transformers import Marking, arguments, counting, load
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from ondevice.common.rng import permutation


def main() -> None:
    job, meter = Job.from_argv(), Meter()
    chats, packed = job.chats(), job.what == "chats-packed"
    if not packed:  # in the order in which our source deals them
        chats = [chats[i] for i in permutation(0, "chat rows", 0, len(chats))]
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            **arguments(job, folder, job.shape.rows if packed else job.shape.chats),
            assistant_only_loss=True,
            max_length=job.shape.length,
            packing=packed,
            num_train_epochs=1,
            dataloader_drop_last=True,
        )
        data = Dataset.from_list(chats)
        trainer = SFTTrainer(
            model=load(job),
            args=args,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[Marking(meter)],
        )
        trainer.data_collator = counting(trainer.data_collator, meter)
        trainer.train()
    meter.report()


if __name__ == "__main__":
    main()
