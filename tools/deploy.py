"""Fold a quantized checkpoint into integers, verify it, write it: python tools/deploy.py CONFIG CHECKPOINT --out DIR"""

from mmgdrq.openmmlab.commands import deploy
from mmgdrq.openmmlab.commands.run import run_tool

if __name__ == '__main__':
    run_tool(deploy.main)
