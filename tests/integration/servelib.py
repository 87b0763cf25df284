# SPDX-License-Identifier: Apache-2.0
"""A serving host and pulling hosts (namespaces on one bridge), each of these with a tap of its own, and a template."""
import json
import os
import time

from lib import COUNT, Monitor, Netns, run

TAP_MAC = "06:00:ac:1e:00:01"  # the guest is not told that it is elsewhere
PORT = 7001


class Island(Netns):
    """A host whose guests meet nobody but itself; 10.77.0.N towards the other hosts."""

    def __init__(self, fleet, index):
        super().__init__()
        self.ip("link", "set", "tap0", "address", TAP_MAC)
        self.addr = f"10.77.0.{index}"
        self.port = f"p{index}"
        run("ip", "-n", fleet.name, "link", "add", self.port, "type", "veth", "peer", "name", "mig0", "netns", self.name)
        fleet.ip("link", "set", self.port, "master", "hosts")
        fleet.ip("link", "set", self.port, "up")
        self.ip("addr", "add", f"{self.addr}/24", "dev", "mig0")
        self.ip("link", "set", "mig0", "up")


    def free_tap(self):
        """The kernel lets go of a killed monitor's tap in its own time."""
        end = time.monotonic() + 10
        while self.exec("cat", "/sys/class/net/tap0/carrier").stdout.strip() == "1" and time.monotonic() < end:
            time.sleep(0.02)


class Fleet(Netns):
    """The server's host, and `hosts`, which reach it over a bridge."""

    def __init__(self, pullers=1):
        self.name, self.addr = f"mayfly-{os.getpid()}-{next(COUNT)}", "10.77.0.1"
        run("ip", "netns", "add", self.name)
        self.hosts = []
        try:
            self.ip("link", "set", "lo", "up")
            self.ip("link", "add", "hosts", "type", "bridge", "forward_delay", "0")
            self.ip("addr", "add", f"{self.addr}/24", "dev", "hosts")
            self.ip("link", "set", "hosts", "up")
            for i in range(pullers):
                self.hosts.append(Island(self, i + 2))
        except BaseException:
            self.close()
            raise

    def link(self, host, up):
        self.ip("link", "set", host.port, "up" if up else "down")

    def close(self):
        for h in self.hosts:
            h.close()
        super().close()


def template(host, folder, mem=128, touch=8, working_set=True, drives=(), work="/counter"):
    """A snapshot in folder: state, mem and, of a clone that answered `work`, ws. What the guest says of its memory."""
    path = lambda name: os.path.join(folder, name)  # noqa: E731
    with Monitor(netns=host) as m:
        m.boot("mayfly.vmgenid=0xd0000", netns=host, mem=mem, drives=drives)
        host.http("GET", "/counter")
        host.http("GET", f"/touch?mib={touch}&seed=7", timeout=60)
        said = json.loads(host.http("GET", f"/sum?mib={touch}", timeout=60)[1])
        m.patch("/vm", state="Paused")
        m.put("/snapshot/create", snapshot_path=path("state"), mem_file_path=path("mem"))
    host.free_tap()
    if working_set:
        with Monitor(netns=host) as m:
            m.put("/snapshot/load", snapshot_path=path("state"), resume_vm=True,
                  mem_backend={"backend_type": "File", "backend_path": path("mem")})
            host.http("GET", work, timeout=60)
            m.put("/snapshot/working-set", working_set_path=path("ws"))
        host.free_tap()
    return said
