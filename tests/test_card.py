"""Cards: true metadata, what happened and nothing else, no folder or name of this machine, snippets
that run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

import models
import ondevice
from data_samples import TEXTS, small_tokenizer
from hub_models import config, contents, write_model, write_ratings, write_run, write_stage
from hub_server import HubServer, environment
from ondevice import cli
from ondevice.common.sanitize import sanitize
from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.hub.client import Hub
from ondevice.models.load import load_model
from ondevice.models.lora import INHERITED, Pair, lora_tensors
from ondevice.models.model import Adapter
from ondevice.models.save import write
from ondevice.models.save import write_model as write_folder
from ondevice.publishing.dataset_card import data_files
from ondevice.publishing.model_card import folder_card, run_card
from ondevice.publishing.usage import Place, Subject, use
from ondevice.reports.curves import curves
from ondevice.runs.folder import RunFolder
from ondevice.seam.select import load_backend

SECRET = "/home/someone/secret place"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return write_run(tmp_path / "run")


def kind_of(data: Any) -> tuple[str, str]:
    """What opens the folder and what it does, as the Hub's reader takes both from a card."""
    found = data.to_dict()
    return found["library_name"], found["pipeline_tag"]


def change(run: RunFolder, stage: str, **record: Any) -> None:
    """Other things in a stage's done.json."""
    done = run.stage(stage).done
    done.write_text(json.dumps({**json.loads(done.read_text()), **record}))


def configure(run: RunFolder, stage: str, **config: Any) -> None:
    """Other settings in a stage's start event."""
    events = run.stage(stage).events
    first, *rest = events.read_text().splitlines()
    start = json.loads(first)
    start["config"] |= config
    events.write_text("\n".join([json.dumps(start), *rest]) + "\n")


def test_the_hub_s_own_reader_takes_the_metadata(run: RunFolder) -> None:
    from huggingface_hub import ModelCard

    change(run, "pretrain", base={"repo": "org/base", "commit": "ab" * 20, "kind": "model"})
    card = ModelCard(run_card(run, "sft", "me/m", license="apache-2.0").text)
    data = card.data
    assert kind_of(data) == ("transformers", "text-generation") and data.license == "apache-2.0"
    assert data.tags == ["ondevice", "init", "pretrain", "sft"] and data.base_model is None
    results = {
        r.metric_name: (r.metric_type, r.metric_value, r.dataset_name)
        for r in data.eval_results or ()
    }
    assert data.model_name == "m" and results == {
        "Bits per byte on held-out text": ("bits_per_byte", 1.5, "built-in corpus, held out"),
        "Exact match on held-out instructions": ("exact_match", 0.5, "built-in corpus, held out"),
    }


@pytest.mark.parametrize(
    ("marks", "said"),
    [
        (
            {
                "accuracy": 0.8,
                "interval": [0.7, 0.9],
                "pairs": 50,
                "by_part": {},
                "margin": 0.4,
                "calibration_error": 0.1,
            },
            {"Held-out pairs ranked rightly": 0.8},
        ),
        (
            {
                "classes": {
                    "accuracy": 0.6,
                    "low": 0.5,
                    "high": 0.7,
                    "texts": 50,
                    "names": ["a", "b"],
                    "most_frequent": 0.5,
                }
            },
            {"Held-out texts told apart": 0.6},
        ),
    ],
)
def test_the_figures_of_what_judges(
    run: RunFolder, marks: dict[str, Any], said: dict[str, float]
) -> None:
    from huggingface_hub import ModelCard

    change(run, "sft", marks=marks)
    file = run.path / "sft" / "model" / "config.json"
    file.write_text(
        json.dumps(
            {**json.loads(file.read_text()), "architectures": ["LlamaForSequenceClassification"]}
        )
    )
    card = run_card(run, "sft", "me/m").text
    results = ModelCard(card).data.eval_results or ()
    assert {r.metric_name: r.metric_value for r in results} == said
    assert [r.task_type for r in results] == [
        "text-classification"
    ] and "What it answers was checked" in card


def test_the_base_and_data_sets_of_the_hub(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    run = RunFolder(tmp_path / "run")
    write_stage(run.stage("sft"), 1, model="/somewhere/base")
    change(run, "sft", base={"repo": "org/base", "commit": "ab" * 20, "kind": "model"})
    configure(run, "sft", data="hub:org/chats:train")
    card = run_card(run, "sft", "me/m").text
    data = ModelCard(card).data
    assert data.base_model == "org/base" and data.datasets == ["org/chats"]
    assert (
        "began from org/base at abababababab" in card
        and "of the other data are not recorded" in card
    )


def test_licences_are_told_where_the_data_s_cards_state_them(
    server: HubServer, tmp_path: Path
) -> None:
    rows = {"data/train.jsonl": b'{"text": "x"}\n'}
    for name, licence in (("org/chats", "cc-by-4.0"), ("org/book", "mit")):
        card = f"---\nlicense: {licence}\n---\n".encode()
        server.add(name, {**rows, "README.md": card}, "dataset", private=False)
    head = server.repo("org/chats", "dataset").commits[-1].id
    client = Hub("dataset")
    [card] = [f for f in client.files("org/chats", head) if f.path == "README.md"]
    client.download("org/chats", head, card)  # as a library that loads it does
    ondevice.pull("org/book", out=tmp_path / "book", dataset=True, tell=lambda event: None)
    run = write_run(tmp_path / "run")
    configure(run, "pretrain", data=str(tmp_path / "book" / "data" / "train.jsonl"))
    configure(run, "sft", data="hub:org/chats:train")
    text = run_card(run, "sft", "me/m").text
    assert (
        "licence of train.jsonl is mit," in text
        and "licence of org/chats:train is cc-by-4.0, as its" in text
    )
    assert (
        "The built-in corpus is generated by ondevice" in text and "of the other data" not in text
    )
    configure(run, "sft", data=str(tmp_path / "mine.jsonl"))
    assert "Licences of the other data are not recorded." in run_card(run, "sft", "me/m").text


def test_it_tells_what_happened(run: RunFolder) -> None:
    card = run_card(run, "sft", "me/m").text
    rows = {line.split(" | ")[0].strip("| "): line for line in card.split("## ")[2].splitlines()}
    assert "random weights" in rows["init"] and "built-in corpus (a91b84d24b607257)" in rows["sft"]
    assert "| 4 | 40 | 0:12 |" in rows["sft"] and "pretrain" in rows["sft"]
    assert "| sft | 1.500 +0.00 | 50.0% |" in card  # the ladder
    assert "![sft loss](curves/sft-loss.svg)" in card
    assert "- time: 0:36 (30 CPU seconds)" in card and "- tokens trained on: 120" in card
    assert "backend torch, device cpu" in card
    assert "Of the real one it knows nothing" in card
    assert "| learning\\_rate | 0.001 |" in card


def test_an_earlier_stage_knows_nothing_of_later_ones(run: RunFolder) -> None:
    card = run_card(run, "pretrain", "me/m").text
    assert "sft" not in card and "exact" not in card


@pytest.mark.parametrize(
    ("raters", "said"),
    [
        ([["anna"], ["ben", "anna"]], "sft learned from 2 pairs, rated by 2 people."),
        ([["simulated:right=1"]], "rated by 1 simulated rater (a rule, not a person)."),
        (
            [["anna"], ["simulated:a"], ["simulated:b"]],
            "rated by 1 person and 2 simulated raters (a rule, not a person).",
        ),
    ],
)
def test_raters_are_counted_and_not_named(
    run: RunFolder, raters: list[list[str]], said: str
) -> None:
    rows = [{"prompt": "p", "raters": names} for names in raters]
    (run.path / "sft" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = run_card(run, "sft", "me/m").text
    assert said in card and "anna" not in card
    assert ("simulated ratings say what a rule prefers" in card) == ("simulated" in said)


def test_no_folder_of_this_machine(run: RunFolder) -> None:
    for stage in ("init", "pretrain", "sft"):
        configure(
            run,
            stage,
            data=f"{SECRET}/book.txt",
            validation=f"{SECRET}/v.txt",
            out=SECRET,
            model=f"{SECRET}/x/model",
            reward_model=f"{SECRET}/reward/model",
            reward_file=f"{SECRET}/reward.py",
        )
        change(run, stage, notes=[f"rewarded by {SECRET}/reward/model"])
    for text in (
        run_card(run, "sft", "me/m").text,
        run_card(run, "sft", "me/m", folders=["sft"]).text,
    ):
        assert "secret" not in text and "book.txt" in text and "rewarded by reward" in text


def test_a_checkpoint_does_not_claim_the_stage_s_figures(run: RunFolder) -> None:
    card = run_card(run, "sft", "me/m", model=run.path / "sft" / "model", step=2).text
    assert (
        "a checkpoint of a stage that has not ended: step 2" in card and "exact" not in card.lower()
    )


def test_names_and_prompts_stay_what_they_are(tmp_path: Path) -> None:
    """A folder's name, a prompt and a note are anyone's text; a card is Markdown and HTML on
    somebody's page.
    """
    run = write_run(tmp_path / "a](b)<img src=x>|\u202e`x")
    odd = "</details><script>a</script>\n```\n\x1b[2J\u202e' ; rm -rf /"
    change(run, "sft", answers=[{"prompt": odd, "answer": odd}], notes=[odd])
    card = run_card(run, "sft", "me/m").text
    assert card == sanitize(card, limit=None)
    parsed = MarkdownIt("commonmark").enable("table").parse(card.split("---\n", 2)[2])
    flat = [token for block in parsed for token in (block, *(block.children or ()))]
    html = "".join(token.content for token in flat if token.type.startswith("html"))
    assert set(re.findall(r"<[^>]*>", html)) == {
        "<details>",
        "</details>",
        "<summary>",
        "</summary>",
    }
    assert not [
        token
        for token in flat
        if token.type in ("image", "link_open") and "curves/" not in str(token.attrs)
    ]
    command = next(line for line in card.splitlines() if line.startswith("ondevice generate"))
    assert shlex.split(command)[:3] == ["ondevice", "generate", "m"] and "rm" not in shlex.split(
        command
    )


def test_pictures_stand_alone(run: RunFolder) -> None:
    import xml.etree.ElementTree as ElementTree

    pictures = run_card(run, "sft", "me/m").pictures
    assert set(pictures) == {f"curves/{name}-loss.svg" for name in ("init", "pretrain", "sft")}
    for text in pictures.values():
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and len(text) < 20_000
        assert not [e for e in root.iter() if "script" in e.tag or "href" in "".join(e.attrib)]
    assert curves(run.path / "sft" / "events.jsonl")


def test_of_a_folder_alone_nothing_is_made_up(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    model = write_model(tmp_path / "m")
    card = folder_card(model, "me/m").text
    assert "how it was trained is not known" in card
    assert ModelCard(card).data.pipeline_tag == "text-generation"
    (model / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    assert folder_card(model, "me/m").text == "---\nlicense: mit\n---\nmine\n"


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    data = ModelCard(folder_card(tmp_path, "me/m").text).data
    assert kind_of(data)[0] == "peft" and data.base_model == "org/base"
    for revision, told in (("ab" * 20, f', revision="{"ab" * 20}")'), ('x")', ")")):
        (tmp_path / "adapter_config.json").write_text(
            json.dumps(
                {"base_model_name_or_path": "org/base", "peft_type": "LORA", "revision": revision}
            )
        )
        line = f'base = AutoModelForCausalLM.from_pretrained("org/base"{told}\n'
        assert line in folder_card(tmp_path, "me/m").text
    (tmp_path / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{SECRET}"}}')
    assert "secret" not in folder_card(tmp_path, "me/m").text


def test_a_data_card_is_valid(tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    card = data_files(write_ratings(tmp_path), "me/votes", license="cc-by-4.0")["README.md"]
    data = DatasetCard(card).data
    assert data.license == "cc-by-4.0" and data.size_categories == ["n<1K"]
    assert data.to_dict()["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train.jsonl"}
    ]
    assert "anna" not in card


# the snippets are run


def snippets(card: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", card, flags=re.S | re.M)


def run_python(texts: list[str], env: dict[str, str], folder: Path) -> list[str]:
    """What each printed; one fresh process for all, which knows nothing but the texts."""
    if any("mlx_lm" in text for text in texts):
        pytest.importorskip("mlx_lm")
    one = "import json, sys\nfor text in json.load(sys.stdin):\n    print(text)\n    exec(text, {})\n    print(chr(0))"
    done = subprocess.run(
        [sys.executable, "-c", one],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        env=env,
        cwd=folder,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return [
        said.strip().removeprefix(text.strip())
        for said, text in zip(done.stdout.split("\0"), texts, strict=False)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("all_stages", [False, True])
def test_every_snippet_runs(server: HubServer, tmp_path: Path, all_stages: bool) -> None:
    """As a reader would: in a fresh process, from the Hub, with nothing but the text."""
    run = write_run(tmp_path / "run")
    ondevice.push(run.path, "me/m", all_stages=all_stages, tell=lambda event: None)
    env = environment(server, tmp_path / "hf") | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    files = server.repo("me/m").commits[-1].files
    cards = {
        path: files[path].decode() for path in ("README.md", "pretrain/README.md")[: 1 + all_stages]
    }
    python = {path: snippets(card, "python") for path, card in cards.items()}
    assert [len(texts) for texts in python.values()] == [2, 1][: 1 + all_stages]
    assert all(run_python([text for texts in python.values() for text in texts], env, tmp_path))
    for path, card in cards.items():
        folder = tmp_path / path.replace("/", "-")
        folder.mkdir()
        (shell,) = snippets(card, "sh")
        for line in shell.splitlines():
            words = [sys.executable, "-m", *shlex.split(line)]
            done = subprocess.run(
                words, capture_output=True, text=True, env=env, cwd=folder, timeout=300
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"


KINDS = {
    "bert": ("transformers", "fill-mask"),
    "classes": ("transformers", "text-classification"),
    "judge": ("transformers", "text-classification"),
    "t5": ("transformers", "text2text-generation"),
    "lora": ("peft", "text-generation"),
    "packed": ("mlx", "text-generation"),
    "mlx": ("mlx", "text-generation"),
}


def write_kinds(folder: Path) -> None:
    """A small model or adapter of each kind that a card can be about; the adapters' base is
    me/base.
    """
    backend = load_backend("torch", device="cpu", dtype="float32")
    plain, masks = small_tokenizer(), train_tokenizer(TEXTS, 420, fills=True)
    bert = models.encoder_config("bert", vocab_size=masks.vocab_size)
    wide = models.config("llama", vocab_size=plain.vocab_size, hidden_size=64, head_dim=16)
    made = {
        "bert": (bert, masks),
        "judge": (replace(config(), num_labels=1), plain),
        "base": (wide, plain),
        "classes": (replace(bert, num_labels=3, label_names=("a", "b", "c")), masks),
        "t5": (models.seq2seq_config("t5", vocab_size=plain.vocab_size), plain),
    }
    for name, (cfg, tokenizer) in made.items():
        (folder / name).mkdir(parents=True)
        write_folder(
            folder / name,
            backend,
            cfg,
            {n: backend.array(w) for n, w in models.weights(cfg).items()},
            tokenizer,
        )
    base = load_model(folder / "base", backend)
    name = "model.layers.0.self_attn.q_proj"
    low = lora_tensors(
        name,
        Pair(np.ones((2, 64), np.float32), np.ones((64, 2), np.float32), 0.5),
        INHERITED,
        backend,
    )
    (folder / "lora").mkdir()
    write(
        folder / "lora",
        backend,
        replace(base, params=base.params | low, adapter=Adapter(str(folder / "base"))),
    )
    ondevice.export(folder / "lora", "mlx-adapter", out=folder / "mlx", backend="torch")
    ondevice.export(
        folder / "base", "mlx", bits=4, group_size=32, out=folder / "packed", backend="torch"
    )
    for name in ("lora", "mlx"):
        file = folder / name / "adapter_config.json"
        file.write_text(file.read_text().replace(str(folder / "base"), "me/base"))


@pytest.mark.slow
def test_the_snippets_of_every_kind_run(
    server: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import ModelCard

    write_kinds(tmp_path)
    texts = []
    for name in ("base", *KINDS):
        ondevice.push(tmp_path / name, f"me/{name}", tell=lambda event: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "back").mkdir()
    for name, (library, task) in KINDS.items():
        card = server.repo(f"me/{name}").commits[-1].files["README.md"].decode()
        data = ModelCard(card).data
        assert kind_of(data) == (library, task), name
        assert data.base_model == ("me/base" if name in ("lora", "mlx") else None)
        texts += snippets(card, "python")
        assert len(snippets(card, "python")) == 1 and ("mlx_lm" in texts[-1]) == (library == "mlx")
        for line in "".join(snippets(card, "sh")).splitlines():
            assert (
                cli.main(
                    shlex.split(
                        line.replace("--out ", "--out back/").replace(f" {name} ", f" back/{name} ")
                    )[1:]
                )
                == 0
            ), line
            assert capsys.readouterr().out.strip()
    server.add(
        "me/ladder",
        {f"sft/{path}": content for path, content in contents(tmp_path / "lora").items()},
    )
    texts += snippets(
        "".join(use(Subject.of(tmp_path / "lora"), Place("me/ladder", "sft"), "Anna")), "python"
    )
    env = environment(server, tmp_path / "hf")
    assert len(texts) == len(KINDS) + 1 and all(run_python(texts, env, tmp_path))


@pytest.mark.slow
def test_the_data_set_s_snippet_runs(server: HubServer, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write_ratings(tmp_path / "run")
    ondevice.push(tmp_path / "run", "me/votes", dataset=True, tell=lambda event: None)
    env = environment(server, tmp_path / "hf")
    (text,) = snippets(
        server.repo("me/votes", "dataset").commits[-1].files["README.md"].decode(), "python"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{text}\nprint(pairs[0]['chosen'], len(pairs))"],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0 and "'content': 'yes'" in done.stdout, done.stderr
