"""Images of one static program each, without an engine."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

from tests.cluster.local.build import ARCHITECTURE

USER = 65534


def archive(program: Path, name: str) -> bytes:
    """An archive, in Docker's format, of an image that holds a program and nothing else.

    Args:
        program: The program, which becomes the entry point.
        name: The name of the image, with its tag.
    """
    layer = _tar({program.name: program.read_bytes()})
    config = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": str(USER)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {"config.json": config, "manifest.json": manifest}
    return _tar({"layer.tar": layer, **{file: json.dumps(content).encode() for file, content in files.items()}})


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
