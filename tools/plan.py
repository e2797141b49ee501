"""Print which layers a training would quantize, and why not the others: python tools/plan.py CONFIG"""

from mmgdrq.openmmlab.commands import plan
from mmgdrq.openmmlab.commands.run import run_tool

if __name__ == '__main__':
    run_tool(plan.main)
