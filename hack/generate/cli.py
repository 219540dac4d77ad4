"""docs/reference of the command `finetune`: cli.md and cli.schema.json, from its parser and its answer."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_cli import __main__, answer
from generate import page

SOURCE = "trainer-image/finetune_cli"
UNDESCRIBED = {
    "command": "The verb.",
    "job": "Which job, and where its results are.",
    "counts": "How much data there is.",
    "estimate": "What training will take.",
}
"""Fields whose meaning stands with their type."""


def files() -> dict[Path, str]:
    """What every generated file must contain."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **document()}
    text = page.fill("cli.md", SOURCE, exit_codes=exit_codes(), verbs="\n\n".join(verbs()), answer=fields())
    return {page.FOLDER / "cli.md": text, page.FOLDER / "cli.schema.json": json.dumps(schema, indent=1) + "\n"}


def document() -> dict[str, Any]:
    """The JSON Schema of an answer, as it is printed."""
    return answer.Answer.model_json_schema(by_alias=True, mode="serialization")


def exit_codes() -> str:
    names = {str(code.value): code.name for code in answer.Exit}
    rows = [(code, names[code], page.cell(meaning)) for code, meaning in page.meanings(answer.Exit)]
    return page.table(("Code", "Name", "Meaning"), rows)


def verbs() -> Iterator[str]:
    """A section for each verb."""
    found = next(action for action in __main__.parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, verb in found.choices.items():
        positionals = [action for action in verb._actions if not action.option_strings]
        usage = " ".join(f"{one.metavar}..." if one.nargs == "+" else str(one.metavar) for one in positionals)
        yield f"## finetune {name}"
        yield f"`finetune {name} {usage}`: {verb.description}."
        yield page.table(("Option", "Meaning"), options(verb))


def options(verb: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Arguments and options of a verb, without --help."""
    for action in verb._actions:
        if action.dest == "help":
            continue
        name = action.option_strings[0] if action.option_strings else str(action.metavar)
        value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
        shown = f"{name} {value}" if action.option_strings and action.nargs != 0 else name
        default = f" Default: {action.default}." if action.default not in (None, False, []) else ""
        text = str(action.help)
        yield page.cell(f"`{shown}`"), page.cell(f"{text[:1].upper()}{text[1:]}.{default}")


def fields() -> str:
    known = answer.Answer.model_fields.values()
    rows = [(f"`{one.alias}`", page.cell(one.description or UNDESCRIBED[str(one.alias)])) for one in known]
    return page.table(("Field", "Meaning"), rows)
