"""Time and peak memory of a training step: float, mmgdrq, and other libraries.

    python benchmarks/training_step.py --model resnet50 --batch 8 --size 224 --out results/resnet50
    python benchmarks/training_step.py --quick                       # seconds; shows that it runs
    python benchmarks/training_step.py --render docs/performance.md results/*.json

Every candidate has a process of its own. Steps are interleaved: every round runs one step of each candidate, one
after the other, so that a slow moment of the machine meets all of them; the ratio to float is taken within a round.
Memory is the peak of two training steps: on a CPU that of the resident set over what it was after the imports, with
``MALLOC_MMAP_THRESHOLD_`` set so that glibc returns what is freed; on CUDA ``max_memory_allocated``. It covers weights,
gradients, momentum and activations. ``--clock process`` takes the processor time of a candidate in place of the time on
the wall: on one thread both are the same on a machine that does nothing else, and it stays so on one that does.
"""

import argparse
import datetime
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles

import torch

from candidates import CANDIDATES, CLASSIFIERS, DETECTORS, MAIN, QUICK, make_model  # isort: skip
from step_report import CLOCKS, plot, render, table  # isort: skip
from mmgdrq.kernels import cpu as native
from mmgdrq.training.scale_clip import ScaleClip


class Trainer:
    """One candidate: its model, optimizer and batch."""

    def __init__(self, candidate: str, args) -> None:
        self.args = args
        model = make_model(args.model).to(args.device)
        if args.channels_last:
            model = model.to(memory_format=torch.channels_last)
        torch.manual_seed(1)
        self.batch = model.batch(args.batch, args.size, args.device)
        self.model = CANDIDATES[candidate](model, self.batch).to(args.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.001, momentum=0.9)
        if candidate.startswith('mmgdrq'):
            ScaleClip(self.model).attach(self.optimizer)

    def train(self) -> float:
        """Seconds of one training step."""
        self.model.train()
        start = self._now()
        self.optimizer.zero_grad()
        with self._autocast():
            loss = self.model.loss(*self.batch)
        loss.backward()
        self.optimizer.step()
        return self._now() - start

    @torch.no_grad()
    def evaluate(self) -> float:
        """Seconds of one evaluation step."""
        if self.model.training:
            self.model.eval()
            self.model.predict(*self.batch)  # not timed: a change of mode starts afresh
        start = self._now()
        with self._autocast():
            self.model.predict(*self.batch)
        return self._now() - start

    def _autocast(self):
        return torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.amp)

    def _now(self) -> float:
        if self.args.device == 'cuda':
            torch.cuda.synchronize()
        return time.process_time() if self.args.clock == 'process' else time.perf_counter()


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4, method='inclusive') if len(values) > 1 else (values[0],) * 3
    return dict(median=median(values), low=low, high=high)


def resident() -> int:
    """Bytes of the resident set now."""
    return int(re.search(r'VmRSS:\s+(\d+)', Path('/proc/self/status').read_text(encoding='utf-8'))[1]) * 1024


def work(name: str, args) -> None:
    """A candidate's process: obeys 'train', 'evaluate' and 'memory' lines, and answers each with a number."""
    if name.startswith(('torch.ao', 'brevitas')):
        __import__('brevitas' if name.startswith('brevitas') else 'torch.ao.quantization.quantize_fx')
    _load_libraries()
    before = resident()
    trainer = Trainer(name, args)
    print('ready', flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command != 'memory':
            print(getattr(trainer, command)(), flush=True)
        elif args.device == 'cuda':
            print(torch.cuda.max_memory_allocated(), flush=True)
        else:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, flush=True)


def _load_libraries() -> None:
    """What the first step of any training loads is not the candidate's memory."""
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(288, 2)
    net = torch.nn.Sequential(*layers)
    loss = net(torch.randn(2, 3, 8, 8)).sum()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    loss.backward()
    optimizer.step()


class Worker:
    """The process of one candidate."""

    def __init__(self, name: str, argv: list[str], **environment: str) -> None:
        command = [sys.executable, '-W', 'ignore', __file__, *argv, '--worker', name]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, env={**os.environ, **environment}, **pipes)
        self.name = name
        self._answer()

    def ask(self, command: str) -> float:
        """Send a line, wait for the number."""
        self.process.stdin.write(command + '\n')
        self.process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> str:
        while line := self.process.stdout.readline():
            if re.match(r'ready|[\d.e+-]+$', line):
                return line
        raise SystemExit(f'{self.name}: its process has ended, see above')


def _rounds(kind: str, workers: list[Worker], args, seconds: float) -> dict[str, list[float]]:
    """Times of every worker; after ``seconds`` the rounds end, but not before there are two."""
    times: dict[str, list[float]] = {worker.name: [] for worker in workers}
    end = time.monotonic() + seconds
    for number in range(args.warmup + args.rounds):
        if number >= args.warmup + 2 and time.monotonic() > end:
            break
        for worker in workers[:: -1 if number % 2 else 1]:
            taken = worker.ask(kind)
            if number >= args.warmup:
                times[worker.name].append(taken)
    return times


def measure(names: list[str], args, argv: list[str]) -> dict[str, dict]:
    """Times in seconds, ratios to float, and peak bytes."""
    results = {} if args.memory_only else measure_times(names, args, argv)
    return {name: dict(results.get(name, {}), memory=measure_memory(name, argv)) for name in names}


def measure_times(names: list[str], args, argv: list[str]) -> dict[str, dict]:
    """Times in seconds, and ratios to float."""
    workers = [Worker(name, argv) for name in names]
    results: dict[str, dict] = {name: {} for name in names}
    for kind, share in (('train', 0.7), ('evaluate', 0.3)):
        times = _rounds(kind, workers, args, args.minutes * 60 * share)
        for worker in workers:
            mine, base = times[worker.name], times[names[0]]
            ratios = [one / other for one, other in zip(mine, base)]
            found = dict(seconds=summary(mine), ratio=summary(ratios), rounds=len(ratios))
            results[worker.name][kind] = found
    for worker in workers:
        worker.close()
    return results


def measure_memory(name: str, argv: list[str]) -> float:
    """Peak bytes of two training steps, with an allocator that returns freed memory at once."""
    worker = Worker(name, argv, MALLOC_MMAP_THRESHOLD_='500000')
    for _ in range(2):
        worker.ask('train')
    peak = worker.ask('memory')
    worker.close()
    return peak


def machine(args) -> dict[str, str]:
    """Where and with what this was measured."""
    info = Path('/proc/cpuinfo')
    found = re.search(r'model name\s*: (.+)', info.read_text(encoding='utf-8')) if info.exists() else None
    cpu = found[1] if found else platform.processor()
    gpu = torch.cuda.get_device_name() if args.device == 'cuda' else 'no GPU'
    return dict(
        machine=f'{torch.get_num_threads()} CPU cores ({cpu}), {gpu}',
        versions=f'Python {platform.python_version()}, torch {torch.__version__}',
        kernels='compiled' if native.built() else 'not built',
        date=datetime.date.today().isoformat(),
    )


def run(args, argv: list[str]) -> dict:
    """Measure all candidates."""
    names = list(args.candidates or (QUICK if args.quick else MAIN))
    if args.model in DETECTORS:
        names = [name for name in names if not name.startswith(('torch.ao', 'brevitas'))]
    if names[0] != 'float':
        names.insert(0, 'float')
    results = measure(names, args, argv)
    settings = {
        key: getattr(args, key) for key in ('model', 'batch', 'size', 'device', 'amp', 'channels_last', 'clock')
    }
    return dict(settings=settings, **machine(args), results=results)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='resnet50', choices=[*CLASSIFIERS, *DETECTORS])
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--minutes', type=float, default=60, help='end the rounds, train and evaluate, after that')
    parser.add_argument('--memory-only', action='store_true', help='no times')
    parser.add_argument('--warmup', type=int, default=2)
    parser.add_argument(
        '--clock', default='wall', choices=list(CLOCKS), help='process: for one thread on a busy machine'
    )
    parser.add_argument('--candidates', nargs='+', choices=list(CANDIDATES), metavar='NAME')
    parser.add_argument('--list', action='store_true', help='list the candidates')
    parser.add_argument('--out', type=Path, help='write OUT.json and OUT.png')
    parser.add_argument('--quick', action='store_true', help='ResNet-18 on tiny images')
    parser.add_argument('--render', nargs='+', type=Path, metavar=('PAGE', 'JSON'), help='write tables into a page')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.model, args.batch, args.size, args.rounds, args.warmup = 'resnet18', 2, 32, 2, 1
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.list:
        print('\n'.join(CANDIDATES))
    elif args.render:
        render(args.render[0], args.render[1:])
    elif args.worker:
        work(args.worker, args)
    else:
        report = run(args, argv)
        print(table(report))
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.with_suffix('.json').write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
            plot(report, args.out.with_suffix('.png'))


if __name__ == '__main__':
    main(sys.argv[1:])
