"""Which tests only `scripts/test nightly` runs, and why nothing is lost meanwhile.

CONTRIBUTING.md has the same list. Each is proved in the other tiers too, on fewer cases or fewer
steps; here it is proved at length.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Nightly(NamedTuple):
    """Tests of one file whose names match `tests`; `reason` says where the same is proved sooner."""

    file: str
    tests: str
    reason: str


# Families of which CI compares with transformers: one of Llama's kind, and GPT-2, whose matrices lie turned.
FAMILIES_OF_CI = ("qwen3", "gpt2")
_OTHER_FAMILIES = rf"\[(?!(?:{'|'.join(FAMILIES_OF_CI)})\])"

NIGHTLY = (
    Nightly(
        "test_minute.py",
        r"at_every_stage|less_than_xz|end_shows|both_backends|other_libraries",
        "the whole recipe: CI runs all of its stages with fewer steps on torch, and ten steps of "
        "each stage on both backends",
    ),
    Nightly(
        "test_minute.py",
        r"no_value_in_a_file.*5000",
        "5,000 odd values in the files of a run: CI tries a hundred",
    ),
    Nightly(
        "test_arch_roads.py",
        r"ladder_climbs|whole_road",
        "the encoder's and the encoder-decoder's recipes: CI runs their stages, small",
    ),
    Nightly(
        "test_oracles.py",
        _OTHER_FAMILIES,
        f"families beyond {' and '.join(FAMILIES_OF_CI)} against transformers and mlx-lm: CI "
        "compares both backends with each other on every family",
    ),
    Nightly(
        "test_learned_ranges.py",
        r"many_more_chats|every_training_template.*100",
        "a hundred drawn chats and more on each shipped chat template: CI draws 12 to 30 on each",
    ),
    Nightly(
        "test_library.py",
        r"mixtral|olmoe|jamba|mamba2|falcon_h1|gemma2|cohere",
        "architectures beyond one mixture of experts and one hybrid",
    ),
    Nightly(
        "test_preference_resume.py",
        r"again_and_again.*mlx",
        "kills on MLX: CI kills the same stages on torch, and resumes once on both",
    ),
    Nightly(
        "test_library.py",
        r"killed_go_on_likewise.*(dpo-hybrid|grpo-experts)",
        "DPO of the hybrid and GRPO of the experts, killed: CI kills the other two, and SFT of both",
    ),
    Nightly(
        "test_scripts.py",
        r"bench/bench|one_row_on_both_sides|interop|real/(beside|smollm2)",
        "scripts that measure other libraries: CI compares our numbers with theirs in `test_oracles.py` and "
        "`test_trl_oracles.py`",
    ),
    Nightly(
        "test_card.py",
        r"every_snippet_runs\[False\]",
        "the snippets of one stage's card: CI runs those of a push of all stages",
    ),
    Nightly(
        "test_contributing.py",
        r"every_nightly_rule",
        "that each of these names has tests: one that has none leaves them to CI",
    ),
    Nightly(
        "test_gpu_check.py",
        "every_part_runs",
        "the whole check of a GPU, on the CPU: CI runs one part of it, and compares, trains and "
        "decodes the same in tests of their own",
    ),
    Nightly(
        "test_tui.py",
        r"no_size_breaks.*size[2-5]",
        "four sizes of the terminal between the smallest and the largest, which CI has",
    ),
    Nightly(
        "test_recovery.py",
        r"of_going_back.*(-7\]|\[mlx)",
        "kills at every seventh file operation, and on MLX: CI kills at every 21st on torch",
    ),
    Nightly(
        "test_push_network.py",
        "killed_elsewhere",
        "a push killed at 13 places: CI kills it at seven others",
    ),
    Nightly(
        "test_tui_imports.py",
        r"app_imports\[0\.02",
        "slow imports while the app and Rate open: CI has quick ones",
    ),
    Nightly(
        "test_parity.py",
        r"eager_run_after_a_compiled_one",
        "eager runs after compiled ones: CI compares compiled runs with eager ones, each by itself",
    ),
    Nightly(
        "test_library.py",
        r"killed.*\[mlx|in_bfloat16\[mlx|the_librarys\[mlx-both|merged\[mlx-experts",
        "kills, bfloat16 and adapters of other libraries' architectures on MLX: CI has them on torch, and "
        "MLX's own numbers in float32",
    ),
    Nightly(
        "test_resume.py",
        r"again_and_again.*mlx",
        "kills on MLX: CI kills the same stages on torch, and stops and resumes once on both",
    ),
    Nightly(
        "test_masking.py",
        r"after_a_kill.*mlx",
        "kills on MLX: CI kills the same stages on torch",
    ),
    Nightly(
        "test_corruption.py",
        r"killed_stage.*mlx",
        "kills on MLX: CI kills the same stages on torch, and walks the same curve on both",
    ),
    Nightly(
        "test_lora_stages.py",
        r"never_interrupted\[mlx",
        "kills on MLX: CI kills the same stages on torch",
    ),
    Nightly(
        "test_plan.py",
        r"measured_once\[mlx",
        "measuring the machine with MLX: CI measures it with torch",
    ),
    Nightly(
        "test_shared_prompts.py",
        r"compiled_they_are_the_same\[torch-(t5|mistral)",
        "compiled shared prompts on torch: CI has them eager, and compiled on MLX",
    ),
    Nightly(
        "test_padding_free.py",
        r"mlx_traces_few",
        "how often MLX traces ragged pairs: CI counts the shapes that they come in",
    ),
    Nightly(
        "test_graphs.py",
        r"compiles_whole_graphs.*every",
        "torch's whole graphs of every family: CI compiles those of a decoder and an encoder, and "
        "every loss",
    ),
    Nightly(
        "test_graphs.py",
        r"traces_few",
        "how often torch traces ragged batches: CI counts the shapes that they come in",
    ),
    Nightly(
        "test_untrusted_files.py",
        r"no_file_takes_more.*(rows|dictionary|\.csv\])",
        "the memory that the other kinds of large files take: CI has the largest rows and pages",
    ),
    Nightly(
        "test_seq2seq.py",
        r"writes_the_same_texts.*(mt5|v1\.1)",
        "the texts of T5's later forms against transformers: CI has T5 and BART",
    ),
    Nightly(
        "test_memory.py",
        r"eight_bits_learn.*mlx",
        "that 8-bit moments learn as well on MLX: CI has it on torch, and one update on both",
    ),
    Nightly(
        "test_public_names.py",
        r"no_place_of_this_machine.*(~|hub:|gym:|builtin|a b)",
        "the other ways to spell a place: CI pushes two of them, and names them all without a push",
    ),
    Nightly(
        "test_scripts.py",
        r"it_runs\[(golden/ppo|bench/peer_mlx_lm_lora|real/unseen_sums|plan_accuracy|defaults_check)",
        "scripts that write what tests compare with: CI runs those tests",
    ),
    Nightly(
        "test_rules.py",
        r"vocabulary_on_mlx\[tied",
        "memory over the vocabulary with tied embeddings on MLX: CI has untied ones",
    ),
    Nightly(
        "test_ratings_shared.py",
        r"any_order",
        "orders of sixteen programs on one database: CI has two programs on one database",
    ),
    Nightly(
        "test_tui_safe.py",
        r"in_the_chat_and_the_form|on_the_cards",
        "hostile text typed and received: CI has it on every screen, and finds text drawn past the one door",
    ),
    Nightly(
        "test_tui_push.py",
        r"hostile_text",
        "hostile names of what is pushed: CI has them on every other screen",
    ),
    Nightly(
        "test_tui_odd_runs.py",
        r"hides_no_other\[(loop|pipe_for|folders_for|events_folder)|value\[size1",
        "further runs that cannot be read: CI has odd types, pipes and a bad recipe",
    ),
    Nightly(
        "test_tui_rate.py",
        r"is_no_vote\[(?!b)|in_view.*size[12]",
        "further keys and sizes of the rating screen: CI has one of each",
    ),
    Nightly(
        "test_tui_rate_database.py",
        r"freezes_nothing.*\[(s|u|t)\]",
        "further keys while the ratings are held: CI has two",
    ),
    Nightly(
        "test_tui_form.py",
        r"every_stage_has_a_form.*[12]\]",
        "the forms of two thirds of the stages, drawn: CI draws the others, and reads every stage's fields in "
        "`test_cli.py`",
    ),
    Nightly(
        "test_tui_sampling.py",
        r"said_on_the_card\[texts[1-3]",
        "further plans of sampling that are refused: CI has two",
    ),
    Nightly(
        "test_tui_pages.py",
        r"news_may_come.*\[(?!chat|rate)",
        "news while the other screens are made: CI has two screens",
    ),
    Nightly(
        "test_tui_chat.py",
        r"size1",
        "the chat at a second size: CI has one, and every screen at both",
    ),
    Nightly(
        "test_tui_reason.py",
        r"size1",
        "the rewards at a second size: CI has one, and every screen at both",
    ),
    Nightly(
        "test_template_limits.py",
        r"no_more_than_they_may\[[13]\]",
        "half of the hostile templates: CI has the other half",
    ),
    Nightly(
        "test_killed.py",
        r"-1\]|\[1\]|export|sample",
        "kills at every file operation, and of exports and sampling: CI kills rating, pulls and what the "
        "app keeps at each ninth",
    ),
    Nightly(
        "test_full_disk.py",
        r"one_line\[(export|eval|ratings export)|the_same\[(grpo|dpo|sample|init)|left_at_once",
        "a full disk in further commands and stages: CI fills it for `ratings import` and `pretrain`, and "
        "tries every kind of writer by itself in `test_disk_pause.py`",
    ),
    Nightly(
        "test_hub_recipes.py",
        "smol_goes",
        "the recipe `smol` on its sets' form: CI goes the road of `stories`",
    ),
    Nightly(
        "test_scripts.py",
        r"it_runs\[(rounds|dial)\.py",
        "small runs of two measurements: CI runs what they measure in `test_rounds.py` and "
        "`test_dial_run.py`",
    ),
    Nightly(
        "test_scripts.py",
        r"it_runs\[soak",
        "a few minutes of `scripts/soak`: CI meets each of its faults in tests of their own",
    ),
    Nightly(
        "test_card.py",
        r"snippets_of_every_kind",
        "the snippets of the other kinds of models: CI runs those of a push of all stages",
    ),
    Nightly(
        "test_many.py",
        r"every stage|mlx.*some|some.*mlx",
        "the other stages, three processes, and the state by its owner: CI has four stages by two "
        "processes, and Muon's state by its owner",
    ),
    Nightly(
        "test_many_runs.py",
        r"any_number|launch|torchrun|outnumber|others\[(mlx|torch-0)|befalls.*mlx",
        "launchers, deaths, and runs that go on with other processes: CI has a fault of each kind and the "
        "death of one",
    ),
    Nightly(
        "test_many_nodes.py",
        r"two_nodes|silent",
        "processes on two machines: CI has them on one",
    ),
    Nightly(
        "test_many_evaluation.py",
        r"mlx|road",
        "eval by two processes on MLX, and a recipe's road with its exams: CI has eval on torch",
    ),
    Nightly(
        "test_many_architectures.py",
        r"other_architectures",
        "encoders, encoder-decoders and a library's architectures by two processes: CI has a decoder's "
        "stages",
    ),
    Nightly(
        "test_learned_ranges.py",
        r"every_shipped_template.*_training",
        "the training forms of the shipped chat templates: CI draws chats on each template as it is used, and "
        "on all that a training template marks",
    ),
    Nightly(
        "test_shared_prompts.py",
        r"stage_learns_the_same\[mlx-64",
        "shared prompts computed at once on MLX: CI computes three at a time on both, and all at once on torch",
    ),
    Nightly(
        "test_library.py",
        r"preferences_and_rewards\[mlx",
        "preferences and rewards of other libraries' architectures on MLX: CI has them on torch, and MLX's own "
        "numbers",
    ),
    Nightly(
        "test_scripts.py",
        r"it_runs\[(screenshots|bench/tui)",
        "pictures and times of the app: CI draws each screen in `test_tui_snapshots.py`",
    ),
)


def reason(file: str, name: str) -> str:
    """Why a test is nightly; empty where it is not."""
    for rule in NIGHTLY:
        if rule.file == file and re.search(rule.tests, name):
            return rule.reason
    return ""
