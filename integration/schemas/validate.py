"""Validates documents against schemas/*.json, by the jsonschema package.

Reads lines {"schema": "cut.json", "document": …} from stdin and answers each with a line: a JSON array of what is wrong.
Stricter than the schemas are for readers: a field that no schema describes is wrong, too.
"""

import json
import pathlib
import sys

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "schemas"


def closed(schema):
    """The schema with every object that names its required properties closed to others."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and isinstance(schema.get("required"), list):
        schema.setdefault("additionalProperties", False)
    return schema


def main():
    schemas = {path.name: closed(json.loads(path.read_text())) for path in FOLDER.glob("*.json")}
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    registry = Registry().with_resources((s["$id"], Resource.from_contents(s)) for s in schemas.values())
    validators = {
        name: Draft202012Validator(schema, registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER)
        for name, schema in schemas.items()
    }
    for line in sys.stdin:
        task = json.loads(line)
        errors = validators[task["schema"]].iter_errors(task["document"])
        print(json.dumps([f"{error.json_path}: {error.message}" for error in errors]))


main()
