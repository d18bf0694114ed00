"""The attempts, by class. Each returns what it got, or None, or raises: the last two mean that it was stopped."""

import ctypes
import glob
import itertools
import os
import resource
import socket
import stat
import struct
import subprocess

from system import call, int80, libc, raw

HOSTS = [host for host in os.environ.get("PROBE_HOSTS", "").split(",") if host]
HOST_PORT = int(os.environ.get("PROBE_PORT", "0"))
HOST_PID = int(os.environ.get("PROBE_HOST_PID", "0"))
PEERS = [peer for peer in os.environ.get("PROBE_PEERS", "").split(",") if peer]
ABSTRACT = os.environ.get("PROBE_ABSTRACT", "")
OWN_LOG = "/var/log/strategy.log"
OWN_TOKEN = "/run/secrets/desk/token"
BUFFER = ctypes.create_string_buffer(65536)

ALL = {}


def probe(function):
    ALL[function.__name__] = function
    return function


def lines_of(path):
    with open(path) as file:
        return file.readlines()


def system_call(label, name, *arguments):
    ALL[label] = lambda: call(name, *arguments)


def connect(host, port, kind=socket.SOCK_STREAM, family=socket.AF_INET):
    with socket.socket(family, kind) as link:
        link.settimeout(1.5)
        link.connect((host, port))
        return f"connected to {host}:{port}"


def first(attempts):
    """The first that gets through; else None."""
    for attempt in attempts:
        try:
            if (got := attempt()) is not None:
                return got
        except (OSError, ValueError):
            continue
    return None


# --- network: the host, other strategies, names, the world


@probe
def network_host_ports():
    return first(lambda host=host: connect(host, HOST_PORT) for host in HOSTS)


@probe
def network_host_loopback():
    return first(lambda host=host: connect(host, HOST_PORT) for host in ("127.0.0.1", "0.0.0.0", "127.0.0.53"))


@probe
def network_other_strategies():
    return first(lambda peer=peer, port=port: connect(peer, port) for peer in PEERS for port in (80, 8000, HOST_PORT))


@probe
def network_interfaces():
    return ",".join(name for _, name in socket.if_nameindex() if name != "lo") or None


@probe
def network_dns_name():
    return socket.getaddrinfo("example.com", 80)[0][4][0]


@probe
def network_dns_server():
    servers = [line.split()[1] for line in lines_of("/etc/resolv.conf") if line.startswith("nameserver")]
    query = b"\x12\x34\x01\x00\x00\x01" + b"\0" * 6 + b"\x07example\x03com\0\0\x01\0\x01"

    def ask(server):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.sendto(query, (server, 53))
            return f"sent a query to {server}"

    return first(lambda server=server: ask(server) for server in [*servers, "8.8.8.8", "1.1.1.1"])


@probe
def network_internet():
    return first(lambda host=host: connect(host, 443) for host in ("1.1.1.1", "8.8.8.8"))


@probe
def network_udp_out():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        return f"sent {link.sendto(b'x', ('8.8.8.8', 9))}"


@probe
def network_metadata():
    return first([lambda: connect("169.254.169.254", 80), lambda: connect("169.254.170.2", 80)])


@probe
def network_ipv6():
    return first(
        [
            lambda: connect("::1", HOST_PORT, family=socket.AF_INET6),
            lambda: connect("2606:4700::1111", 443, family=socket.AF_INET6),
        ]
    )


@probe
def network_abstract_socket_of_host():
    with socket.socket(socket.AF_UNIX) as link:
        link.connect("\0" + ABSTRACT)
        return "connected"


@probe
def network_abstract_sockets_seen():
    return ",".join(line.split("@")[1].strip() for line in lines_of("/proc/net/unix") if " @" in line) or None


FAMILIES = {
    "inet": 2,
    "ax25": 3,
    "ipx": 4,
    "inet6": 10,
    "key": 15,
    "netlink": 16,
    "packet": 17,
    "rds": 21,
    "ppp": 24,
    "can": 29,
    "tipc": 30,
    "bluetooth": 31,
    "rxrpc": 33,
    "alg": 38,
    "nfc": 39,
    "vsock": 40,
    "kcm": 41,
    "smc": 43,
    "xdp": 44,
}
for family, number in FAMILIES.items():
    for kind in (
        3 if family in ("netlink", "packet", "can", "xdp", "key") else 5 if family in ("alg", "tipc", "rds") else 1,
    ):
        ALL[f"socket_{family}"] = lambda number=number, kind=kind: open_socket(number, kind)


def open_socket(family, kind, protocol=0):
    with socket.socket(family, kind, protocol) as link:
        return f"descriptor {link.fileno()}"


@probe
def socket_raw_icmp():
    return open_socket(socket.AF_INET, socket.SOCK_RAW, 1)


@probe
def socket_raw_tcp():
    return open_socket(socket.AF_INET, socket.SOCK_RAW, 6)


@probe
def socket_vsock_to_host():
    with socket.socket(40, socket.SOCK_STREAM) as link:
        link.settimeout(1)
        link.connect((2, 22))
        return "connected"


def int80_socket(family):
    """socketcall(SYS_SOCKET) with its arguments in the low 4 GiB, as 32-bit pointers need."""
    address = libc.mmap
    address.restype = ctypes.c_void_p
    at = address(None, ctypes.c_size_t(4096), 3, 0x22 | 0x40, -1, ctypes.c_long(0))
    ctypes.memmove(at, struct.pack("<III", family, 1, 0), 12)
    got = int80(102, 1, at)
    if "answered -" in got:
        raise OSError(got)
    return got


@probe
def socket_vsock_32bit():
    return int80_socket(40)


@probe
def socket_inet_32bit():
    return int80_socket(2)


@probe
def syscall_32bit():
    return int80(20)


@probe
def syscall_x32():
    return raw(0x40000000 + 39)


system_call("socketpair_tipc", "socketpair", 30, 5, 0, BUFFER)

# --- the engine and the machine's own sockets


@probe
def docker_socket():
    def speak(path):
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(1)
            link.connect(path)
            return path

    paths = [
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run/podman/podman.sock",
        "/var/run/docker/containerd/containerd.sock",
        "/host/var/run/docker.sock",
        "/run/systemd/private",
        "/run/dbus/system_bus_socket",
    ]
    return first(lambda path=path: speak(path) for path in paths)


@probe
def sockets_other_than_the_desks():
    found = [
        os.path.join(parent, name)
        for parent, folders, names in os.walk("/", onerror=None)
        if not parent.startswith(("/proc", "/sys", "/tmp"))
        for name in names
        if stat.S_ISSOCK(os.lstat(os.path.join(parent, name)).st_mode)
    ]
    return ",".join(path for path in found if not path.startswith("/run/desk/")) or None


# --- mounts, namespaces, devices

for name in ("mount_tmpfs", "mount_proc", "mount_sysfs", "mount_cgroup"):
    kind = name.partition("_")[2].encode()
    system_call(name, "mount", ctypes.c_char_p(b"none"), ctypes.c_char_p(b"/tmp"), ctypes.c_char_p(kind), 0, 0)
system_call("mount_bind", "mount", ctypes.c_char_p(b"/etc"), ctypes.c_char_p(b"/tmp"), 0, 4096, 0)
system_call("mount_remount_rw", "mount", 0, ctypes.c_char_p(b"/"), 0, 32, 0)
system_call("mount_umount_secrets", "umount2", ctypes.c_char_p(b"/run/secrets/desk"), 2)
system_call("mount_new_api", "fsopen", ctypes.c_char_p(b"tmpfs"), 0)
system_call("mount_open_tree", "open_tree", -100, ctypes.c_char_p(b"/"), 1)
system_call("mount_move", "move_mount", -1, ctypes.c_char_p(b""), -1, ctypes.c_char_p(b""), 4)
system_call("mount_fspick", "fspick", -100, ctypes.c_char_p(b"/"), 0)
system_call("mount_setattr", "mount_setattr", -100, ctypes.c_char_p(b"/"), 0, BUFFER, 32)
system_call("mount_pivot_root", "pivot_root", ctypes.c_char_p(b"/tmp"), ctypes.c_char_p(b"/tmp"))
system_call("mount_chroot", "chroot", ctypes.c_char_p(b"/tmp"))
for name, flag in {
    "user": 0x10000000,
    "mount": 0x20000,
    "net": 0x40000000,
    "pid": 0x20000000,
    "ipc": 0x8000000,
    "uts": 0x4000000,
    "cgroup": 0x2000000,
    "time": 0x80,
}.items():
    system_call(f"namespace_unshare_{name}", "unshare", flag)


def clone_into(flags):
    result = call("clone", flags | 17, 0, 0, 0, 0)
    if result == "answered 0":
        os._exit(0)
    return result


ALL["namespace_clone_user"] = lambda: clone_into(0x10000000)
ALL["namespace_clone_user_net"] = lambda: clone_into(0x10000000 | 0x40000000)


@probe
def namespace_clone3_user():
    arguments = ctypes.create_string_buffer(struct.pack("<QQQQQQQQ", 0x10000000, 0, 0, 0, 17, 0, 0, 0), 64)
    result = call("clone3", arguments, 64)
    if result == "answered 0":
        os._exit(0)
    return result


@probe
def namespace_setns():
    return call("setns", os.open("/proc/1/ns/net", os.O_RDONLY), 0)


@probe
def device_nodes():
    def make(kind, major, minor):
        path = f"/tmp/node-{major}-{minor}"
        os.mknod(path, kind | 0o600, os.makedev(major, minor))
        return path

    return first(
        [lambda: make(stat.S_IFBLK, 254, 0), lambda: make(stat.S_IFBLK, 8, 0), lambda: make(stat.S_IFCHR, 1, 1)]
    )


@probe
def device_open():
    names = (
        "sda",
        "vda",
        "nvme0n1",
        "mem",
        "kmsg",
        "kvm",
        "fuse",
        "net/tun",
        "vsock",
        "loop-control",
        "mapper/control",
    )
    return first(lambda name=name: f"{name} {os.open('/dev/' + name, os.O_RDWR | os.O_NONBLOCK)}" for name in names)


@probe
def device_console():
    return first(
        lambda name=name: f"{name} {os.open(name, os.O_RDWR | os.O_NOCTTY)}" for name in ("/dev/console", "/dev/tty")
    )


# --- more rights

system_call("rights_setuid_root", "setuid", 0)
system_call("rights_setgid_root", "setgid", 0)
system_call("rights_setresuid", "setresuid", 20002, 20002, 20002)
system_call("rights_setgroups", "setgroups", 1, ctypes.byref(ctypes.c_int(0)))


@probe
def rights_are_root():
    return "uid 0" if os.getuid() == 0 or os.geteuid() == 0 else None


@probe
def rights_capabilities():
    held = next(line.split()[1] for line in lines_of("/proc/self/status") if line.startswith("CapEff"))
    bounding = next(line.split()[1] for line in lines_of("/proc/self/status") if line.startswith("CapBnd"))
    return f"effective {held}, bounding {bounding}" if int(held, 16) or int(bounding, 16) else None


@probe
def rights_capset():
    header = ctypes.create_string_buffer(struct.pack("<Ii", 0x20080522, 0), 8)
    return call("capset", header, ctypes.create_string_buffer(struct.pack("<6I", *[0xFFFFFFFF] * 6), 24))


@probe
def rights_ambient_capability():
    return "raised" if libc.prctl(47, 2, 12, 0, 0) == 0 else None


@probe
def rights_no_new_privileges_is_off():
    return "off" if libc.prctl(39, 0, 0, 0, 0) != 1 else None


@probe
def rights_setuid_program():
    found = []
    for parent, _, names in os.walk("/"):
        if parent.startswith(("/proc", "/sys")):
            continue
        for name in names:
            mode = os.lstat(os.path.join(parent, name)).st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                found.append(os.path.join(parent, name))
    return ",".join(found) or None


@probe
def rights_groups():
    groups = set(os.getgroups()) - {os.getgid(), 20000}
    return str(groups) if groups or os.getgid() == 0 else None


# --- other processes

system_call("process_ptrace_traceme", "ptrace", 0, 0, 0, 0)
# PTRACE_SEIZE: an attach that does not stop its target, which is the one that waits for us.
ALL["process_ptrace_attach"] = lambda: call("ptrace", 0x4206, os.getppid(), 0, 0)


def vector():
    return ctypes.create_string_buffer(struct.pack("<QQ", ctypes.addressof(BUFFER), 16), 16)


ALL["process_vm_readv"] = lambda: call("process_vm_readv", os.getppid(), vector(), 1, vector(), 1, 0)
ALL["process_vm_writev"] = lambda: call("process_vm_writev", os.getppid(), vector(), 1, vector(), 1, 0)
ALL["process_kcmp"] = lambda: call("kcmp", os.getpid(), os.getppid(), 0, 0, 0)
ALL["process_pidfd_getfd"] = lambda: call("pidfd_getfd", 0, 0, 0)
ALL["process_madvise"] = lambda: call("process_madvise", -1, vector(), 1, 4, 0)


@probe
def process_signal_to_host():
    os.kill(HOST_PID, 0)
    return f"pid {HOST_PID} can be signalled"


@probe
def process_others_seen():
    own = {1, os.getpid(), os.getppid()}
    others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in own]
    return str(others[:10]) if others else None


@probe
def process_docker_log_pipe():
    """What leads to Docker's log costs the engine's CPU, not ours."""
    for number in (0, 1, 2):
        where = os.readlink(f"/proc/1/fd/{number}")
        if where.startswith(("pipe:", "/dev/pts")):
            os.close(os.open(f"/proc/1/fd/{number}", os.O_WRONLY | os.O_NONBLOCK))
            return f"descriptor {number} of PID 1 is {where}"
    return None


# --- kernel interfaces that a strategy has no use for

system_call("kernel_io_uring", "io_uring_setup", 8, BUFFER)
system_call("kernel_aio", "io_setup", 1, ctypes.create_string_buffer(8))
system_call(
    "kernel_add_key", "add_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"probe"), ctypes.c_char_p(b"x"), 1, -3
)
system_call("kernel_request_key", "request_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"probe"), 0, -3)
system_call("kernel_keyctl", "keyctl", 0, -3, 1)
system_call("kernel_bpf", "bpf", 0, BUFFER, 64)
system_call("kernel_perf_event", "perf_event_open", BUFFER, 0, -1, -1, 0)
system_call("kernel_userfaultfd", "userfaultfd", 1)
system_call("kernel_memfd", "memfd_create", ctypes.c_char_p(b"probe"), 0)
system_call("kernel_memfd_secret", "memfd_secret", 0)
system_call("kernel_modify_ldt", "modify_ldt", 0, BUFFER, 16)
system_call("kernel_personality", "personality", 0x0040000)
system_call("kernel_init_module", "init_module", BUFFER, 1, ctypes.c_char_p(b""))
system_call("kernel_finit_module", "finit_module", 0, ctypes.c_char_p(b""), 0)
system_call("kernel_delete_module", "delete_module", ctypes.c_char_p(b"nosuch"), 0)
system_call("kernel_kexec", "kexec_load", 0, 1 << 30, 0, 0)
system_call("kernel_kexec_file", "kexec_file_load", 0, 0, 0, 0, 0)
system_call("kernel_reboot", "reboot", 0, 0, 0, 0)
system_call("kernel_swapon", "swapon", ctypes.c_char_p(b"/tmp/nosuch"), 0)
system_call("kernel_acct", "acct", ctypes.c_char_p(b"/tmp/nosuch"))
system_call("kernel_settimeofday", "settimeofday", ctypes.create_string_buffer(struct.pack("<qq", -1, 0)), 0)
system_call("kernel_clock_settime", "clock_settime", 77, BUFFER)
system_call("kernel_adjtimex", "adjtimex", ctypes.create_string_buffer(struct.pack("<Iqq", 1, 0, 0), 208))
system_call("kernel_clock_adjtime", "clock_adjtime", 0, ctypes.create_string_buffer(struct.pack("<Iqq", 1, 0, 0), 208))
system_call("kernel_sethostname", "sethostname", ctypes.c_char_p(b"probe"), 5)
system_call("kernel_setdomainname", "setdomainname", ctypes.c_char_p(b"probe"), 5)
system_call("kernel_iopl", "iopl", 3)
system_call("kernel_ioperm", "ioperm", 0x80, 1, 1)
system_call("kernel_syslog", "syslog", 3, BUFFER, 100)
system_call("kernel_quotactl", "quotactl", 0x80000700, 0, 0, BUFFER)
system_call("kernel_fanotify", "fanotify_init", 0, 0)
system_call("kernel_inotify", "inotify_init1", 0)
system_call("kernel_name_to_handle", "name_to_handle_at", -100, ctypes.c_char_p(b"/"), BUFFER, BUFFER, 0)
system_call("kernel_open_by_handle", "open_by_handle_at", -100, BUFFER, 0)
system_call("kernel_mbind", "mbind", 0, 4096, 0, 0, 0, 0)
system_call("kernel_set_mempolicy", "set_mempolicy", 0, 0, 0)
system_call("kernel_move_pages", "move_pages", 0, 0, 0, 0, 0, 0)
system_call("kernel_realtime", "sched_setscheduler", 0, 1, ctypes.byref(ctypes.c_int(1)))
system_call("kernel_io_priority", "ioprio_set", 1, 0, 1 << 13)
system_call("kernel_sync_all_disks", "sync")
system_call("kernel_splice", "splice", -1, 0, -1, 0, 0, 0)
system_call("kernel_vmsplice", "vmsplice", -1, 0, 0, 0)
system_call("kernel_remap_file_pages", "remap_file_pages", 0, 0, 0, 0, 0)
system_call("kernel_pkey", "pkey_alloc", 0, 0)
system_call("ipc_shared_memory", "shmget", 0, 4096, 0o1600)
system_call("ipc_semaphores", "semget", 0, 1, 0o1600)
system_call("ipc_message_queue", "msgget", 0, 0o1600)
system_call("ipc_posix_queue", "mq_open", ctypes.c_char_p(b"probe"), 0o102, 0o600, 0)
system_call("ipc_lock_memory", "mlock", BUFFER, 65536)
system_call("ipc_lock_all_memory", "mlockall", 1)


@probe
def kernel_priority():
    os.setpriority(os.PRIO_PROCESS, 0, -5)
    return "nicer than the rest"


@probe
def kernel_addresses():
    lines = [line.split() for line in lines_of("/proc/kallsyms")[:100]]
    return lines[0][2] if any(int(line[0], 16) for line in lines) else None


# --- files


def writable_directories():
    for parent, folders, _ in os.walk("/"):
        if parent.startswith(("/proc", "/tmp")):
            folders.clear()
            continue
        path = os.path.join(parent, ".probe")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError:
            continue
        os.unlink(path)
        yield parent


@probe
def write_any_directory():
    return ",".join(itertools.islice(writable_directories(), 10)) or None


@probe
def write_any_file():
    """The first will do: outside of the sandbox, opening a file of the image copies it."""
    for parent, folders, names in os.walk("/"):
        if parent.startswith(("/proc", "/tmp", "/dev")):
            folders.clear()
            continue
        for name in names:
            path = os.path.join(parent, name)
            try:
                if path != OWN_LOG and stat.S_ISREG(os.lstat(path).st_mode):
                    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                    return path
            except OSError:
                continue
    return None


@probe
def write_proc_and_sys():
    paths = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/proc/self/oom_score_adj.",
        "/proc/sys/kernel/modprobe",
        "/proc/irq/0/smp_affinity",
        *glob.glob("/sys/fs/cgroup/*/release_agent"),
        *glob.glob("/sys/fs/cgroup/**/cgroup.procs", recursive=True),
        *glob.glob("/sys/fs/cgroup/**/memory.limit_in_bytes", recursive=True),
        "/sys/fs/cgroup/cgroup.procs",
    ]
    return first(lambda path=path: f"{path} {os.open(path, os.O_WRONLY)}" for path in paths)


@probe
def write_oom_score_lower():
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")
    return "lowered"


@probe
def write_strategy_folder():
    with open("/strategy/strategy.py", "a"):
        return "opened"


@probe
def write_chmod_strategy():
    os.chmod("/strategy/strategy.py", 0o777)
    return "changed"


@probe
def write_desk_directory():
    def rename():
        os.rename("/run/desk/desk.sock", "/run/desk/stolen.sock")
        return "renamed the desk's socket"

    def unlink():
        os.unlink("/run/desk/desk.sock")
        return "removed the desk's socket"

    def bind():
        with socket.socket(socket.AF_UNIX) as link:
            link.bind("/run/desk/other.sock")
            return "bound a socket beside the desk's"

    return first([bind, rename]) if os.path.exists("/run/desk/desk.sock") else "no desk to try it on"


@probe
def write_token():
    return first(
        [lambda: f"opened {os.open(OWN_TOKEN, os.O_WRONLY)}", lambda: os.chmod(OWN_TOKEN, 0o666) or "changed its mode"]
    )


@probe
def write_replace_log_by_link():
    os.rename(OWN_LOG, OWN_LOG + ".old")
    return "renamed"


@probe
def write_shared_memory():
    with open("/dev/shm/probe", "w") as file:
        file.write("x")
    return "written"


@probe
def execute_from_tmp():
    with open("/bin/true", "rb") as source, open("/tmp/true", "wb") as target:
        target.write(source.read())
    os.chmod("/tmp/true", 0o755)
    subprocess.run(["/tmp/true"], check=True)
    return "ran"


@probe
def execute_from_tmp_by_loader():
    loader = first(
        lambda path=path: path for path in glob.glob("/lib*/ld-linux-*.so.*") + glob.glob("/lib/*/ld-linux*")
    )
    with open("/bin/true", "rb") as source, open("/tmp/true2", "wb") as target:
        target.write(source.read())
    subprocess.run([loader, "/tmp/true2"], check=True, capture_output=True)
    return "ran"


@probe
def limit_file_size():
    with open("/tmp/large", "wb") as file:
        for _ in range(12):
            file.write(b"\0" * 2**20)
            file.flush()
    return "12 MiB in one file"


@probe
def limit_sparse_file():
    with open("/tmp/sparse", "wb") as file:
        file.truncate(2**40)
    return "1 TiB"


@probe
def limit_raise_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    return "raised"


@probe
def limit_raise_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "raised"


@probe
def limit_core_dump():
    return "allowed" if resource.getrlimit(resource.RLIMIT_CORE)[1] else None


# --- secrets of others


@probe
def secret_tokens_of_others():
    found = []
    for parent, folders, names in os.walk("/"):
        if parent.startswith(("/proc", "/sys", "/usr", "/opt")):
            folders.clear()
            continue
        for name in names:
            path = os.path.join(parent, name)
            if (
                name in ("token", "admin.token", "desk.db", "uids.json")
                and path != OWN_TOKEN
                and os.access(path, os.R_OK)
            ):
                found.append(path)
    return ",".join(found) or None


@probe
def secret_beside_own():
    return first(
        lambda path=path: str(names) if (names := os.listdir(path)) else None
        for path in ("/run/secrets/desk/..data", "/run/desk/../deployments", "/run/deployments", "/run/secrets/other")
    ) or (
        str(os.listdir("/run/secrets"))
        if os.path.isdir("/run/secrets") and os.listdir("/run/secrets") != ["desk"]
        else None
    )


@probe
def secret_token_in_environment():
    named = [name for name in os.environ if "TOKEN" in name and not name.endswith("_FILE")]
    return ",".join(named) or None


@probe
def secret_environment_of_others():
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                if (raw_environment := file.read()) and b"PROBE_PORT" not in raw_environment:
                    return path
        except OSError:
            continue
    return None


@probe
def secret_shadow():
    with open("/etc/shadow") as file:
        return f"{len(file.read())} bytes"


@probe
def secret_kernel_files():
    paths = [
        "/proc/kcore",
        "/proc/keys",
        "/proc/key-users",
        "/proc/timer_list",
        "/proc/sched_debug",
        "/proc/interrupts",
        "/sys/firmware/dmi/tables/DMI",
        "/sys/kernel/debug/tracing/trace",
        "/proc/kmsg",
        "/proc/acpi/wakeup",
        "/sys/kernel/security/lsm",
        "/proc/vmallocinfo",
        "/proc/slabinfo",
        "/sys/devices/virtual/powercap/dtpm",
    ]

    def read(path):
        with open(path, "rb") as file:
            return path if file.read(16) else None

    return first(lambda path=path: read(path) for path in paths)


@probe
def secret_message_queues():
    return f"{os.listdir('/dev/mqueue')}" if os.access("/dev/mqueue", os.W_OK) else None


@probe
def secret_host_paths_in_mountinfo():
    lines = [line.split() for line in lines_of("/proc/self/mountinfo")]
    paths = [
        line[3] for line in lines if line[4] in ("/strategy", "/run/secrets/desk", OWN_LOG, "/run/desk", "/etc/hosts")
    ]
    return ",".join(path for path in paths if len(path) > 1) or None
