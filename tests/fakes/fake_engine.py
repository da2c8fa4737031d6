"""A throw-away engine: a directory that looks like a Python environment with vLLM in it."""

import shutil
import sys
from pathlib import Path

FAKE_VLLM = Path(__file__).with_name("fake_vllm.py")
# execve(2): Linux takes 255 characters of a script's first line.
SHEBANG_LIMIT = 255


def make_fake_engine(directory: Path, version: str = "0.32.0+cpu") -> Path:
    """Make an engine whose ``bin/vllm`` is the fake; a version without ``+cpu`` behaves as on CUDA.

    Returns:
        Its ``bin/python``.
    """
    directory = directory.absolute()
    python = directory / "bin" / "python"
    shebang = f"#!{python}"
    if len(shebang) > SHEBANG_LIMIT:
        raise ValueError(f"{directory} is too long for a script's first line")
    packages = directory / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    metadata = packages / f"vllm-{version}.dist-info" / "METADATA"
    for parent in (python.parent, metadata.parent):
        parent.mkdir(parents=True)
    base = Path(getattr(sys, "_base_executable", sys.executable))
    python.symlink_to(base)
    (python.parent / "python3").symlink_to("python")
    (directory / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    # A copy, so that the engine is whole by itself and Python caches its bytecode.
    shutil.copyfile(FAKE_VLLM, packages / "fake_vllm.py")
    vllm = python.parent / "vllm"
    vllm.write_text(f"{shebang}\nimport sys\nfrom fake_vllm import main\nsys.exit(main({version!r}))\n")
    vllm.chmod(0o755)
    return python
