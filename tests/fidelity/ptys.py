"""What program.py does with pseudoterminals, see entries.py; run by any Python, without the project."""

import fcntl
import hashlib
import os
import select
import signal
import struct
import termios
import time
import tty

ptys = {}
keep_ready = []
TIOCGSID = 0x5429
EVERY = bytes(range(256)) * 15


def pty(name):
    try:
        ptys[name] = os.openpty()
    except FileNotFoundError as ex:
        raise FileNotFoundError(ex.errno, ex.strerror, "/dev/ptmx") from ex  # which openpty(3) does not say
    return ptys[name]


def ask(fd, what, size=4):
    answer = fcntl.ioctl(fd, what, bytes(size))
    return struct.unpack("i", answer)[0] if size == 4 else answer.hex()


def both(name, what):
    return [ask(fd, what) for fd in ptys[name]]


def change(fd, off=0, on=0):
    settings = termios.tcgetattr(fd)
    settings[3] = settings[3] & ~off | on
    termios.tcsetattr(fd, termios.TCSANOW, settings)


def settings():
    _, slave = pty("settings")
    wanted = termios.tcgetattr(slave)
    wanted[0] ^= termios.ICRNL | termios.IXANY | termios.INLCR
    wanted[1] ^= termios.ONLCR
    wanted[3] ^= termios.ECHOE | termios.NOFLSH
    wanted[4] = wanted[5] = termios.B115200
    wanted[6][termios.VINTR] = b"\x0b"
    wanted[6][termios.VEOL2] = b"%"
    termios.tcsetattr(slave, termios.TCSANOW, wanted)


def told(name):
    return [str(termios.tcgetattr(fd)) for fd in ptys[name]]


def speed():
    """Set a speed that has no number of its own (BOTHER)."""
    _, slave = pty("speed")
    now = bytearray(fcntl.ioctl(slave, 0x802C542A, bytes(44)))
    control = struct.unpack_from("=I", now, 8)[0] & ~0o10017 | 0o10000
    struct.pack_into("=I", now, 8, control)
    struct.pack_into("=II", now, 36, 12345, 12345)
    fcntl.ioctl(slave, 0x402C542B, bytes(now))


def locked():
    _, slave = pty("locked")
    fcntl.ioctl(slave, termios.TIOCSLCKTRMIOS, struct.pack("=4I", 0, 0, 0, termios.ECHO) + bytes(44))


def packets():
    master, _ = pty("packets")
    fcntl.ioctl(master, termios.TIOCPKT, struct.pack("i", 1))


def packet_read():
    master, slave = ptys["packets"]
    os.write(slave, b"x")
    return os.read(master, 100).hex()


def exclusive():
    for fd in pty("exclusive"):
        fcntl.ioctl(fd, termios.TIOCEXCL)


def lock():
    master, _ = pty("lock")
    fcntl.ioctl(master, 0x40045431, struct.pack("i", 1))


def owned():
    _, slave = pty("owned")
    os.chown(os.ttyname(slave), 1, 2)
    os.chmod(os.ttyname(slave), 0o622)
    os.utime(os.ttyname(slave), ns=(10**18, 2 * 10**18))


def owned_as():
    found = os.stat(os.ttyname(ptys["owned"][1]))
    return [found.st_uid, found.st_gid, oct(found.st_mode), found.st_atime_ns, found.st_mtime_ns]


def everything(fd):
    """Read until there is nothing, which is told as "wait"; what is read at once is one element."""
    found = []
    os.set_blocking(fd, False)
    try:
        while len(found) < 1000:
            found.append(os.read(fd, 1 << 16).hex())
    except BlockingIOError:
        found.append("wait")
    except OSError as ex:
        found.append(f"error {ex.errno}")
    finally:
        os.set_blocking(fd, True)
    return found


def whole(fd):
    """Read everything as one, for where reading it in pieces means nothing."""
    parts = everything(fd)
    content = bytes.fromhex("".join(parts[:-1]))
    return [len(content), hashlib.sha256(content).hexdigest(), parts[-1]]


def type_lines():
    """Two lines, one with a newline within, one ended by end-of-file, and an end-of-file; all of it echoed."""
    master, _ = ptys.get("lines") or pty("lines")
    os.write(master, b"one\ntwo\nthr\x16\nee\x16\x04\nfour\x04\x04")


def typed_lines():
    """Read what type_lines has typed, and the echoes; type it again."""
    master, slave = ptys["lines"]
    found = [whole(master), everything(slave)]
    type_lines()
    return found


def type_part():
    master, slave = ptys.get("part") or pty("part")
    change(slave, termios.ECHO)
    os.write(master, b"done\nunfini\x16\x04\x16\x13shxx\x7f\x7f")


def typed_part():
    """Correct and finish the line, and read all."""
    master, slave = ptys["part"]
    os.write(master, b"h\x7fhed\n")
    found = everything(slave)
    type_part()
    return found


def type_bytes(name):
    if name not in ptys:
        tty.setraw(pty(name)[1])
    os.write(ptys[name][0], EVERY)


def typed_bytes(name):
    master, slave = ptys[name]
    found = [whole(slave), whole(master)]
    type_bytes(name)
    return found


def say(text=b"a\nb\r\n\tc\xff\x13\x04"):
    _, slave = ptys.get("said") or pty("said")
    os.write(slave, text)


def said():
    found = everything(ptys["said"][0])
    say()
    return found


def fill(name="full"):
    """Write what a terminal takes."""
    _, slave = ptys.get(name) or pty(name)
    os.set_blocking(slave, False)
    count = 0
    try:
        while True:
            count += os.write(slave, b"%07d\n" % count)
    except BlockingIOError:
        pass
    os.set_blocking(slave, True)


def full():
    content = "".join(everything(ptys["full"][0])[:-1])
    numbers = bytes.fromhex(content).split()
    fill()
    return [len(numbers) > 400, [int(one) for one in numbers] == list(range(0, 8 * len(numbers), 8))]


def stopped_by_call():
    _, slave = pty("tcflow")
    os.write(slave, b"before")
    termios.tcflow(slave, termios.TCOOFF)


def stopped_by_character():
    master, slave = pty("stop")
    os.write(slave, b"before")
    os.write(master, b"\x13")
    wait_until(lambda: not takes("stop"))


def takes(name):
    poller = select.poll()
    poller.register(ptys[name][1], select.POLLOUT)
    return poller.poll(0) != []


def goes_on_after(name):
    """See that a terminal is stopped, and by what: start it that way, and stop it again."""
    master, slave = ptys[name]
    found = [takes(name)]
    os.write(master, b"\x11")
    time.sleep(0.05)
    found.append(takes(name))
    termios.tcflow(slave, termios.TCOON)
    found += [takes(name), everything(master)]
    os.write(slave, b"before")
    if name == "stop":
        os.write(master, b"\x13")
        wait_until(lambda: not takes(name))
    else:
        termios.tcflow(slave, termios.TCOOFF)
    return found


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.005)


def hung():
    master, slave = pty("hung")
    change(slave, termios.ECHO)
    os.write(master, b"typed before it was closed\n")
    os.write(slave, b"last words")
    os.close(slave)


def hung_up():
    """Read to the error, then let someone say the same again, and leave; what was typed is still there."""
    master = ptys["hung"][0]
    found = everything(master)
    slave = fcntl.ioctl(master, 0x5441, os.O_RDWR | os.O_NOCTTY)
    found += everything(slave)
    os.write(master, b"typed before it was closed\n")
    os.write(slave, b"last words")
    os.close(slave)
    return found


def never():
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    ptys["never"] = master, -1


def session():
    """A session with a terminal: its leader, and a job of two in the foreground, a new one after each."""
    master, slave = pty("session")
    ready_r, ready_w = os.pipe()
    if os.fork() == 0:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.close(master)
        while True:
            job = os.fork()
            if job == 0:
                os.setpgid(0, 0)
                os.tcsetpgrp(slave, os.getpid())
                if os.fork() != 0:
                    os.write(ready_w, b"x")
                while True:
                    time.sleep(1000)
            os.waitpid(job, 0)
    keep_ready.append(ready_r)
    os.read(ready_r, 1)


def in_session():
    """Return the session, and whether it and the foreground process group are what they should be."""
    master, _ = ptys["session"]
    sid, group = ask(master, TIOCGSID), ask(master, termios.TIOCGPGRP)
    return [sid, group != sid, group == os.getpgid(group), [os.getsid(pid) for pid in (sid, group)]]


def interrupted():
    """See that the interrupt character comes to the job in the foreground, and to nobody else."""
    master, _ = ptys["session"]
    sid, group = ask(master, TIOCGSID), ask(master, termios.TIOCGPGRP)
    os.write(master, b"\x03")
    os.read(keep_ready[0], 1)
    return [alive(group), alive(sid), whole(master)]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def signalled():
    master, slave = pty("signalled")
    for fd, number in ((master, 40), (slave, 41)):
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, 10, number)
    fcntl.fcntl(master, fcntl.F_SETFL, fcntl.fcntl(master, fcntl.F_GETFL) | os.O_NONBLOCK)


def signalled_as():
    large = 0o100000  # O_LARGEFILE, which openpty(3) does without, and has no meaning
    asked = (fcntl.F_GETFL, fcntl.F_GETOWN, 11)
    return [[fcntl.fcntl(fd, what) & ~large for what in asked] for fd in ptys["signalled"]]


# ---- what is refused or warned of


def many():
    for number in range(33):
        pty(number)


def closed_master():
    master, _ = pty("orphan")
    os.close(master)


def devtty():
    _, slave = pty("devtty")
    ready_r, ready_w = os.pipe()
    if os.fork() == 0:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        os.open("/dev/tty", os.O_RDWR)
        os.write(ready_w, b"x")
        while True:
            time.sleep(1000)
    os.read(ready_r, 1)


def other_discipline():
    _, slave = pty("discipline")
    fcntl.ioctl(slave, termios.TIOCSETD, struct.pack("i", 27))  # N_NULL


def packet_state():
    packets()
    termios.tcflush(ptys["packets"][1], termios.TCOFLUSH)
