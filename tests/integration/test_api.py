# SPDX-License-Identifier: Apache-2.0
"""The wire against its contract: every operation of openapi.yaml is driven, every answer is held to it."""
import copy
import http.client
import json
import os
import re
import socket
import subprocess
import tempfile
import time
import unittest

import lib

try:
    import yaml
except ImportError:
    yaml = None

BEFORE = "The requested operation is not supported before starting the microVM."
AFTER = "The requested operation is not supported after starting the microVM."
PEER = os.environ.get("PEER_FIRECRACKER")


class Contract:
    def __init__(self):
        with open(os.path.join(lib.ROOT, "api-socket", "openapi.yaml")) as f:
            self.doc = yaml.safe_load(f)

    def operations(self):
        for path, item in self.doc["paths"].items():
            for verb, op in item.items():
                if verb != "parameters" and "x-tested-by" not in op:
                    yield verb.upper(), path, op

    def resolve(self, s):
        while "$ref" in s:
            node = self.doc
            for part in s["$ref"][2:].split("/"):
                node = node[part]
            s = node
        if "allOf" in s:
            s = {**self.resolve(s["allOf"][0]), **{k: v for k, v in s.items() if k != "allOf"}}
        return s

    def body(self, op):
        return self.resolve(op["requestBody"]["content"]["application/json"]["schema"])

    def errors(self, s, v, at="body"):
        """Why v does not fit schema s: a list of sentences."""
        s = self.resolve(s)
        if v is None:
            return [] if s.get("nullable") else [f"{at}: null"]
        kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
        if not isinstance(v, kinds[s["type"]]) or (s["type"] == "integer" and isinstance(v, bool)):
            return [f"{at}: {v!r} is no {s['type']}"]
        out = []
        if "enum" in s and v not in s["enum"]:
            out.append(f"{at}: {v!r} is none of {s['enum']}")
        if isinstance(v, str):
            n = len(v.encode())
            if n < s.get("minLength", 0) or n > s.get("maxLength", n):
                out.append(f"{at}: length {n}")
            if "pattern" in s and not re.search(s["pattern"], v):
                out.append(f"{at}: {v!r} does not match")
        elif isinstance(v, dict):
            known = s.get("properties", {})
            out += [f"{at}: {k} missing" for k in s.get("required", ()) if k not in v]
            if s.get("additionalProperties") is False:
                out += [f"{at}: {k} unknown" for k in v if k not in known]
            for k in v:
                if k in known:
                    out += self.errors(known[k], v[k], f"{at}.{k}")
        elif isinstance(v, list):
            if len(v) > s.get("maxItems", len(v)):
                out.append(f"{at}: {len(v)} items")
            for i, x in enumerate(v):
                out += self.errors(s["items"], x, f"{at}[{i}]")
        elif not isinstance(v, bool):
            if v < s.get("minimum", v) or v > s.get("maximum", v):
                out.append(f"{at}: {v} out of range")
        return out

    def misfits(self, s, base, at=()):
        """(field, broken copy of base) for every rule of schema s."""
        s = self.resolve(s)
        for k in s.get("required", ()):
            yield k, {a: b for a, b in base.items() if a != k}
        yield "colour", {**base, "colour": 1}
        for k, prop in s["properties"].items():
            p = self.resolve(prop)
            bad = {"object": [1, "x", [], True], "string": [1, True, {}, ["x"], "a\0b"],
                   "boolean": [0, 1, "true", {}], "array": [1, "x", {}, True, [1], ["x"]],
                   "integer": ["1", 1.5, True, -1, 2 ** 64, float("1e300"), [1]]}[p["type"]]
            if not p.get("nullable"):
                bad.append(None)
            if "minimum" in p:
                bad += [p["minimum"] - 1, p["maximum"] + 1]
            if p.get("minLength"):
                bad.append("x" * (p["minLength"] - 1))
            if "maxLength" in p:
                bad.append("x" * (p["maxLength"] + 1))
            if p["type"] == "string" and "enum" in p:
                bad.append("Nonsense")
            for v in bad:
                yield k, {**base, k: v}
            if p["type"] == "object" and isinstance(base.get(k), dict):
                for f, b in self.misfits(p, base[k]):
                    yield f, {**base, k: b}
            if p["type"] == "array" and base.get(k):
                yield k, {**base, k: base[k][:1] * (p["maxItems"] + 1)}
                for f, b in self.misfits(p["items"], base[k][0]):
                    yield f, {**base, k: [b]}


BUCKET = {"size": 1 << 20, "one_time_burst": 5, "refill_time": 100}
LIMITS = {"bandwidth": BUCKET, "ops": {"size": 1000, "refill_time": 0}}


class TestDocs(unittest.TestCase):
    @unittest.skipIf(yaml is None, "python3-yaml is not installed")
    def test_every_path_and_field_is_explained(self):
        c = Contract()
        with open(os.path.join(lib.ROOT, "docs", "api.md")) as f:
            text = f.read()
        words = set(re.findall(r"`([^`\n]+)`", text))
        for verb, path, op in c.operations():
            self.assertIn(f"{verb} {path}", words)
            if "requestBody" in op:
                for field in c.body(op).get("properties", ()):
                    self.assertIn(field, words, path)


class ApiCase(lib.GuestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if yaml is None:
            raise unittest.SkipTest("python3-yaml is not installed")
        cls.contract = Contract()

    def setUp(self):
        self.ns = self.netns()
        self.m = self.monitor("--id", "api-test", netns=self.ns, log=False)
        self.disk_a, self.disk_b = self.disk(4), self.disk(8)
        self.tmp = tempfile.TemporaryDirectory()
        self.addCleanup(self.tmp.cleanup)

    def samples(self):
        """A request for every operation, in an order in which all of them succeed."""
        t = self.tmp.name
        return {
            ("GET", "/"): None,
            ("GET", "/version"): None,
            ("GET", "/vm/config"): None,
            ("GET", "/machine-config"): None,
            ("GET", "/migration"): None,
            ("PUT", "/logger"): {"log_path": f"{t}/log", "level": "Debug", "show_level": True,
                                 "show_log_origin": True, "module": "all"},
            ("PUT", "/metrics"): {"metrics_path": f"{t}/metrics", "emit_id": True},
            ("PUT", "/cpu-config"): {"cpuid_modifiers": [
                {"leaf": "0x1", "subleaf": "0x0", "flags": 0,
                 "modifiers": [{"register": "ecx", "bitmap": "0b0" + "x" * 26}]}],
                "msr_modifiers": [{"addr": "0x10a", "bitmap": "0bx"}]},
            ("PUT", "/serial"): {"serial_out_path": f"{t}/serial", "rate_limiter": BUCKET},
            ("PUT", "/machine-config"): {"vcpu_count": 2, "mem_size_mib": 64, "smt": True,
                                         "track_dirty_pages": False, "huge_pages": "None",
                                         "cpu_template": "None"},
            ("PATCH", "/machine-config"): {"vcpu_count": 1, "smt": False},
            ("PUT", "/boot-source"): {"kernel_image_path": lib.guest(), "initrd_path": None,
                                      "boot_args": f"ip={self.ns.guest}/24 gw={self.ns.host}"},
            ("PUT", "/drives/{drive_id}"): {
                "drive_id": "disk0", "is_root_device": False, "path_on_host": self.disk_a,
                "partuuid": None, "cache_type": "Writeback", "is_read_only": False,
                "rate_limiter": LIMITS, "io_engine": "Sync", "socket": None, "cow_path": None},
            ("PUT", "/network-interfaces/{iface_id}"): {
                "iface_id": "eth0", "host_dev_name": self.ns.tap, "guest_mac": self.ns.mac, "mtu": 1400,
                "rx_rate_limiter": LIMITS, "tx_rate_limiter": None, "allow_mac_spoofing": True},
            ("PUT", "/actions"): {"action_type": "InstanceStart"},
            ("PATCH", "/vm"): {"state": "Paused"},
            ("PATCH", "/drives/{drive_id}"): {"drive_id": "disk0", "path_on_host": self.disk_b,
                                              "rate_limiter": LIMITS},
            ("PATCH", "/network-interfaces/{iface_id}"): {
                "iface_id": "eth0", "rx_rate_limiter": LIMITS, "tx_rate_limiter": LIMITS},
        }

    def ask(self, verb, path, body=None):
        """Asks and holds the answer to the contract; path may be a template."""
        op = self.contract.doc["paths"][path][verb.lower()]
        for key in ("drive_id", "iface_id"):
            ident = body.get(key) if isinstance(body, dict) else None
            path = path.replace("{%s}" % key, ident if isinstance(ident, str) and ident.isalnum()
                                and len(ident) <= 64 else "disk0" if key == "drive_id" else "eth0")
        try:
            status, data = self.m.api(verb, path, body, check=False)
        except (OSError, http.client.HTTPException) as e:
            self.m.p.wait(5)
            self.fail(f"{verb} {path} {body}: {e!r}; the monitor ended with {self.m.p.poll()}: {self.m.err()}")
        self.assertIn(str(status), op["responses"], data)
        answer = self.contract.resolve(op["responses"][str(status)])
        if "content" not in answer:
            self.assertIsNone(data)
        else:
            self.assertEqual([], self.contract.errors(answer["content"]["application/json"]["schema"], data))
        return status, data

    def fault(self, verb, path, body, says=""):
        """Asks for what must be refused: one Fault, nothing changed."""
        was = self.m.get("/vm/config"), self.m.state()
        status, data = self.ask(verb, path, body)
        self.assertEqual(400, status, (verb, path, body))
        self.assertIn(says, data["fault_message"], (verb, path, body))
        self.assertEqual(was, (self.m.get("/vm/config"), self.m.state()))


class TestContract(ApiCase):
    def test_every_operation(self):
        samples = self.samples()
        self.assertEqual({(v, p) for v, p, _ in self.contract.operations()}, set(samples))
        when = {(v, p): op["x-when"] for v, p, op in self.contract.operations()}
        for (v, p), body in samples.items():  # the samples fit the contract themselves
            if body is not None:
                op = self.contract.doc["paths"][p][v.lower()]
                self.assertEqual([], self.contract.errors(self.contract.body(op), body), (v, p))

        # Before the start: what belongs after it is refused, the rest is done, in order.
        for (v, p), body in samples.items():
            if when[v, p] == "after":
                self.fault(v, p, body, BEFORE)
        for action in ("FlushMetrics", "SendCtrlAltDel"):
            self.fault("PUT", "/actions", {"action_type": action}, BEFORE)
        for (v, p), body in samples.items():
            status, data = self.ask(v, p, body) if when[v, p] != "after" else (None, None)
            self.assertIn(status, (None, 200 if v == "GET" else 204), (v, p, data))
        self.assertEqual("Running", self.m.state())

        # After it: the other way round.
        for (v, p), body in samples.items():
            if when[v, p] == "before":
                self.fault(v, p, body, AFTER)
            elif v == "PATCH":
                status, data = self.ask(v, p, body)
                self.assertEqual(204, status, (v, p, data))
            elif v == "GET":
                self.assertEqual(200, self.ask(v, p)[0])
        self.fault("PUT", "/actions", {"action_type": "InstanceStart"}, AFTER)
        self.assertEqual("Paused", self.m.state())
        for _ in range(2):  # idempotent
            self.assertEqual(204, self.ask("PATCH", "/vm", {"state": "Resumed"})[0])
            self.assertEqual("Running", self.m.state())
        self.assertEqual(204, self.ask("PUT", "/actions", {"action_type": "FlushMetrics"})[0])
        with open(self.tmp.name + "/metrics") as f:
            self.assertIn("utc_timestamp_ms", json.loads(f.readlines()[-1]))

        config = self.m.get("/vm/config")
        self.assertEqual("Writeback", config["drives"][0]["cache_type"])
        self.assertEqual(self.disk_b, config["drives"][0]["path_on_host"])
        self.assertEqual(self.ns.mac.lower(), config["network-interfaces"][0]["guest_mac"].lower())
        self.assertEqual(1400, config["network-interfaces"][0]["mtu"])
        self.assertEqual(LIMITS["bandwidth"], config["network-interfaces"][0]["rx_rate_limiter"]["bandwidth"])
        self.assertEqual({"vcpu_count": 1, "mem_size_mib": 64, "smt": False, "track_dirty_pages": False,
                          "huge_pages": "None"}, config["machine-config"])

    def test_every_rule_of_every_body(self):
        count = 0
        for (v, p), base in self.samples().items():
            op = self.contract.doc["paths"][p][v.lower()]
            if base is None:
                self.fault(v, p, {}, "GET request cannot have a body.")
                continue
            for field, body in self.contract.misfits(self.contract.body(op), base):
                self.fault(v, p, body, field)
                count += 1
        self.assertGreater(count, 500)

    def test_words(self):
        for verb, path, body, says in [
                ("GET", "/foo/bar", None, "Invalid request method and/or path: GET foo."),
                ("DELETE", "/drives/a", None, "Invalid request method and/or path: DELETE drives."),
                ("PUT", "/foo", {}, "Invalid request method and/or path: PUT foo."),
                ("PUT", "/actions", None, "Empty PUT request."),
                ("PATCH", "/vm", None, "Empty PATCH request."),
                ("PATCH", "/machine-config", {}, "Empty PATCH request."),
                ("PUT", "/drives", {}, "The ID cannot be empty."),
                ("PUT", "/drives/a-b", {}, "API Resource IDs can only contain alphanumeric"),
                ("PUT", "/drives/" + "a" * 65, {}, "64"),
                ("PUT", "/drives/b", {"drive_id": "a", "is_root_device": False, "path_on_host": self.disk_a},
                 "The id from the path does not match the id from the body!"),
                ("PATCH", "/drives/a", {"drive_id": "a"}, BEFORE),
                ("PUT", "/vsock", {}, "Mayfly has no vsock"),
                ("GET", "/balloon", None, "Mayfly has no balloon"),
                ("PATCH", "/balloon/statistics", {}, "Mayfly has no balloon"),
                ("GET", "/mmds", None, "Mayfly has no metadata service"),
                ("PUT", "/mmds/config", {}, "Mayfly has no metadata service"),
                ("PUT", "/pmem/p0", {}, "Mayfly has no pmem"),
                ("PUT", "/entropy", {}, "Mayfly has no entropy"),
                ("GET", "/hotplug/memory", None, "Mayfly has no memory hotplug")]:
            status, data = self.m.api(verb, path, body, check=False)
            self.assertEqual((400, ["fault_message"]), (status, list(data)), (verb, path))
            self.assertIn(says, data["fault_message"])

    def test_action_errors_carry_their_prefix(self):
        self.fault("PUT", "/boot-source", {"kernel_image_path": "/nowhere"}, "Boot source error: ")
        self.fault("PUT", "/drives/{drive_id}", {"drive_id": "d", "is_root_device": False,
                                                 "path_on_host": "/nowhere"}, "Drive config error: ")
        self.fault("PUT", "/drives/{drive_id}", {"drive_id": "d", "is_root_device": False,
                                                 "path_on_host": "fd:0"}, "Drive config error: ")
        self.fault("PUT", "/network-interfaces/{iface_id}",
                   {"iface_id": "n", "host_dev_name": "no_such_tap"}, "Network config error: ")
        self.fault("PUT", "/machine-config", {"vcpu_count": 3, "mem_size_mib": 64, "smt": True},
                   "Machine config error: ")
        self.fault("PUT", "/metrics", {"metrics_path": "/nowhere/m"}, "Metrics error: ")
        self.fault("PUT", "/logger", {"log_path": "/nowhere/l"}, "Logger error: ")
        self.fault("PUT", "/actions", {"action_type": "InstanceStart"}, "Start microvm error: ")


class TestWire(ApiCase):
    def dial(self):
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(s.close)
        s.settimeout(10)
        s.connect(self.m.sock)
        return s

    @staticmethod
    def hear(s):
        out = b""
        try:
            while chunk := s.recv(65536):
                out += chunk
        except (ConnectionResetError, socket.timeout):
            pass
        return out

    def test_faults_of_http_have_the_one_shape(self):
        for raw in (b"GET / HTTP/1.1\n\n", b"GET / HTTP/1.2\r\n\r\n", b"BREW / HTTP/1.1\r\n\r\n",
                    b"PUT / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
                    b"PUT / HTTP/1.1\r\nContent-Length: +2\r\n\r\n{}",
                    b"PUT / HTTP/1.1\r\nContent-Length: 51201\r\n\r\n",
                    b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                    b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", b"GET  / HTTP/1.1\r\n\r\n",
                    b"GET /" + b"a" * 1024 + b" HTTP/1.1\r\n\r\n",
                    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 33 + b"\r\n"):
            s = self.dial()
            s.sendall(raw)
            head, _, body = self.hear(s).partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 400 "), raw)
            self.assertIn(b"Connection: close", head)
            self.assertEqual([], self.contract.errors({"$ref": "#/components/schemas/Fault"}, json.loads(body)))

    def test_malformed_json(self):
        for raw in (b"{", b"[]", b"1", b'{"vcpu_count":1,"vcpu_count":1,"mem_size_mib":1}', b'{"vcpu_count":01}',
                    b'{"vcpu_count":1e999,"mem_size_mib":1}', b'{"a":"\\ud800"}', b'{"a":"\xff"}', b"{}{}",
                    b'{"a":' * 9 + b"1" + b"}" * 9, b'{"a":[' + b"1," * 300 + b"1]}", b'{"a" "b"}', b"{}\0"):
            s = self.dial()
            s.sendall(b"PUT /machine-config HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                      % (len(raw), raw))
            head, _, body = self.hear(s).partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 400 "), raw)
            self.assertIn("deserializing the json body", json.loads(body)["fault_message"])

    def test_one_answer_per_request_in_order(self):
        s = self.dial()
        s.sendall(b"GET /version HTTP/1.1\r\n\r\nGET /nope HTTP/1.1\r\n\r\nGET / HTTP/1.0\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        bodies = re.findall(rb"\r\n\r\n(\{.*?\})(?=HTTP|$)", self.hear(s))
        self.assertEqual(["firecracker_version", "fault_message", "id"],
                         [next(iter(json.loads(b))) for b in bodies])

    def test_a_stopped_peer_stops_nobody(self):
        slow = self.dial()
        slow.sendall(b"PUT /actions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        self.assertEqual("Not started", self.m.state())
        self.assertIn(b"did not come whole", self.hear(slow))

    def test_stale_and_live_socket(self):
        args = [lib.MAYFLY, "--api-sock", self.m.sock]
        p = subprocess.run(args, capture_output=True, text=True, timeout=30)
        self.assertEqual(1, p.returncode)
        self.assertIn("in use", p.stderr)
        self.assertEqual("Not started", self.m.state())
        self.m.kill()
        self.assertTrue(os.path.exists(self.m.sock))
        p = subprocess.Popen(args, stdout=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 10
            while not self.m.try_connect() and time.monotonic() < end:
                time.sleep(0.01)
            self.assertEqual("Not started", self.m.state())
        finally:
            p.kill()
            p.wait()

    def test_descriptor_for_a_path(self):
        body = json.dumps({"drive_id": "d", "is_root_device": False, "path_on_host": "fd:0"}).encode()
        with open(self.disk_a, "r+b") as f:
            s = self.dial()
            socket.send_fds(s, [b"PUT /drives/d HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                                % (len(body), body)], [f.fileno()])
            self.assertIn(b" 204 ", self.hear(s))
        self.fault("PUT", "/drives/{drive_id}", {"drive_id": "e", "is_root_device": False,
                                                 "path_on_host": "fd:0"}, "fd:0")


class TestConfigFile(ApiCase):
    def test_config_reads_back(self):
        samples = self.samples()
        for key in list(samples)[5:12]:
            self.assertEqual(204, self.ask(*key, samples[key])[0], key)
        config = self.m.get("/vm/config")
        self.m.close()
        path = os.path.join(self.tmp.name, "config.json")
        with open(path, "w") as f:
            json.dump(config, f)
        m = self.monitor("--config-file", path, netns=self.ns, log=False)
        self.assertEqual("Running", m.state())
        self.assertEqual(config, m.get("/vm/config"))

    def test_bad_file_ends_with_152(self):
        good = {"boot-source": {"kernel_image_path": lib.guest()}}
        for change, says in (({"boot-source": {}}, "kernel_image_path"), ({"vsock": {}}, "no vsock"),
                             ({"colour": {}}, "colour"), ({"drives": {}}, "array"),
                             ({"machine-config": {"vcpu_count": 99, "mem_size_mib": 64}}, "vcpu_count"),
                             ({"drives": [{"drive_id": "a", "is_root_device": False, "path_on_host": "fd:0"}]},
                              "cannot be named in a file")):
            path = os.path.join(self.tmp.name, "config.json")
            with open(path, "w") as f:
                json.dump({**good, **change}, f)
            p = subprocess.run([lib.MAYFLY, "--no-api", "--config-file", path], capture_output=True, text=True,
                               timeout=30)
            self.assertEqual(152, p.returncode, (change, p.stderr))
            self.assertIn(says, p.stderr)


class TestPeer(ApiCase):
    """Firecracker itself as the oracle: the same requests, the same statuses and keys."""

    def setUp(self):
        if not PEER or not os.access(PEER, os.X_OK):
            self.skipTest("PEER_FIRECRACKER is not set")
        super().setUp()
        self.peer_sock = os.path.join(self.tmp.name, "peer.sock")
        self.peer = subprocess.Popen([PEER, "--api-sock", self.peer_sock, "--no-seccomp", "--level", "Off",
                                      "--log-path", "/dev/null"], stdout=subprocess.DEVNULL)
        self.addCleanup(lambda: (self.peer.kill(), self.peer.wait()))
        end = time.monotonic() + 10
        while not os.path.exists(self.peer_sock) and time.monotonic() < end:
            time.sleep(0.01)

    def ask_peer(self, verb, path, body):
        c = lib.UnixHTTP(self.peer_sock)
        raw = None if body is None else body if isinstance(body, str) else json.dumps(body)
        c.request(verb, path, raw)
        r = c.getresponse()
        text = r.read()
        c.close()
        return r.status, json.loads(text) if text else None

    def assert_covers(self, ours, theirs, at=""):
        if isinstance(theirs, dict) and ours is not None:
            self.assertEqual(set(), set(theirs) - set(ours), at)
            for k in theirs:
                self.assert_covers(ours[k], theirs[k], f"{at}/{k}")
        elif isinstance(theirs, list):
            for a, b in zip(ours, theirs):
                self.assert_covers(a, b, at)

    def test_same_statuses_and_keys(self):
        drive = {"drive_id": "d", "is_root_device": False, "path_on_host": self.disk_a}
        m = {"vcpu_count": 2, "mem_size_mib": 128}
        asks = [("GET", "/", None), ("GET", "/version", None), ("GET", "/machine-config", None),
                ("GET", "/vm/config", None), ("GET", "/vm", None), ("GET", "/foo", None), ("PUT", "/foo", {}),
                ("PUT", "/actions", None), ("PUT", "/drives/d", drive), ("PUT", "/drives/e", drive),
                ("PUT", "/drives", drive), ("PUT", "/drives/d-e", drive), ("PUT", "/machine-config", m),
                ("PUT", "/machine-config", {"vcpu_count": 2}), ("PUT", "/machine-config", {**m, "smt": None}),
                ("PUT", "/machine-config", {**m, "vcpu_count": 0}), ("PUT", "/machine-config", {**m, "vcpu_count": 33}),
                ("PUT", "/machine-config", {**m, "x": 1}), ("PUT", "/machine-config", {**m, "mem_size_mib": 0}),
                ("PUT", "/machine-config", {**m, "vcpu_count": 3, "smt": True}),
                ("PUT", "/machine-config", {**m, "vcpu_count": 1.5}), ("PUT", "/machine-config", "{"),
                ("PUT", "/machine-config", '{"vcpu_count":1,"vcpu_count":1,"mem_size_mib":128}'),
                ("PATCH", "/machine-config", {}), ("PATCH", "/machine-config", {"smt": True}),
                ("PATCH", "/machine-config", {"mem_size_mib": 256}), ("GET", "/machine-config", None),
                ("PUT", "/boot-source", {"kernel_image_path": lib.guest(), "boot_args": "a=b"}),
                ("PUT", "/boot-source", {"kernel_image_path": "/nowhere"}), ("PUT", "/boot-source", {}),
                ("PUT", "/logger", {"level": "WARNING"}), ("PUT", "/logger", {"level": "Loud"}),
                ("PUT", "/metrics", {"metrics_path": "METRICS"}), ("PUT", "/metrics", {"metrics_path": "METRICS"}),
                ("PUT", "/serial", {"serial_out_path": self.disk_b}),
                ("PUT", "/network-interfaces/n", {"iface_id": "n"}),
                ("PUT", "/network-interfaces/n", {"iface_id": "n", "host_dev_name": "x", "guest_mac": "zz"}),
                ("PATCH", "/vm", {"state": "Paused"}), ("PATCH", "/drives/d", {"drive_id": "d"}),
                ("PATCH", "/network-interfaces/n", {"iface_id": "n"}),
                ("PUT", "/actions", {"action_type": "FlushMetrics"}), ("PUT", "/actions", {"action_type": "Nope"}),
                ("PUT", "/snapshot/create", {"snapshot_path": "a", "mem_file_path": "b"}),
                ("GET", "/vm/config", None)]
        same_words = 0
        for verb, path, body in asks:
            ours_body, theirs_body = copy.deepcopy(body), copy.deepcopy(body)
            if isinstance(body, dict) and body.get("metrics_path") == "METRICS":
                ours_body["metrics_path"] = self.tmp.name + "/ours"
                theirs_body["metrics_path"] = self.tmp.name + "/theirs"
            c = lib.UnixHTTP(self.m.sock)
            c.request(verb, path, ours_body if isinstance(body, str) or body is None else json.dumps(ours_body))
            r = c.getresponse()
            text = r.read()
            c.close()
            status, data = self.ask_peer(verb, path, theirs_body)
            ours = json.loads(text) if text else None
            self.assertEqual(status, r.status, (verb, path, body, ours, data))
            self.assertEqual(data is None, ours is None, (verb, path))
            self.assert_covers(ours, data, f"{verb} {path}")
            same_words += status == 400 and ours == data
        self.assertGreaterEqual(same_words, 9)


if __name__ == "__main__":
    unittest.main()
