"""S3 for tests: moto's server, a process of its own, that they may kill, freeze and restart."""

import http.client
import os
import secrets
import sys

from local_server import LocalServer, ServerError


class S3(LocalServer):
    """An object store on loopback that speaks S3's protocol, for any key.

    It keeps all in memory: after a kill or a restart buckets and objects are gone.
    """

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What has s3fs, and all that is built on botocore, work on this server and no other."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "midstream",
            "AWS_SECRET_ACCESS_KEY": "a-test-key",
            "AWS_DEFAULT_REGION": "us-east-1",
            # The tester's own may name a profile or another endpoint.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def bucket(self) -> str:
        """Create an empty bucket; return its name."""
        name = f"midstream-test-{secrets.token_hex(6)}"
        status = self._request("PUT", f"/{name}")
        if status != 200:
            raise ServerError(f"no bucket was made: status {status}")
        return name

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def answers(self) -> bool:
        if f"Running on {self.endpoint}" not in self.told():
            return False
        try:
            return self._request("GET", "/") == 200
        except OSError:
            return False

    def _request(self, method: str, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path)
            return connection.getresponse().status
        finally:
            connection.close()
