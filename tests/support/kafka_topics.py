"""A project whose input, outputs and journal are topics."""

import json
import signal
import time

from project import Project, wait_for

FEATURES = "\n[features]\n" + "".join(f'f{i} = "number"\n' for i in range(5))


class Topics:
    """A project whose in- and outputs are topics, made for it."""

    def __init__(self, kafka, topic, folder, *, partitions=3, source=None, config="", made=True):
        self.kafka = kafka
        self.source = source or kafka.create_topic(topic("in"), partitions=partitions)
        names = {kind: topic(kind) for kind in ("predictions", "rejected", "alarms", "journal")}
        if made:
            for kind, name in names.items():
                kafka.create_topic(name, partitions=partitions if kind == "journal" else 2)
        self.names = names
        outputs = "".join(f'{kind} = "{name}"\n' for kind, name in names.items())
        text = f"""
[input]
topic = "{self.source}"
wait_seconds = 20
%s
[output]
{outputs}
[kafka]
"bootstrap.servers" = "{kafka.bootstrap}"
[state]
commit_seconds = 0.05
snapshot_events = 20000
"""
        first, _, rest = config.partition("---")
        self.project = Project(folder, config=text % first + rest + FEATURES)
        learner = self.project.config.read_text().replace("models:make", "logistic")
        self.project.config.write_text(learner)

    def produce(self, lines, partitions=3):
        def value(line):
            return line if line is None or isinstance(line, bytes) else json.dumps(line).encode()

        self.kafka.produce(
            self.source, [(None, value(line), i % partitions) for i, line in enumerate(lines)]
        )

    def out(self, kind):
        return [json.loads(message.value) for message in self.kafka.read_all(self.names[kind])]

    def until_published(self, number):
        """Wait until so many predictions are published."""
        topic, admin = self.names["predictions"], self.kafka.admin()

        def published():  # marks of transactions have offsets, too; reading all takes its time
            ends = self.kafka.ends(topic, True, admin=admin)
            return sum(ends.values()) >= number and len(self.kafka.read_all(topic)) >= number

        wait_for(published, what=f"{number} predictions", pause=0.1)

    def killed(self, kills, rng, *arguments):
        """Kill a run again and again; every fourth one perhaps while it starts."""
        for i in range(kills):
            process = self.project.start("run", "config.toml", *arguments)
            if i % 4 == 3:
                time.sleep(rng.uniform(0.0, 1.0))
            else:
                for line in process.stderr:
                    if "event=running" in line:
                        break
                time.sleep(rng.uniform(0.0, 0.4))
            process.send_signal(signal.SIGKILL)
            process.communicate()

    def published_once(self, lines):
        """Check that every event has one prediction, as the events of a partition are in order."""
        ids = [p["id"] for p in self.out("predictions")]
        assert len(ids) == len(set(ids)), "a prediction was published twice"
        assert set(ids) == {e["id"] for e in lines}
