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
        "a hundred drawn chats and more on each shipped chat template: CI draws 25 to 30 on each",
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
        r"bench/bench|interop|real/(beside|smollm2)",
        "scripts that measure other libraries at length: CI runs one row of the benchmark, and "
        "compares our numbers with theirs in `test_oracles.py` and `test_trl_oracles.py`",
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
        "test_ratings_shared.py",
        r"any_order.*5",
        "five orders of sixteen programs on one database: CI has two of them",
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
        r"of_going_back.*-7\]",
        "kills at every seventh file operation: CI kills at every 21st",
    ),
    Nightly(
        "test_push_network.py",
        "killed_elsewhere",
        "a push killed at 13 places: CI kills it at seven others",
    ),
    Nightly(
        "test_tui_imports.py",
        r"app_imports\[0\.02-0\.0\]",
        "slow imports while the app opens: CI has quick ones, and slow ones while Rate opens",
    ),
    Nightly(
        "test_parity.py",
        r"eager_run_after_a_compiled_one.*inductor",
        "what torch's compiler makes in C++, before an eager run: CI has its tracing and its graphs",
    ),
)


def reason(file: str, name: str) -> str:
    """Why a test is nightly; empty where it is not."""
    for rule in NIGHTLY:
        if rule.file == file and re.search(rule.tests, name):
            return rule.reason
    return ""
