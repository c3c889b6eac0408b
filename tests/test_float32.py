"""`fp32` is true float32: every framework's own start forbids TF32, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
START = """
import argparse, json
from harness.frameworks import {module} as framework
framework.start(argparse.Namespace(device="cpu", precision="fp32", compile=False, seed=1))
print(json.dumps({setting}))
"""
SETTINGS = {
    "pytorch": "[framework.torch._C._get_fp32_precision_getter('cuda', part)"
    " for part in ('matmul', 'conv', 'rnn')]",
    "tensorflow": "framework.tf.config.experimental.tensor_float_32_execution_enabled()",
    "mlx": "__import__('os').environ['MLX_ENABLE_TF32']",
    "keras_jax": "framework.jax.config.jax_default_matmul_precision",
}
FORBIDDEN = {
    "pytorch": ["ieee"] * 3,
    "tensorflow": False,
    "mlx": "0",
    "keras_jax": "highest",
}


@pytest.mark.parametrize("module", SETTINGS)
def test_tf32_is_forbidden_at_the_start_whatever_the_environment_allows(module):
    code = START.format(module=module, setting=SETTINGS[module])
    allowed = {"PYTHONPATH": str(ROOT), "MLX_ENABLE_TF32": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | allowed, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == FORBIDDEN[module]
