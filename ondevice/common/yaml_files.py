"""YAML: parsed within limits on bytes, depth and what aliases repeat.

The one place that parses YAML: a test walks the source for another one.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any

LARGEST = 1 << 18
"""Characters; a recipe has a few thousand, and the parser reads a hundred thousand a second."""
DEEPEST = 50
MOST = 100_000
"""Values, those that an alias repeats counted each time."""


_MERGE = "tag:yaml.org,2002:merge"  # <<: *other


class BadYaml(ValueError):
    """What is wrong, and on which line, where that is known (from 1; else 0)."""

    def __init__(self, message: str, line: int = 0) -> None:
        self.line = line
        super().__init__(message)


def parse(text: str) -> Any:
    """The value of a text; None of an empty one. Raises BadYaml, also for a key that stands twice
    in one mapping, of which YAML would silently take the last."""
    import yaml  # 20 ms

    if len(text) > LARGEST:
        raise BadYaml(f"it has {len(text):,} characters, more than {LARGEST:,}")
    try:
        return yaml.load(text, _loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "cannot be read"
        raise BadYaml(str(problem), mark.line + 1 if mark else 0) from None
    except BadYaml:
        raise
    # a date that no calendar has, a number of thousands of digits, a key that is a list
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadYaml(str(error)) from None


@cache
def _loader() -> Any:
    import yaml  # 20 ms

    class Loader(yaml.SafeLoader):
        """Safe, and counts what it composes: an alias counts for all that it stands for."""

        def __init__(self, stream: Any) -> None:
            super().__init__(stream)
            self.depth = self.count = 0
            self.sizes: dict[Any, int] = {}  # anchor → values

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            before = self.count
            if isinstance(event, yaml.AliasEvent):
                self.count += self.sizes.get(event.anchor, MOST)  # not yet whole: it holds itself
            self.count += 1
            self.depth += 1
            if self.depth > DEEPEST:
                raise BadYaml("nested too deep", event.start_mark.line + 1)
            if self.count > MOST:
                raise BadYaml(f"its aliases make more than {MOST:,} values of it")
            node = super().compose_node(parent, index)
            self.depth -= 1
            if event.anchor is not None and not isinstance(event, yaml.AliasEvent):
                self.sizes[event.anchor] = self.count - before
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                if key_node.tag == _MERGE:
                    continue
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, Hashable) and key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands twice", key_node.start_mark
                    )
                if isinstance(key, Hashable):
                    seen.add(key)
            return super().construct_mapping(node, deep)

    return Loader
