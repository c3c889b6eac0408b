# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "torch", "torchvision", "torchcodec", "transformers>=5,<6", "datasets>=4", "accelerate",
#   "evaluate",
#   "tensorflow==2.18.1; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "tensorflow-metal==1.2.0; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "tensorflow>=2.21,<2.22; sys_platform == 'linux'", "keras>=3.12",
#   "mlx; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "mlx[cpu]; sys_platform == 'linux'", "mlx-lm",
#   "llama-cpp-python", "gguf", "huggingface_hub", "pillow", "scikit-learn", "xgboost>=3.2",
#   "onnxruntime>=1.30", "onnx", "onnxscript",
#   "filelock", "nvidia-ml-py>=12.535", "pandas", "psutil", "py-cpuinfo", "scipy", "tqdm",
# ]
# ///
"""Can the numbers of this collection be trusted on this machine?

Every check measures something twice in one run, once the collection's way and once the plain way,
and holds the ratio against a target: what the measuring costs, whether the clock tells the truth,
how far a short run's estimate is from a long run's, whether the data keeps up with the device, and
how steady the machine is. The last part measures the ceilings that TFLOP/s can be read against.

    python selfcheck.py --quick
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import psutil
from tqdm import tqdm

import harness.machine
from harness import PROJECT_VERSION
from harness.arguments import CommandLine, machine_name, path_name
from harness.disturbance import Watch
from harness.environment import settle_environment
from harness.process import UserError, run_in_fresh_process
from harness.startup import one_line_errors, require_writable
from harness.terminal import Progress
from selfchecks.ceilings import MATRIX_PRODUCT
from selfchecks.checks import CHECKS
from selfchecks.findings import Finding


def parse_arguments() -> argparse.Namespace:
    parser = CommandLine(__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter runs, wider uncertainty")
    parser.add_argument("--results_dir", type=path_name, default=Path("results"))
    parser.add_argument("--machine_name", type=machine_name)
    return parser.parse_args()


def identify() -> dict:
    """The machine and its device, as every experiment names them, and the heat of that device."""
    from harness.frameworks import pytorch

    device = pytorch.choose_device("auto")
    heat = Watch(device.type, device.index or 0).thermal_state()
    return pytorch.facts(device) | {"thermal_state": heat}


def run_checks(quick: bool) -> tuple[list[Finding], list[str]]:
    """The findings of all checks, each in a fresh process; and those that could not be made."""
    findings, broken = [], []
    for check in tqdm(CHECKS, desc="checks", unit=" checks", disable=None):
        progress = Progress(check.__name__.replace("_", " "))
        outcome = run_in_fresh_process(check, quick, progress=progress)
        if outcome["status"] == "ok":
            findings += outcome["value"]
        else:
            broken.append(f"{check.__name__}: {outcome['error']}")
    return findings, broken


def peak_tflops(findings: list[Finding]) -> dict[str, float | None]:
    """TFLOP/s of the best matrix product in each precision, for reading rows as a share of it."""
    return {
        finding.check.removeprefix(MATRIX_PRODUCT): finding.value
        for finding in findings
        if finding.check.startswith(MATRIX_PRODUCT)
    }


def show(findings: list[Finding], broken: list[str]) -> None:
    import pandas as pd

    def short(value):
        return f"{value:,.3g}" if value is not None else ""

    table = pd.DataFrame(findings)
    for column in ("value", "low", "high"):
        table[column] = [short(getattr(finding, column)) for finding in findings]
    print(table.to_string(index=False))
    print("low, high: 95 % interval")
    if any(finding.verdict == "unsure" for finding in findings):
        print("unsure: missed by less than the noise; run it again when the machine is quieter")
    for line in broken:
        print(f"could not be checked: {line}")


def main() -> None:
    options = parse_arguments()
    with one_line_errors([], options.results_dir):
        environment = settle_environment()
        require_writable(options.results_dir)
        outcome = run_in_fresh_process(identify, progress=Progress("the machine"))
        if outcome["status"] != "ok":
            raise UserError(outcome["error"])
        facts = outcome["value"]
        machine = options.machine_name or facts["machine"]
        load, busiest = harness.machine.other_load()
        print(f"machine {machine}, device {facts['device']}, {facts['framework']}")
        print(f"other programs: {load:.0f} % of the processor, most of all {busiest}")
        power, heat = (facts[name] or "unknown" for name in ("power", "thermal_state"))
        print(f"power: {power}; heat: {heat}", flush=True)
        findings, broken = run_checks(options.quick)
        report = {
            **facts,
            "machine": machine,
            "project_version": PROJECT_VERSION,
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": options.quick,
            "other_load_percent": load,
            "memory_available_gb": psutil.virtual_memory().available / 1e9,
            "environment": environment,
            "peak_tflops_measured": peak_tflops(findings),
            "findings": [finding._asdict() for finding in findings],
            "not_checked": broken,
        }
        path = options.results_dir / "selfcheck" / f"{machine}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
        show(findings, broken)
        print(f"\nReport: {path}")
    sys.exit(bool(broken) or any(finding.verdict == "MISSED" for finding in findings))


if __name__ == "__main__":
    main()
