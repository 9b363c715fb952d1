import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, torch
from scvae_ext.heap import keep_freed_memory

class MallocInfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = MallocInfo

def mapped_on_their_own(n_bytes):
    before = mallinfo2().hblks
    tensor = torch.empty(n_bytes, dtype=torch.uint8)
    return mallinfo2().hblks - before

print(mapped_on_their_own(30_000_000))
keep_freed_memory()
print(mapped_on_their_own(32_000_000))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 33),
    reason="asks glibc 2.33 or later where a block lies",
)
def test_large_tensors_come_from_the_heap_and_no_longer_from_a_mapping_of_their_own():
    # A process of its own: whatever this one has freed before has already changed its allocator.
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.split() == ["1", "0"]
