"""Train a model: python tools/train.py CONFIG"""

from mmgdrq.openmmlab.commands import train
from mmgdrq.openmmlab.commands.run import run_tool

if __name__ == '__main__':
    run_tool(train.main)
