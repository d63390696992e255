"""The outcome of a run as results.json, collected from its stages. Imports no torch."""

from typing import Any

from pipeline.rundir import STEPS, RunDir
from stages.durable import write_json

ALARMS = "alarms/"
"""Before the name of a rule in the headline of PPO: how often its alarm began."""
_ACCURACY = ("accuracy", "accuracy_low", "accuracy_high", "n", "length_baseline")


def write_results(run: RunDir) -> dict[str, Any]:
    """Collect results.json from the manifests of the stages and write it."""
    manifests = {name: run.stage(name).manifest for name in STEPS}
    finished = {name: m for name, m in manifests.items() if m.get("status") == "finished"}
    results: dict[str, Any] = {
        "models": finished.get("evaluation", {}).get("details", {}).get("models", {}),
        "stages": {n: {"seconds": m["seconds"], "peak_bytes": m["peak_bytes"]} for n, m in finished.items()},
    }
    if "reward_model" in finished:
        headline = finished["reward_model"]["headline"]
        results["reward_model"] = {name: headline[name] for name in _ACCURACY if name in headline}
    if "ppo" in finished:
        counted = {name: n for name, n in finished["ppo"]["headline"].items() if name.startswith(ALARMS)}
        results["alarms"] = {name.removeprefix(ALARMS): int(n) for name, n in counted.items()}
    write_json(run.results_file, results)
    return results
