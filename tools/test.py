"""Evaluate a checkpoint, or a directory that tools/deploy.py wrote: python tools/test.py CONFIG CHECKPOINT"""

from mmgdrq.openmmlab.commands import test
from mmgdrq.openmmlab.commands.run import run_tool

if __name__ == '__main__':
    run_tool(test.main)
