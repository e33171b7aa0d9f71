"""Finds functions and calls in a library without symbols, for the offsets in replica.py.

    find.py LIBRARY text TEXT...          functions that refer to a constant that begins like this
    find.py LIBRARY uses ADDRESS...       functions that call a function, or refer to a variable or a
                                          table of virtual functions, at these addresses
    find.py LIBRARY show ADDRESS...       the code of the functions that contain these addresses
    find.py LIBRARY class NAME...         the virtual functions of a class: N2DB9DDLWorkerE is
                                          DB::DDLWorker
    find.py LIBRARY build-id              where the build id is, and which

It needs the packages numpy and capstone, and a library for Linux on x86-64. Addresses are
hexadecimal. A search through all code takes some seconds.
"""

import mmap
import re
import struct
import sys
from collections import namedtuple

import capstone
import numpy

Section = namedtuple("Section", "address offset size")
CHUNK = 1 << 22


class Library:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.sections = self.read_sections()
        self.starts, self.entries = self.read_functions()

    def read_sections(self):
        (table,) = struct.unpack_from("<Q", self.bytes, 0x28)
        length, count, names = struct.unpack_from("<HHH", self.bytes, 0x3A)
        headers = [
            struct.unpack_from("<IIQQQQ", self.bytes, table + length * n) for n in range(count)
        ]
        names = headers[names][4]
        return {
            self.text(names + name).decode(): Section(address, offset, size)
            for name, _, _, address, offset, size in headers
        }

    def read_functions(self):
        """Returns the start of each function, and where .eh_frame describes it."""
        table = self.sections[".eh_frame_hdr"]
        version_and_encodings = self.bytes[table.offset : table.offset + 4]
        assert version_and_encodings == b"\x01\x1b\x03\x3b", version_and_encodings
        (count,) = struct.unpack_from("<I", self.bytes, table.offset + 8)
        pairs = numpy.frombuffer(self.bytes, "<i4", 2 * count, table.offset + 12)
        pairs = pairs.astype(numpy.int64) + table.address
        return pairs[0::2], pairs[1::2]

    def offset(self, address):
        for section in self.sections.values():
            start = section.address
            if start and start <= address < start + section.size:
                return address - start + section.offset
        raise KeyError(hex(address))

    def is_code(self, address):
        code = self.sections[".text"]
        return code.address <= address < code.address + code.size

    def text(self, offset, limit=200):
        return self.bytes[offset : offset + limit].split(b"\0")[0]

    def function(self, address):
        """Returns the start and the size of the function that contains the address."""
        n = int(numpy.searchsorted(self.starts, address, side="right")) - 1
        (size,) = struct.unpack_from("<I", self.bytes, self.offset(int(self.entries[n])) + 12)
        return int(self.starts[n]), size

    def constants(self, beginning):
        """Yields the addresses of the constants that begin with these bytes."""
        section = self.sections[".rodata"]
        end = section.offset + section.size
        found = self.bytes.find(beginning, section.offset, end)
        while found >= 0:
            yield found - section.offset + section.address
            found = self.bytes.find(beginning, found + 1, end)

    def references(self, targets):
        """Yields (place, target) for each four bytes in the code that lead to a target.

        The distance is counted from behind the four bytes, as it is in calls, and in instructions
        that end with it. Some places are a coincidence.
        """
        code = self.sections[".text"]
        wanted = numpy.array(sorted(targets), dtype=numpy.int64).astype(numpy.int32)
        of = {int(low): target for low, target in zip(wanted, sorted(targets))}
        for start in range(0, code.size - 3, CHUNK):
            for shift in range(4):
                at = start + shift
                count = (min(start + CHUNK + 3, code.size) - at) // 4
                distances = numpy.frombuffer(self.bytes, "<i4", count, code.offset + at)
                places = numpy.arange(count, dtype=numpy.int32) * 4 + numpy.int32(at + 4)
                reached = distances + places + numpy.int32(code.address)
                for n in numpy.flatnonzero(numpy.isin(reached, wanted)):
                    yield code.address + at + 4 * int(n), of[int(reached[n])]

    def relocations(self):
        """Returns pairs of a place in the data and the address that the loader writes there."""
        section = self.sections[".rela.dyn"]
        table = numpy.frombuffer(self.bytes, "<u8", section.size // 8, section.offset)
        table = table.reshape(-1, 3)
        return table[:, 0], table[:, 2]


def show_text(library, texts):
    of = {at: text for text in texts for at in library.constants(text.encode())}
    for place, target in library.references(of):
        start, size = library.function(place)
        if place < start + size:
            print(f"{of[target]!r} at {target:#x}: {place:#x} in {start:#x} ({size:#x} bytes)")


def show_uses(library, addresses):
    operations = {0xE8: "called", 0xE9: "jumped to"}
    for place, target in library.references([int(it, 16) for it in addresses]):
        start, size = library.function(place)
        if place < start + size:
            operation = library.bytes[library.offset(place - 1)]
            use = operations.get(operation, "referred to")
            print(f"{target:#x}: {use} at {place - 1:#x} in {start:#x} ({size:#x} bytes)")


def show_code(library, addresses):
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    for address in addresses:
        start, size = library.function(int(address, 16))
        print(f"{start:#x} ({size:#x} bytes)")
        offset = library.offset(start)
        for it in decoder.disasm(library.bytes[offset : offset + size], start):
            print(f"{it.address:x}: {it.mnemonic} {it.op_str}{note(library, it)}")


def note(library, instruction):
    """Returns the address to which an instruction refers, and the text there."""
    found = re.search(r"\[rip ([+-] 0x[0-9a-f]+)\]", instruction.op_str)
    if not found:
        return ""
    address = instruction.address + instruction.size + int(found[1].replace(" ", ""), 16)
    try:
        text = library.text(library.offset(address), 60)
    except KeyError:
        text = b""
    is_text = len(text) > 3 and text.isascii() and text.decode().isprintable()
    return f"  ; {address:#x} {text.decode() if is_text else ''}"


def show_class(library, names):
    places, addresses = library.relocations()

    def places_of(address):
        return [int(place) for place in places[addresses == address]]

    value_at = dict(zip(places.tolist(), addresses.tolist()))
    for name in names:
        for constant in library.constants(name.encode() + b"\0"):
            # A type info has a pointer to its name behind one to its own class; a table of virtual
            # functions begins behind a pointer to the type info.
            tables = [table + 8 for named in places_of(constant) for table in places_of(named - 8)]
            for table in tables:
                functions = []
                while library.is_code(value_at.get(table + 8 * len(functions), 0)):
                    functions.append(value_at[table + 8 * len(functions)])
                if functions:
                    print(f"{name}: table at {table:#x}")
                for n, function in enumerate(functions):
                    print(f"    {8 * n:#x}: {function:#x}")


def show_build_id(library, _):
    note = library.sections[".note.gnu.build-id"]
    # Three sizes and the name "GNU" come first.
    start, end = note.offset + 16, note.offset + note.size
    print(f"{library.bytes[start:end].hex()} at {start:#x}")


COMMANDS = {
    "text": show_text,
    "uses": show_uses,
    "show": show_code,
    "class": show_class,
    "build-id": show_build_id,
}

if __name__ == "__main__":
    path, command, *arguments = sys.argv[1:]
    COMMANDS[command](Library(path), arguments)
