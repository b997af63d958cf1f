"""The passengers: how each is set up, and what its clients look at."""

from __future__ import annotations

import hashlib
import http.client
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from .passenger import PATH, Client, Passenger, Wrong, as_user, content, expect, give

_BIG = 3_000_000


def _http(client: Client) -> http.client.HTTPConnection:
    made = http.client.HTTPConnection(*client.address)
    made.sock = client.connect()
    return made


def _get(connection: http.client.HTTPConnection, path: str, **headers: str) -> bytes:
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    expect(answer.status, 200, path)
    return body


def keep_alive(client: Client) -> None:
    """Fetch a file over and over, on one connection."""
    connection = _http(client)
    right = content(20_000, 1)
    while client.goes_on():
        expect(_get(connection, "/small"), right, "/small")
    connection.close()


def downloads(client: Client) -> None:
    """Fetch a large file slowly, each time on a connection that the server closes."""
    right = hashlib.sha256(content(_BIG, 2)).hexdigest()
    while client.goes_on():
        with client.connect() as sock:
            sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            received = bytearray()
            while data := sock.recv(100_000):
                received += data
                time.sleep(0.005)
        head, _, body = bytes(received).partition(b"\r\n\r\n")
        expect(head[:15], b"HTTP/1.1 200 OK", "/big")
        expect((len(body), hashlib.sha256(body).hexdigest()), (_BIG, right), "/big")


# ---- nginx


def _nginx(folder: Path) -> Sequence[str]:
    (folder / "small").write_bytes(content(20_000, 1))
    (folder / "big").write_bytes(content(_BIG, 2))
    give(folder, "www-data")
    (folder / "nginx.conf").write_text(
        f"""daemon off; pid {folder}/pid; error_log stderr; user www-data; worker_processes 4;
events {{ worker_connections 200; }}
http {{ access_log off; sendfile on; keepalive_requests 1000000; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 8080; root {folder}; }} }}
"""
    )
    return ["nginx", "-c", str(folder / "nginx.conf"), "-e", "stderr"]


# ---- PostgreSQL


def _postgresql(folder: Path) -> Sequence[str]:
    give(folder, "postgres")
    data = folder / "data"
    command = as_user("postgres", "initdb", "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", env={"PATH": PATH})
    (data / "postgresql.auto.conf").write_text(
        "listen_addresses = '*'\nunix_socket_directories = ''\nfsync = off\n"
    )
    with (data / "pg_hba.conf").open("a") as file:
        file.write("host all all 0.0.0.0/0 trust\n")
    return as_user("postgres", "postgres", "-D", str(data))


def _sql(client: Client, *options: str) -> subprocess.Popen[str]:
    host, port = client.address
    env = {"PGHOST": host, "PGPORT": str(port), "PGUSER": "postgres"}
    return client.start("psql", "-AtqX", "-v", "ON_ERROR_STOP=1", *options, env=env)


def _ask(session: subprocess.Popen[str], statement: str) -> str:
    """Return the one line that a statement answers in a session."""
    assert session.stdin is not None
    assert session.stdout is not None
    session.stdin.write(statement + "\n")
    session.stdin.flush()
    return session.stdout.readline().rstrip("\n")


def _leave(session: subprocess.Popen[str]) -> str:
    """End a session; return what it still said. Raises Wrong if it had failed."""
    out, _ = session.communicate(timeout=60)
    expect(session.returncode, 0, f"psql says {out[-300:]!r}, and its status")
    return out


def _answers_sql(client: Client) -> bool:
    session = _sql(client, "-c", "SELECT 1")
    session.communicate(timeout=60)
    return session.returncode == 0


def pgbench(client: Client) -> None:
    """Eight clients of the server's own benchmark, and the sums that it must leave."""
    host, port = client.address
    env = {"PGHOST": host, "PGPORT": str(port), "PGUSER": "postgres"}
    for command in (("pgbench", "-i", "-q", "postgres"),):
        made = client.start(*command, env=env)
        out, _ = made.communicate(timeout=120)
        expect(made.returncode, 0, out[-300:])
    while client.goes_on():
        running = client.start("pgbench", "-n", "-c", "8", "-R", "200", "-T", "5", "postgres", env=env)
        out, _ = running.communicate(timeout=300)
        expect(running.returncode, 0, out[-500:])
        if "number of failed transactions: 0 " not in out:
            raise Wrong(out[-500:])
    sums = "SELECT (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history)"
    expect(_leave(_sql(client, "-c", sums)), "t\n", "the sum of all changes")


def transaction(client: Client) -> None:
    """One open transaction, which sees what it has written."""
    session = _sql(client)
    _ask(session, "BEGIN; CREATE TEMP TABLE seen (number int); SELECT 1;")
    number = 0
    while client.goes_on():
        number += 1
        asked = f"INSERT INTO seen VALUES ({number}); SELECT count(*), max(number) FROM seen;"
        expect(_ask(session, asked), f"{number}|{number}", "an open transaction")
    expect(_ask(session, "ROLLBACK; SELECT 2;"), "2", "its end")
    _leave(session)


def notifications(client: Client) -> None:
    """A session that listens hears everything that another says, once, and in order."""
    listener, speaker = _sql(client), _sql(client)
    expect(_ask(listener, "LISTEN news; SELECT 0;"), "0", "LISTEN")
    number = 0
    while client.goes_on():
        number += 1
        expect(_ask(speaker, f"NOTIFY news, '{number}'; SELECT {number};"), str(number), "NOTIFY")
        # psql tells behind the answer of the statement that it came with.
        assert listener.stdout is not None
        expect(_ask(listener, f"SELECT {number};"), str(number), "a listener's answer")
        heard = listener.stdout.readline()
        if f'payload "{number}"' not in heard:
            raise Wrong(f"notification {number}: {heard!r}")
    _leave(listener)
    _leave(speaker)


def copying(client: Client) -> None:
    """COPY of 20,000 rows there, and back."""
    rows = "".join(f"{number}\t{number * 7919 % 10007}\n" for number in range(20_000))
    while client.goes_on():
        session = _sql(client)
        out, _ = session.communicate(
            f"CREATE TEMP TABLE copied (a int, b int);\nCOPY copied FROM STDIN;\n{rows}\\.\n"
            "COPY (SELECT * FROM copied ORDER BY a) TO STDOUT;\n",
            timeout=120,
        )
        expect(hashlib.sha256(out.encode()).hexdigest(), hashlib.sha256(rows.encode()).hexdigest(), "COPY")


# ---- memcached


def _memcached(folder: Path) -> Sequence[str]:
    return ["memcached", "-u", "memcache", "-l", "0.0.0.0", "-p", "11211", "-m", "64", "-t", "4"]


def caching(client: Client) -> None:
    """Set and get values of many sizes, and a counter that counts each time."""
    sock = client.connect()
    file = sock.makefile("rwb")

    def ask(request: bytes, lines: int = 1) -> bytes:
        file.write(request)
        file.flush()
        return b"".join(file.readline() for _ in range(lines))

    key = f"k{sock.getsockname()[1]}"
    expect(ask(f"set {key}n 0 0 1\r\n0\r\n".encode()), b"STORED\r\n", "set")
    number = 0
    while client.goes_on():
        number += 1
        value = content(number * 97 % 5000, number).replace(b"\n", b" ").replace(b"\r", b" ")
        expect(ask(f"set {key} 7 0 {len(value)}\r\n".encode() + value + b"\r\n"), b"STORED\r\n", "set")
        answer = ask(f"get {key}\r\n".encode(), 3)
        expect(answer, f"VALUE {key} 7 {len(value)}\r\n".encode() + value + b"\r\nEND\r\n", "get")
        expect(ask(f"incr {key}n 1\r\n".encode()), f"{number}\r\n".encode(), "incr")
    sock.close()


# ---- MariaDB


def _mariadb(folder: Path) -> Sequence[str]:
    give(folder, "mysql")
    data = folder / "data"
    command = [
        "mariadb-install-db",
        "--no-defaults",
        f"--datadir={data}",
        "--auth-root-authentication-method=normal",
    ]
    command += ["--user=mysql", "--skip-test-db"]
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={"PATH": PATH}
    )
    (folder / "init.sql").write_text(
        "GRANT ALL ON *.* TO 'guest'@'%' IDENTIFIED BY 'guest';\nCREATE DATABASE moved;\n"
    )
    options = [f"--datadir={data}", f"--socket={folder}/socket", f"--pid-file={folder}/pid", "--user=mysql"]
    options += ["--bind-address=0.0.0.0", f"--init-file={folder}/init.sql", "--innodb-buffer-pool-size=32M"]
    # CRIU cannot carry io_uring; with this MariaDB uses threads.
    return [
        "mariadbd",
        "--no-defaults",
        *options,
        "--innodb-use-native-aio=0",
        "--skip-name-resolve",
        "--innodb-flush-log-at-trx-commit=0",
    ]


def _mysql(client: Client) -> subprocess.Popen[str]:
    host, port = client.address
    options = ["-h", host, "-P", str(port), "-uguest", "-pguest", "-BNnf", "--disable-reconnect", "moved"]
    return client.start("mariadb", *options)


def inserting(client: Client) -> None:
    """One session that counts what it has written."""
    session = _mysql(client)
    table = f"t{session.pid}"
    expect(_ask(session, f"CREATE TABLE {table} (n INT PRIMARY KEY) ENGINE=InnoDB; SELECT 1;"), "1", "CREATE")
    number = 0
    while client.goes_on():
        number += 1
        asked = f"INSERT INTO {table} VALUES ({number}); SELECT COUNT(*) + MAX(n) FROM {table};"
        expect(_ask(session, asked), str(2 * number), "rows")
    expect(session.communicate(timeout=60)[0], "", "the end of a session")


def idle(client: Client) -> None:
    """A session that says nothing for seconds is not closed: the server's time-out for it is not over."""
    session = _mysql(client)
    first = _ask(session, "SET SESSION wait_timeout = 600; SELECT CONNECTION_ID();")
    while client.goes_on():
        for _ in range(20):
            if not client.goes_on():
                break
        expect(_ask(session, "SELECT CONNECTION_ID();"), first, "an idle session's connection")
    expect(session.communicate(timeout=60)[0], "", "the end of a session")


# ---- Redis


def _redis(folder: Path) -> Sequence[str]:
    give(folder, "redis")
    options = [
        "--port",
        "6379",
        "--bind",
        "0.0.0.0",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        str(folder),
    ]
    return as_user("redis", "redis-server", *options)


def counting(client: Client) -> None:
    """A counter that counts each time, and blocking waits that end when they are due."""
    sock = client.connect()
    file = sock.makefile("rwb")

    def ask(*words: str) -> bytes:
        file.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
        file.flush()
        return file.readline()

    key, number = f"k{sock.getsockname()[1]}", 0
    while client.goes_on():
        number += 1
        expect(ask("INCR", key), b":%d\r\n" % number, "INCR")
        if number % 20 == 0:
            began = time.monotonic()
            expect(ask("BLPOP", "nothing", "1"), b"*-1\r\n", "BLPOP")
            if not 0.95 < time.monotonic() - began < 30:
                raise Wrong(f"BLPOP took {time.monotonic() - began:.2f} s instead of 1")
    sock.close()


# ---- Node.js

_NODE = """
const http = require('http'), crypto = require('crypto');
let small, big, n = 0;
function content(size, seed) {
  let block = Buffer.alloc(8), out = [], have = 0;
  block.writeBigUInt64BE(BigInt(seed));
  for (; have < size; have += 4096) {
    block = crypto.createHash('sha256').update(block).digest();
    for (let i = 0; i < 128; i++) out.push(block);
  }
  return Buffer.concat(out).subarray(0, size);
}
small = content(20000, 1); big = content(3000000, 2);
setInterval(() => { n++; }, 10);
const server = http.createServer((request, answer) => {
  if (request.url === '/wait') setTimeout(() => answer.end(String(n)), 50);
  else answer.end(request.url === '/big' ? big : small); });
server.on('upgrade', (request, socket) => {
  const key = request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
  socket.write('HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n'
    + 'Sec-WebSocket-Accept: '
    + crypto.createHash('sha1').update(key).digest('base64') + '\\r\\n\\r\\n');
  let have = Buffer.alloc(0);
  socket.on('data', data => { have = Buffer.concat([have, data]);
    while (have.length >= 6 && have.length >= 6 + (have[1] & 127)) {
      const size = have[1] & 127, mask = have.subarray(2, 6);
      const text = Buffer.from(have.subarray(6, 6 + size).map((byte, i) => byte ^ mask[i % 4]));
      socket.write(Buffer.concat([Buffer.from([0x82, size]), text])); have = have.subarray(6 + size); } });
  socket.on('error', () => {}); });
server.keepAliveTimeout = 600000; server.requestTimeout = 0; server.listen(8080, '0.0.0.0');
"""


def _node(folder: Path) -> Sequence[str]:
    give(folder, "nobody")
    (folder / "server.js").write_text(_NODE)
    return [
        "setpriv",
        "--reuid=nobody",
        "--regid=nogroup",
        "--clear-groups",
        "node",
        str(folder / "server.js"),
    ]


def waiting(client: Client) -> None:
    """Answers that come after a timer of the server's; its clock's ticks never go backwards."""
    connection, last = _http(client), 0
    while client.goes_on():
        now = int(_get(connection, "/wait"))
        if now < last:
            raise Wrong(f"ticks went back from {last} to {now}")
        last = now
    connection.close()


def websocket(client: Client) -> None:
    """Frames that come back as they went."""
    sock = client.connect()
    sock.sendall(
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    file = sock.makefile("rb")
    while (line := file.readline()) != b"\r\n":
        if line.startswith(b"Sec-WebSocket-Accept"):
            expect(line.split()[1], b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "the handshake (RFC 6455, 1.3)")
    while client.goes_on():
        text = content(client.rounds % 120 + 1, client.rounds)
        mask = struct.pack(">I", client.rounds)
        sock.sendall(
            bytes([0x82, 0x80 | len(text)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(text))
        )
        expect(file.read(2 + len(text)), bytes([0x82, len(text)]) + text, "a frame")
    sock.close()


# ---- dnsmasq


def _dnsmasq(folder: Path) -> Sequence[str]:
    (folder / "hosts").write_text("".join(f"10.9.{n >> 8}.{n & 255} n{n}.test\n" for n in range(300)))
    options = [
        "--keep-in-foreground",
        "--bind-interfaces",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--port=5353",
    ]
    return ["dnsmasq", *options, f"--addn-hosts={folder}/hosts", "--user=nobody", f"--pid-file={folder}/pid"]


def _question(number: int, name: str) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\x01\0\x01"


def names_by_udp(client: Client) -> None:
    """Each name has its address; a question that is lost, as UDP may, is asked again."""
    sock = client.datagrams(2.0)
    while client.goes_on():
        number = client.rounds % 300
        question = _question(client.rounds & 0xFFFF, f"n{number}.test")
        for attempt in range(6):
            sock.send(question)
            try:
                answer = sock.recv(512)
                while answer[:2] != question[:2]:
                    answer = sock.recv(512)
                break
            except (TimeoutError, ConnectionRefusedError):
                if attempt == 5:
                    raise
        expect(answer[-4:], bytes([10, 9, number >> 8, number & 255]), f"n{number}.test")
    sock.close()


def names_by_tcp(client: Client) -> None:
    """The same over one connection, as long as the server keeps it."""
    while client.goes_on():
        with client.connect() as sock:
            for number in range(20):
                question = _question(number, f"n{number}.test")
                sock.sendall(struct.pack(">H", len(question)) + question)
                length = struct.unpack(">H", sock.recv(2, socket.MSG_WAITALL))[0]
                answer = sock.recv(length, socket.MSG_WAITALL)
                expect(answer[-4:], bytes([10, 9, 0, number]), f"n{number}.test")
                time.sleep(0.02)


SERVERS = (
    Passenger("nginx", "nginx-light", "nginx", 8080, _nginx, (keep_alive, keep_alive, downloads)),
    Passenger(
        "postgresql",
        "postgresql",
        "postgres",
        5432,
        _postgresql,
        (pgbench, transaction, notifications, copying),
        _answers_sql,
    ),
    Passenger("memcached", "memcached", "memcached", 11211, _memcached, (caching, caching, caching)),
    Passenger("mariadb", "mariadb-server", "mariadbd", 3306, _mariadb, (inserting, inserting, idle)),
    Passenger("redis", "redis-server", "redis-server", 6379, _redis, (counting, counting)),
    Passenger("node", "nodejs", "node", 8080, _node, (keep_alive, downloads, waiting, websocket)),
    Passenger("dnsmasq", "dnsmasq-base", "dnsmasq", 5353, _dnsmasq, (names_by_udp, names_by_tcp)),
)
