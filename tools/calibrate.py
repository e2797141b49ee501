"""Quantize a float checkpoint without training: python tools/calibrate.py CONFIG CHECKPOINT --out quantized.pth"""

from mmgdrq.openmmlab.commands import calibrate
from mmgdrq.openmmlab.commands.run import run_tool

if __name__ == '__main__':
    run_tool(calibrate.main)
