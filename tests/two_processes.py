"""What test_parallel.py starts under torchrun: several commands after each other, since a start takes longer than all of them.

python -m torch.distributed.run ... two_processes.py COMMANDS.json FOLDER, with COMMANDS [[program, [argument, ...]], ...]. Each process leaves
FOLDER/RANK.json: [stdout, stderr, exit code] of each command.
"""

import io
import json
import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent))

from lab import bench, command_line, parallel

MAIN = {"dllm.py": command_line.main, "lab.bench": bench.main}


def outcome(program: str, arguments: list[str]) -> tuple[str, str, int]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            MAIN[program](arguments)
        except SystemExit as exit:
            code = exit.code
        except Exception:  # of one command: the others have their say, too
            traceback.print_exc()
            code = 1
    return out.getvalue(), err.getvalue(), code


if __name__ == "__main__":
    parallel.time.sleep = lambda seconds: None  # for torchrun, which here goes on
    destroy = dist.destroy_process_group  # a second group would find the addresses of the first: here one serves all
    dist.init_process_group, dist.destroy_process_group = cache(dist.init_process_group), lambda: None
    commands, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    outcomes = [outcome(*command) for command in commands]
    destroy()
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(outcomes))
