"""What a model is told to do, in several wordings."""

from __future__ import annotations

from typing import Any

THINGS: dict[str, dict[str, str]] = {
    "en": {
        "ner": "the entities",
        "re": "the relations between entities",
        "spo": "the relations between entities of the right types",
        "ee": "the events, with what triggers them and their arguments",
        "eet": "the words that trigger an event",
        "eea": "the arguments of events",
        "kg": "the entities, with their attributes",
    },
    "zh": {
        "ner": "实体",
        "re": "实体之间的关系",
        "spo": "符合类型要求的实体之间的关系",
        "ee": "事件及其触发词和论元",
        "eet": "事件触发词",
        "eea": "事件论元",
        "kg": "实体及其属性",
    },
}
TASKS: dict[str, tuple[str, ...]] = {
    "en": (
        "Find {things} in the input that the schema asks for.",
        "Read the input and list {things} of the types in the schema.",
        "From the input, extract {things} that match the schema.",
        "The schema says what is wanted: collect {things} that the input mentions.",
    ),
    "zh": (
        "请找出输入文本中schema所要求的{things}。",
        "阅读输入文本，列出属于schema中各类型的{things}。",
        "从输入文本里提取与schema相符的{things}。",
        "schema说明了需要什么：请收集文本中提到的{things}。",
    ),
}
SHAPES: dict[str, dict[str, str]] = {
    "en": {
        "ner": "Answer with a JSON object: each type, and the list of its mentions as they stand in the input",
        "re": 'Answer with a JSON object: each relation, and the list of its pairs {"head": ..., "tail": ...}',
        "spo": "Answer with a JSON object: each predicate, and the list of its triples "
        '{"subject": ..., "subject_type": ..., "object": ..., "object_type": ...}',
        "ee": "Answer with a JSON object: each event type, and the list of its events "
        '{"trigger": ..., "arguments": {role: ...}}, NAN for a role that nothing plays, a list for several',
        "eet": "Answer with a JSON object: each event type, and the list of its trigger words",
        "eea": "Answer with a JSON object: each event type, and the list of its events {role: ...}, NAN for a role "
        "that nothing plays, a list for several",
        "kg": "Answer with a JSON object: each entity type, and its entities {entity: {attribute: ...}}, without the "
        "attributes that are not told, a list for several values",
    },
    "zh": {
        "ner": "用JSON对象回答：每个类型对应其在文本中的实体列表",
        "re": '用JSON对象回答：每个关系对应其 {"head": ..., "tail": ...} 列表',
        "spo": "用JSON对象回答：每个谓词对应其 "
        '{"subject": ..., "subject_type": ..., "object": ..., "object_type": ...} 列表',
        "ee": '用JSON对象回答：每个事件类型对应其 {"trigger": ..., "arguments": {角色: ...}} 列表，'
        "没有的角色写NAN，多个值写成列表",
        "eet": "用JSON对象回答：每个事件类型对应其触发词列表",
        "eea": "用JSON对象回答：每个事件类型对应其 {角色: ...} 列表，没有的角色写NAN，多个值写成列表",
        "kg": "用JSON对象回答：每个实体类型对应其 {实体: {属性: ...}}，文本未提及的属性不写，多个值写成列表",
    },
}
NOTHING: dict[str, tuple[str, ...]] = {
    "en": ("; what does not occur has an empty {empty}.", ". Where there is none, write an empty {empty}."),
    "zh": ("；没有出现的给出空{empty}。", "。如果没有，就写空{empty}。"),
}
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "en": ("; leave out what does not occur.", ". Types that do not occur are not in it."),
    "zh": ("；没有出现的不写。", "。答案中不含没有出现的类型。"),
}
EMPTY: dict[str, dict[bool, str]] = {"en": {False: "list", True: "object"}, "zh": {False: "列表", True: "对象"}}
MOST_PHRASINGS = 8  # every task in every way of saying what nothing looks like


def instructions(config: Any) -> tuple[str, ...]:
    """Return the wordings an `ExtractionConfig` asks for; the first is the one that evaluation and prediction use."""
    if isinstance(config.phrasings, list):
        return tuple(config.phrasings)
    listed = config.absent == "listed"
    return tuple(wording(config.kind, config.language, number, listed) for number in range(config.phrasings))


def wording(kind: str, language: str, number: int, listed: bool = True) -> str:
    """Return one of `MOST_PHRASINGS` wordings; the first few differ in every part.

    What does not occur is `listed` with nothing, or left out of the answer.
    """
    tasks, endings = TASKS[language], NOTHING[language] if listed else LEFT_OUT[language]
    task = tasks[number % len(tasks)].format(things=THINGS[language][kind])
    ending = endings[(number + number // len(tasks)) % len(endings)].format(empty=EMPTY[language][kind == "kg"])
    return task + (" " if language == "en" else "") + SHAPES[language][kind] + ending
