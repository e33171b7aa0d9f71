"""Prepares ClickHouse's engine, libchdb.so, to be a replica of a cluster.

    replica.py LIBRARY      exits with 0 if the library is the build that can be prepared, and with 1
                            and one line if it is another

The library contains all of ClickHouse, and starts it as clickhouse-local does. What only a server
(programs/server/Server.cpp) does at its start is missing, and without it every replicated table is
read-only. prepare() adds it in the memory of its own process, before the engine starts; the file
stays as it is. Addresses are offsets into one build, so any other build is refused.

Replaced before the start:

    Context::getInterserverIOAddress     returns INTERSERVER_HOST and the HTTP port
    Context::getInterserverScheme        returns "http"
    Context::getInterserverCredentials   returns empty credentials, where there would be a null
    InterserverIOHTTPHandler             requires no credentials
    ServerUUID                           follows from the data directory: a server that was killed
                                         is recognised by the Keeper when it is back

Called back during the start, in the engine's thread:

    UsersConfig     a storage of users in memory is added, so that CREATE USER works; and the thread
                    pools of Replicated databases, FETCH PARTITION and backups are initialised
    START LISTEN    on INTERSERVER_HOST, requests of other replicas are served instead of queries.
                    Before the first port listens, the worker of ON CLUSTER starts

offsets/README.md describes how the offsets are found.
"""

import ctypes
import hashlib
import struct
import sys

BUILD = "@chdb/lib-linux-x64-gnu 26.7.3-stable.1"
BUILD_ID = bytes.fromhex("d3d8f5517577ad52775b52318a193784b2fb5317")
BUILD_ID_OFFSET = 0x2B8

OFFSETS = {
    # The entry point, from which the address of the library follows.
    "query_stable_v2": 0xF20EF00,
    # Variables.
    "global_context": 0x21C1B568,
    "server_uuid": 0x228A3A48,
    # Functions that are replaced.
    "Context::getInterserverIOAddress": 0x1417C9C0,
    "Context::getInterserverScheme": 0x1417CAC0,
    "Context::getInterserverCredentials": 0x1417C940,
    # A conditional jump that is made unconditional: to where no credentials are required.
    "jump if there are no credentials": 0x183D52B2,
    # Calls that are redirected: of createHandlerFactory in SYSTEM START LISTEN, and of
    # MultipleAccessStorage::addStorage in AccessControl::addUsersConfigStorage.
    "call of createHandlerFactory": 0xF117FF6,
    "call of addStorage": 0x12D39B0E,
    # Functions that are called.
    "operator new": 0xEEEBE00,
    "createHandlerFactory": 0x18395CC0,
    "MultipleAccessStorage::addStorage": 0x12DCF880,
    "AccessControl::getChangesNotifier": 0x12D3A580,
    "MemoryAccessStorage::MemoryAccessStorage": 0x12DCCA80,
    "StaticThreadPool::initialize": 0xF1CD280,
    "getDatabaseReplicatedCreateTablesThreadPool": 0xF1CE5C0,
    "getFetchPartitionThreadPool": 0xF1CDB40,
    "getBackupsIOThreadPool": 0xF1CD980,
    "DatabaseCatalog::instance": 0x1426B0C0,
    "DDLWorker::DDLWorker": 0x14243400,
    "DDLWorker::startup": 0x14245300,
}
# Members, from the beginning of their object.
CONTEXT_SHARED_DDL_WORKER = 0xD80
DATABASE_CATALOG_REPLICATED_DDL_ENABLED = 0x910
# More than the objects need, for those that are made here.
MEMORY_ACCESS_STORAGE_SIZE = 0x400
DDL_WORKER_SIZE = 0x1000
# The length of Context::getInterserverIOAddress, which makes room for other code.
ROOM = 0xF4

POOLS = (
    "getDatabaseReplicatedCreateTablesThreadPool",
    "getFetchPartitionThreadPool",
    "getBackupsIOThreadPool",
)
POOL_THREADS, POOL_FREE_THREADS, POOL_QUEUE = 4, 0, 10000

POINTER = ctypes.c_void_p
SIZE = ctypes.c_size_t

# What the engine keeps pointers to.
kept = []


def check(library):
    """Exits with one line if the library is not the build that the offsets are of."""
    with open(library, "rb") as file:
        file.seek(BUILD_ID_OFFSET)
        found = file.read(len(BUILD_ID))
    if found != BUILD_ID:
        raise SystemExit(f"only {BUILD} can be a replica, and {library} is another build")


def prepare(library, interserver_host, arguments):
    """Prepares the library to be started with these arguments, which must name path and port."""
    check(library)
    options = dict(argument.split("=", 1) for argument in arguments)
    engine = Engine(library)
    engine.set_server_uuid(options["--path"])
    engine.set_interserver_address(interserver_host, int(options["--http_port"]))


class LongString(ctypes.Structure):
    """A std::string of libc++ whose characters are elsewhere, and which does not own them."""

    _fields_ = [("data", ctypes.c_char_p), ("size", ctypes.c_uint64), ("capacity", ctypes.c_uint64)]

    def __init__(self, text):
        super().__init__(text, len(text), len(text) + 1 | 1 << 63)


SHORT_STRING_LENGTH = 22


def short_string(text):
    """Returns the bytes of a std::string of libc++ that has its characters in itself."""
    assert len(text) <= SHORT_STRING_LENGTH
    return text.ljust(23, b"\0") + bytes([len(text)])


def string_at(address):
    """Returns the characters of a std::string of libc++."""
    short_size = ctypes.string_at(address + 23, 1)[0]
    if short_size <= SHORT_STRING_LENGTH:
        return ctypes.string_at(address, short_size)
    string = LongString.from_address(address)
    return ctypes.string_at(pointer_at(address), string.size)


def pointer_at(address):
    return POINTER.from_address(address).value


def lasting_memory(content):
    """Returns the address of a copy that stays for as long as the process lives."""
    memory = ctypes.create_string_buffer(content, len(content))
    kept.append(memory)
    return ctypes.addressof(memory)


def callback(result, *arguments):
    """Makes of a function the address by which machine code calls it."""

    def decorate(function):
        called = ctypes.CFUNCTYPE(result, *arguments)(function)
        kept.append(called)
        return ctypes.cast(called, POINTER).value

    return decorate


# Machine code of x86-64. A function returns in rax, and an object in the memory to which rdi points.
RETURN = b"\xc3"
RETURN_OBJECT = b"\x48\x89\xf8" + RETURN  # mov rax, rdi
CLEAR_RDX = b"\x31\xd2"
JUMP_TO_RAX = b"\xff\xe0"
CALL_RAX = b"\xff\xd0"
NO_OPERATION = b"\x90"
TRAP = b"\xcc"
JUMP, CALL = b"\xe9", b"\xe8"


def load_rax(value):
    return b"\x48\xb8" + struct.pack("<Q", value)


def store_rax(offset):  # mov [rdi + offset], rax
    return b"\x48\x89\x47" + bytes([offset])


def store_word(offset, value):  # mov word [rdi + offset], value
    return b"\x66\xc7\x47" + bytes([offset]) + struct.pack("<H", value)


def store_string(text):
    words = struct.unpack("<3Q", short_string(text))
    return b"".join(load_rax(word) + store_rax(8 * n) for n, word in enumerate(words))


def go(operation, at, to):
    """Returns a jump or a call that is at this address and leads to that one."""
    return operation + struct.pack("<i", to - (at + 5))


class Engine:
    """The library in the memory of this process."""

    def __init__(self, library):
        self.library = ctypes.CDLL(library)
        entry = ctypes.cast(self.library.query_stable_v2, POINTER).value
        self.base = entry - OFFSETS["query_stable_v2"]
        self.libc = ctypes.CDLL(None, use_errno=True)

    def address(self, name):
        return self.base + OFFSETS[name]

    def function(self, name, result, *arguments):
        return ctypes.CFUNCTYPE(result, *arguments)(self.address(name))

    def overwrite(self, name, code):
        """Writes code where the memory is not writable. The page becomes this process's own."""
        start = self.address(name)
        page = start & ~0xFFF
        size = start + len(code) - page
        read_execute, read_write_execute = 5, 7
        self.protect(page, size, read_write_execute)
        ctypes.memmove(start, code, len(code))
        self.protect(page, size, read_execute)

    def protect(self, page, size, protection):
        if self.libc.mprotect(POINTER(page), SIZE(size), protection):
            raise OSError(ctypes.get_errno(), "mprotect")

    def set_server_uuid(self, path):
        uuid = hashlib.md5(path.encode(), usedforsecurity=False).digest()
        ctypes.memmove(self.address("server_uuid"), uuid, len(uuid))

    def set_interserver_address(self, host, port):
        host = host.encode()
        self.overwrite(
            "Context::getInterserverScheme", store_string(b"http") + RETURN_OBJECT
        )
        # A shared pointer, in rax and rdx, to an object whose strings are empty: zeros.
        credentials = lasting_memory(bytes(256))
        self.overwrite(
            "Context::getInterserverCredentials", load_rax(credentials) + CLEAR_RDX + RETURN
        )
        # The offset of the jump stays behind the shorter instruction.
        self.overwrite("jump if there are no credentials", NO_OPERATION + JUMP)

        # Redirected calls must lead to code that is within 2 GiB: there is room for it behind the
        # shorter body of this function.
        name = "Context::getInterserverIOAddress"
        room = self.address(name)
        code = store_string(host) + store_word(24, port) + RETURN_OBJECT
        code += TRAP * (-len(code) % 16)
        listen = room + len(code)
        code += self.choose_factory(listen, host)
        code += TRAP * (-len(code) % 16)
        add_storage = room + len(code)
        code += load_rax(self.add_user_storage()) + JUMP_TO_RAX
        assert len(code) <= ROOM
        self.overwrite(name, code)
        for name, target in [
            ("call of createHandlerFactory", listen),
            ("call of addStorage", add_storage),
        ]:
            self.overwrite(name, go(CALL, self.address(name), target))

    def choose_factory(self, at, host):
        """Returns code, for this address, that is called instead of createHandlerFactory.

        Its fourth argument, in rcx, is the name of what serves requests. r15 points to the host.
        """
        push_arguments = b"\x57\x56\x52\x51\x41\x50"  # rdi, rsi, rdx, rcx, r8
        pop_arguments = b"\x41\x58\x59\x5a\x5e\x5f"
        pass_host = b"\x4c\x89\xff"  # mov rdi, r15
        replace_name = b"\x48\x85\xc0\x48\x0f\x45\xc8"  # test rax, rax; cmovne rcx, rax
        code = push_arguments + pass_host + load_rax(self.before_listening(host)) + CALL_RAX
        code += pop_arguments + replace_name
        return code + go(JUMP, at + len(code), self.address("createHandlerFactory"))

    def before_listening(self, interserver_host):
        factory = LongString(b"InterserverIOHTTPHandler-factory")
        kept.append(factory)

        @callback(POINTER, POINTER)
        def before_listening(host):
            """Returns the name of the factory for this host, or null for the usual one."""
            if string_at(host) == interserver_host:
                return ctypes.addressof(factory)
            self.start_ddl_worker()
            return None

        return before_listening

    def start_ddl_worker(self):
        """Starts what carries out statements ON CLUSTER, unless it runs."""
        context = pointer_at(self.address("global_context"))
        slot = pointer_at(context) + CONTEXT_SHARED_DDL_WORKER
        if pointer_at(slot):
            return
        strings = [
            LongString(text)
            for text in (
                b"/clickhouse/task_queue/ddl",
                b"/clickhouse/task_queue/replicas",
                b"",
                b"default",
                b"DDLWorker",
            )
        ]
        queue, replicas, prefix, keeper, logger = map(ctypes.byref, strings)
        # A shared pointer is two arguments, and without a counter it owns nothing.
        shared_context = (context, None)
        threads, configuration, metrics = 1, None, (None, None)
        worker = self.allocate(DDL_WORKER_SIZE)
        construct = self.function(
            "DDLWorker::DDLWorker", None, POINTER, ctypes.c_int, *[POINTER] * 10
        )
        construct(
            worker, threads, queue, replicas, *shared_context, configuration, prefix, keeper,
            logger, *metrics,
        )
        POINTER.from_address(slot).value = worker
        self.function("DDLWorker::startup", None, POINTER)(worker)
        catalog = self.function("DatabaseCatalog::instance", POINTER)()
        enabled = catalog + DATABASE_CATALOG_REPLICATED_DDL_ENABLED
        ctypes.c_bool.from_address(enabled).value = True

    def add_user_storage(self):
        @callback(None, POINTER, POINTER)
        def add_user_storage(control, file_storage):
            """Is called instead of AccessControl's addStorage, with the storage of users.xml."""
            self.initialize_pools()
            add = self.function("MultipleAccessStorage::addStorage", None, POINTER, POINTER)
            notifier = self.function("AccessControl::getChangesNotifier", POINTER, POINTER)
            construct = self.function(
                "MemoryAccessStorage::MemoryAccessStorage",
                None,
                *[POINTER] * 3,
                ctypes.c_int,
            )
            add(control, file_storage)
            storage = self.allocate(MEMORY_ACCESS_STORAGE_SIZE)
            allow_backup = 1
            construct(storage, ctypes.byref(LongString(b"memory")), notifier(control), allow_backup)
            shared_storage = struct.pack("<QQ", storage, 0)
            add(control, lasting_memory(shared_storage))

        return add_user_storage

    def initialize_pools(self):
        initialize = self.function("StaticThreadPool::initialize", None, POINTER, SIZE, SIZE, SIZE)
        for name in POOLS:
            # Nothing happens to a pool that is initialised already.
            initialize(
                self.function(name, POINTER)(), POOL_THREADS, POOL_FREE_THREADS, POOL_QUEUE
            )

    def allocate(self, size):
        return self.function("operator new", POINTER, SIZE)(size)


if __name__ == "__main__":
    check(*sys.argv[1:])
