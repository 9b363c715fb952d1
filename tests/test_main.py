import subprocess
import sys

import scvae_ext


def test_the_module_is_the_command_line():
    command = [sys.executable, "-m", "scvae_ext"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"scvae-ext {scvae_ext.__version__}\n")
    done = subprocess.run([*command, "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("scvae-ext: error: ")
