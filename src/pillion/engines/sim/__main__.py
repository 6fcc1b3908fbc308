"""`python -m pillion.engines.sim`: a simulated engine as a process, with keys from the environment."""

from __future__ import annotations

import argparse
import os
import sys

import msgspec
import uvloop

from pillion.engines.sim.server import serve
from pillion.engines.sim.settings import SimConfig, SimOptions


def main() -> None:
    parser = argparse.ArgumentParser(prog="pillion.engines.sim", description="An engine without a model.")
    parser.add_argument("--data-dir", help="shown in the list of processes; nothing is read there")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--model", help="the base's directory, with its config.json; without it no shapes are checked"
    )
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--slots", type=int, default=17, help="adapters it has room for")
    parser.add_argument("--max-lora-rank", type=int, default=64)
    parser.add_argument("--options", default="{}", help="JSON: how fast it is and what goes wrong")
    given = parser.parse_args()
    try:
        options = msgspec.json.decode(given.options, type=SimOptions)
    except msgspec.MsgspecError as error:
        parser.error(f"--options: {error}")
    config = SimConfig(
        base=given.served_model_name,
        model_dir=given.model,
        infer_key=os.environ.get("PILLION_INFER_KEY", ""),
        agent_key=os.environ.get("PILLION_AGENT_KEY", ""),
        slots=options.slots or given.slots,
        max_rank=given.max_lora_rank,
        options=options,
    )
    try:
        uvloop.run(serve(config, given.host, given.port))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
