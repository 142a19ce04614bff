"""A chat template takes no more memory and time than it may, whatever it uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import jinja2.filters
import jinja2.sandbox
import jinja2.tests
import pytest

from hostile_templates import HOSTILE
from ondevice.common.errors import UserError
from ondevice.data import template_operations as operations
from ondevice.data.template_sandbox import run_template

NAMES: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
    "tools": None,
    "add_generation_prompt": False,
}
ROOM = 700 << 20  # bytes that a rendering may take, the program itself left out

CHILD = """
import json, resource, sys
import test_template_limits as t
from hostile_templates import HOSTILE
from ondevice.data import template_budget
template_budget.SECONDS = 2.0
said = {}
for line in open("/proc/self/status"):
    if line.startswith("VmSize"):
        base = int(line.split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (base + t.ROOM, base + t.ROOM))
for name in sys.argv[1:]:
    print(json.dumps([name, t.outcome(HOSTILE[name])]), flush=True)
"""


def outcome(template: str) -> str:
    """What became of a template: the error's kind, or `written`."""
    try:
        run_template(template, NAMES)
    except UserError as error:
        if "needs more than" in str(error):  # it came as far as that
            return "MemoryError"
        return "UserError"
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        return type(error).__name__
    except RecursionError:
        return "RecursionError"
    return "written"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
@pytest.mark.parametrize("part", range(4))
def test_hostile_templates_take_no_more_than_they_may(part: int) -> None:
    """Each is refused, or done, within a limit that the system enforces, and never hangs."""
    names = list(HOSTILE)[part::4]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *names],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    said = dict(json.loads(line) for line in done.stdout.splitlines())
    assert list(said) == names, done.stderr[-2000:]
    assert "MemoryError" not in said.values(), said


def test_every_filter_of_jinja_is_charged_for_or_refused() -> None:
    """A new version's filter is not there until somebody has looked at it."""
    for name in jinja2.filters.FILTERS:
        if name in operations.FILTERS:
            continue
        with pytest.raises(UserError, match="No filter named"):
            run_template("{{ 'a'|" + name + " }}", NAMES)
    assert set(operations.FILTERS) <= set(jinja2.filters.FILTERS)


def test_every_test_of_jinja_is_known() -> None:
    for name in jinja2.tests.TESTS:
        if name not in operations.TESTS:
            with pytest.raises(UserError, match="No test named"):
                run_template("{{ 'a' is " + name + " }}", NAMES)


@pytest.mark.parametrize("value", ["a", 1, 1.5, (1,), [1], {"a": 1}])
def test_every_method_is_charged_for_or_refused(value: Any) -> None:
    """Those that a new version of Python brings are refused until somebody has looked at them."""
    known = operations.METHODS.get(type(value), {})
    for name in dir(value):
        if name.startswith("_") or name in known or not callable(getattr(value, name)):
            continue
        with pytest.raises(jinja2.TemplateError):
            run_template("{{ value." + name + "() }}", {**NAMES, "value": value})


@pytest.mark.parametrize("name", ["lipsum", "self.__init__", "range.__class__"])
def test_what_is_not_given_cannot_be_called(name: str) -> None:
    with pytest.raises(jinja2.TemplateError):
        run_template("{{ " + name + "() }}", NAMES)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "messages - 1e999"])
def test_a_number_that_python_has_no_word_for_is_refused(number: str) -> None:
    with pytest.raises(UserError, match="a number beyond every float"):
        run_template("{% if " + number + " %}x{% endif %}", NAMES)


def test_a_binary_operator_that_makes_something_is_looked_at() -> None:
    """Of those that jinja2 lets one look at, the others make numbers only."""
    signs = set(jinja2.sandbox.SandboxedEnvironment.default_binop_table)
    assert signs == {"+", "-", "*", "/", "//", "**", "%"}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ '%s-%d' % ('a', 3) }}", "a-3"),
        ("{{ '%5.1f' % 2.25 }}", "  2.2"),
        ("{{ '{:>4}'.format(7) }}", "   7"),
        ("{{ 'a'.center(3) }}|{{ 'b'|center(3) }}", " a | b "),
        ("{{ [1, 2]|join(', ') }}", "1, 2"),
        ("{{ ', '.join(['a', 'b']) }}", "a, b"),
        ("{{ messages|map(attribute='content')|join }}", "hiho"),
        ("{{ messages[::-1]|length }}", "2"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
        ("{{ {'b': 1, 'a': 2}|dictsort }}", "[('a', 2), ('b', 1)]"),
        ("{{ {'a': [1, {'b': none}]}|tojson(indent=1) }}", json.dumps({"a": [1, {"b": None}]}, indent=1)),
        ("{% for a in 'x,y'.split(',') %}{{ loop.index ~ a }}{% endfor %}", "1x2y"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{{ 2 ** 70 }}", str(2**70)),
        ("{{ 'abc'|indent(2, true) }}", "  abc"),
        ("{{ [3, 1, 2]|sort|first }}{{ [1, 1]|unique|list }}{{ [1, 2]|sum }}", "1[1]3"),
        ("{{ '<a>'|e }}{{ 'A'|lower|title }}{{ 'ab'|replace('a', 'c') }}", "&lt;a&gt;Acb"),
        ("{{ [1, 2, 3]|batch(2)|list }}", "[[1, 2], [3]]"),
        ("{{ 1.26|round(1) }}{{ '7'|int + 1 }}", "1.38"),
    ],
)  # fmt: skip
def test_what_is_allowed_does_what_it_did(template: str, text: str) -> None:
    assert run_template(template, NAMES) == text
