"""Apache Kafka's jars, fetched once by Maven, and the Java that runs them."""

import fcntl
import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

VERSION = "4.1.1"
POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>midstream</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""


class BrokerError(RuntimeError):
    """Kafka could not be fetched, or a node did not start."""


@functools.cache
def java() -> tuple[str | None, str | None]:
    """Return the path of a Java that runs Kafka, or None and the reason."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if found is None:
        return None, "no Java"
    told = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < 17:
        return None, f"Java {version[1] if version else 'of unknown version'}; Kafka needs 17"
    return found, None


def cached() -> Path:
    """Return the folder where the jars are or will be."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "midstream-kafka"
    return Path(os.environ.get("MIDSTREAM_KAFKA_CACHE") or default).expanduser() / VERSION


def missing() -> str | None:
    """Say why Apache Kafka cannot run here; None if it can."""
    if java()[0] is None:
        return java()[1]
    return None if cached().exists() or shutil.which("mvn") else "no Maven to fetch Apache Kafka"


def jars() -> Path:
    """Return the folder with Kafka's jars, fetched by Maven the first time, by one process."""
    folder = cached()
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{VERSION}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # another process fetched it while this one waited
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as work:
            pom, lib = Path(work, "pom.xml"), Path(work, "lib")
            pom.write_text(POM)
            command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
            fetched = subprocess.run(
                [*command, "-DincludeScope=runtime", f"-DoutputDirectory={lib}"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if fetched.returncode != 0:
                raise BrokerError(
                    f"Maven could not fetch Kafka:\n{(fetched.stdout + fetched.stderr)[-2000:]}"
                )
            lib.rename(folder)  # there only when complete
    return folder
