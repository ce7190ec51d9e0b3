"""The field's own tools on metadata that is in memory, and what a test often does with a pool's metadata."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from support.dump import in_old_words
from userdm.storage import MemoryStorage, Storage
from userdm.thin.metadata import PoolMetadata
from userdm.tools.dump import dump

MIB = 1 << 20


def content(storage: Storage) -> bytes:
    data = bytearray(storage.size)
    storage.read(0, memoryview(data))
    return bytes(data)


def load(path: Path) -> MemoryStorage:
    data = path.read_bytes()
    storage = MemoryStorage(len(data))
    storage.write(0, data)
    return storage


def run_tool(tool: str, *args: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool} (package thin-provisioning-tools)")
    return subprocess.run([tool, *args], capture_output=True, text=True)


def on_file(tool: str, storage: Storage, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a tool on what the storage holds."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content(storage))
        file.flush()
        return run_tool(tool, *args, file.name)


def thin_check(storage: Storage, *options: str) -> None:
    """Fails with what thin_check says."""
    done = on_file("thin_check", storage, *options)
    assert done.returncode == 0, done.stdout + done.stderr


def thin_dump(storage: Storage) -> str:
    done = on_file("thin_dump", storage)
    assert done.returncode == 0, done.stdout + done.stderr
    return in_old_words(done.stdout)


def dumped(pool: PoolMetadata) -> str:
    out = io.StringIO()
    dump(pool, out)
    return out.getvalue()


def commit(pool: PoolMetadata) -> None:
    """Seal, write, finish, and let what was freed be used again."""
    sealed = pool.seal()
    if sealed is not None:
        sealed.write(pool.storage, lambda: None)
        pool.release_data(pool.finish(sealed, True))


def new_pool(*, metadata: int = 2 * MIB, data_blocks: int = 1000, storage: Storage | None = None) -> PoolMetadata:
    """A pool in memory, just formatted; ``metadata`` in bytes."""
    pool = PoolMetadata.open(storage or MemoryStorage(metadata), 128)
    pool.resize_data(data_blocks)
    commit(pool)
    return pool


def write(pool: PoolMetadata, dev: int, vblock: int, length: int = 1) -> None:
    """Map new blocks, as many runs as it takes."""
    thin = pool.open_thin(dev)
    while length:
        pblock, count = pool.reserve_data(length)
        try:
            thin.insert(vblock, pblock, count)
        except OSError:
            if pool.failed is None:
                pool.unreserve_data(pblock, count)
            raise
        vblock, length = vblock + count, length - count
