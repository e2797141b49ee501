"""Report how well distributions suit their quantizers: python tools/analyze.py CONFIG CHECKPOINT --out DIR"""

from mmgdrq.openmmlab.commands import analyze
from mmgdrq.openmmlab.commands.run import run_tool

if __name__ == '__main__':
    run_tool(analyze.main)
