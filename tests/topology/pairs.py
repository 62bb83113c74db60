"""Pair files as texts."""

from __future__ import annotations


def pair(
    name: str,
    address: str,
    link: str = "",
    *,
    source: str = 'type = "generate"',
    sink: str = 'type = "discard"',
) -> str:
    return f'[link]\nname = "{name}"\naddress = "{address}"\n{link}\n[source]\n{source}\n[sink]\n{sink}\n'


def kafka_source(group: str = "g", topics: str = "orders", client: str = "", brokers: str = "k:9092") -> str:
    listed = ", ".join(f'"{topic}"' for topic in topics.split())
    return f'type = "kafka"\nbootstrap_servers = "{brokers}"\ntopics = [{listed}]\ngroup_id = "{group}"\n{client}'


def kafka_sink(topic: str = "{topic}", client: str = "", brokers: str = "t:9092") -> str:
    return f'type = "kafka"\nbootstrap_servers = "{brokers}"\ntopic = "{topic}"\n{client}'
