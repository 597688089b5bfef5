"""`unbroken schema`."""

from __future__ import annotations


def schema(task: str = "embed") -> int:
    """Print the JSON schema of a task's configuration, for editors and programs.

    **Examples**

        unbroken schema embed > embed.schema.json
        unbroken schema adapt > adapt.schema.json

    Parameters
    ----------
    task
        embed, classify or adapt.
    """
    import json

    from unbroken.tasks.task import find_task

    print(json.dumps(find_task(task).CONFIG.model_json_schema(), indent=2))
    return 0
