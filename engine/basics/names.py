"""Valid names for models and topics, checked once for every use of the name.

A model's name is used for its folder of artifacts, its rows in the registry, its consumer group, in
its transactional ids, and as the prefix of its journal's topic.
"""

import re

__all__ = ["LONGEST_NAME", "name_fault", "topic_fault"]

LONGEST_NAME = 200
"""Most characters of a model's name: a folder has up to 255, a topic, `NAME.journal`, 249."""
_LONGEST_TOPIC = 249
_LETTERS = re.compile(r"[A-Za-z0-9._-]+")


def name_fault(name: str) -> str:
    """Return why this cannot be a model's name, and the rule; empty if it can."""
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
    """Return why Kafka cannot have a topic of this name, and the rule; empty if it can."""
    if not _LETTERS.fullmatch(topic):
        return "a topic's name is of letters, digits, '.', '_' and '-'"
    if topic in (".", ".."):
        return "Kafka has no topic of this name"
    if len(topic) > _LONGEST_TOPIC:
        return f"a topic's name has at most {_LONGEST_TOPIC} characters, this one {len(topic)}"
    return ""
