"""What a model and a topic may be called: checked once, for every use of the name.

A model's name is that of its folder of artifacts and of its rows in the registry, the consumer
group, a part of its transactional ids, and the beginning of its journal's topic.
"""

import re

__all__ = ["LONGEST_NAME", "name_fault", "topic_fault"]

LONGEST_NAME = 200
"""Characters of a model's name: a folder may have 255, and a topic, `NAME.journal`, 249."""
_LONGEST_TOPIC = 249
_LETTERS = re.compile(r"[A-Za-z0-9._-]+")


def name_fault(name: str) -> str:
    """Return why this cannot be a model's name, with what is allowed; nothing if it can."""
    if not _LETTERS.fullmatch(name):
        return "allowed: a name of letters, digits, '.', '_' and '-'"
    if name[0] in ".-":
        return "a name begins with a letter, a digit or '_': folders and topics are called so"
    if len(name) > LONGEST_NAME:
        return (
            f"a name has at most {LONGEST_NAME} characters, this one {len(name)}: folders and "
            "topics are called so"
        )
    return ""


def topic_fault(topic: str) -> str:
    """Return why Kafka has no topic of this name, with what is allowed; nothing if it may."""
    if not _LETTERS.fullmatch(topic):
        return "a topic's name is of letters, digits, '.', '_' and '-'"
    if topic in (".", ".."):
        return "Kafka has no topic of this name"
    if len(topic) > _LONGEST_TOPIC:
        return f"a topic's name has at most {_LONGEST_TOPIC} characters, this one {len(topic)}"
    return ""
