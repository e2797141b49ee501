"""Coverage-guided fuzzing of what reads files of strangers: manifests, packed weights, config texts, checkpoint frames.

    python benchmarks/reliability/fuzz_atheris.py --seconds 300        # for each parser; makes .fuzz with atheris
    python benchmarks/reliability/fuzz_atheris.py --only manifest --seconds 60 --env /tmp/fuzz

Needs Python 3.11 and clang's runtime, which the wheel of atheris brings. Each parser has to give a result or a
CheckpointError; anything else is a finding, and its input is left in ``--env``. Writes fuzz.json beside this file.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARSERS = ('manifest', 'weights', 'config', 'frame')


def manifest(folder: Path):
    """A manifest with right checksums and any values."""
    import torch

    from mmgdrq.deploy import load_folded
    from mmgdrq.errors import CheckpointError
    from mmgdrq_runtime.manifest import json_sha256

    path = deployed(folder)
    whole = json.loads((path / 'manifest.json').read_text(encoding='utf-8'))

    def parse(data) -> None:
        changed = json.loads(json.dumps(whole))
        for _ in range(data.ConsumeIntInRange(1, 3)):
            change(changed, data)
        if data.ConsumeBool():
            for part in ('layers', 'graphs'):
                changed[f'{part}_sha256'] = json_sha256(changed.get(part))
        (path / 'manifest.json').write_text(json.dumps(changed), encoding='utf-8')
        try:
            loaded = load_folded(quantized(), path)
        except CheckpointError:
            return
        assert torch.isfinite(loaded(torch.ones(1, 3, 5, 5))).all()

    return parse


def weights(folder: Path):
    """A file of tensors with any bytes, and its right checksum."""
    from mmgdrq.deploy import load_folded
    from mmgdrq.errors import CheckpointError
    from mmgdrq_runtime.manifest import file_sha256

    path = deployed(folder)
    whole = (path / 'weights.safetensors').read_bytes()
    text = json.loads((path / 'manifest.json').read_text(encoding='utf-8'))

    def parse(data) -> None:
        start = data.ConsumeIntInRange(0, len(whole))
        content = whole[:start] + data.ConsumeBytes(40) + whole[start + data.ConsumeIntInRange(0, 40) :]
        (path / 'weights.safetensors').write_bytes(content)
        (path / 'manifest.json').write_text(
            json.dumps({**text, 'sha256': file_sha256(path / 'weights.safetensors')}), encoding='utf-8'
        )
        try:
            load_folded(quantized(), path)
        except CheckpointError:
            return

    return parse


def config(folder: Path):
    """The text of a config."""
    from mmgdrq.errors import CheckpointError
    from mmgdrq.openmmlab.deployed.deployed_config import parse_config

    pieces = [
        'a',
        '=',
        'dict(',
        ')',
        '[',
        ']',
        '{',
        '}',
        ',',
        ':',
        '1',
        "'x'",
        '**',
        '*',
        '\n',
        '(',
        'None',
        '-',
        'f""',
    ]

    def parse(data) -> None:
        if data.ConsumeBool():
            text = ' '.join(data.PickValueInList(pieces) for _ in range(data.ConsumeIntInRange(1, 30)))
        else:
            text = data.ConsumeUnicodeNoSurrogates(200)
        try:
            assert isinstance(parse_config(text, 'config.py'), dict)
        except CheckpointError:
            return

    return parse


def frame(folder: Path):
    """What ``--resume`` looks at before torch reads a checkpoint."""
    from mmgdrq.openmmlab.commands.checkpoints import damage_of

    file = folder / 'x.pth'

    def parse(data) -> None:
        file.write_bytes(data.PickValueInList([b'', b'PK', b'PK\x03\x04', b'\x80']) + data.ConsumeBytes(200))
        assert isinstance(damage_of(str(file)), str)

    return parse


def quantized():
    """The network whose deployed model is altered."""
    from torch import nn

    import mmgdrq

    return mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), weight=dict(bits=2))


def deployed(folder: Path) -> Path:
    """A deployed model."""
    import torch

    import mmgdrq
    from mmgdrq.deploy import save_folded

    net = quantized().train()
    net(torch.rand(2, 3, 5, 5))
    return save_folded(mmgdrq.fold(net), folder / 'model')


def change(tree, data) -> None:
    """Put a drawn value at a drawn place of a JSON tree, or remove what is there."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = keys[data.ConsumeIntInRange(0, len(keys) - 1)]
        if not isinstance(tree[key], (dict, list)) or not tree[key] or data.ConsumeIntInRange(0, 3) == 0:
            break
        tree = tree[key]
    if data.ConsumeIntInRange(0, 9) == 0:
        del tree[key]
        return
    numbers = [0, 1, -1, 2, 8, 9, 33, 10**9, -(10**9), 2**63, 10**40]
    tree[key] = data.PickValueInList(
        [
            None,
            True,
            data.PickValueInList(numbers),
            data.ConsumeFloat(),
            data.ConsumeUnicodeNoSurrogates(6),
            [data.PickValueInList(numbers)] * data.ConsumeIntInRange(0, 4),
            {},
            'conv',
            'linear',
            '0',
            '1',
        ]
    )


def fuzz(name: str, seconds: int) -> None:
    """Run one parser under atheris, in this process."""
    import atheris

    with atheris.instrument_imports(include=['mmgdrq']):
        parse = globals()[name](Path(tempfile.mkdtemp()))
    atheris.Setup(
        [sys.argv[0], f'-max_total_time={seconds}', '-rss_limit_mb=8000', '-max_len=400', '-timeout=60'],
        lambda content: parse(atheris.FuzzedDataProvider(content)),
    )
    atheris.Fuzz()


def environment_of(folder: Path) -> str:
    """Python of an environment with atheris; everything else comes from the environment that runs this."""
    if not (folder / 'bin/python').exists():
        subprocess.run([sys.executable, '-m', 'venv', str(folder)], check=True)
    own = str(folder / 'bin/python')
    subprocess.run([own, '-m', 'pip', 'install', '-q', 'atheris'], check=True)
    return own


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', choices=PARSERS, default=PARSERS)
    parser.add_argument('--seconds', type=int, default=300, help='for each parser')
    parser.add_argument('--env', type=Path, default=ROOT / '.fuzz', help='environment to make or to use')
    parser.add_argument('--inside', choices=PARSERS, help=argparse.SUPPRESS)
    parser.add_argument('--out', type=Path, default=HERE / 'fuzz.json')
    args = parser.parse_args()
    if args.inside:
        fuzz(args.inside, args.seconds)
        return 0
    python = environment_of(args.env)
    paths = os.pathsep.join([str(ROOT), sysconfig.get_paths()['purelib']])
    results = json.loads(args.out.read_text(encoding='utf-8')) if args.out.exists() else {}
    for name in args.only:
        command = [python, __file__, '--inside', name, '--seconds', str(args.seconds)]
        environment = {**os.environ, 'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1'}
        done = subprocess.run(command, cwd=args.env, env=environment, capture_output=True, text=True, check=False)
        found = re.search(r'Done (\d+) runs', done.stderr)
        coverage = re.findall(r'cov: (\d+)', done.stderr)
        results[name] = dict(
            executions=int(found[1]) if found else 0,
            branches=int(coverage[-1]) if coverage else 0,
            seconds=args.seconds,
            finding='' if found else (done.stderr + done.stdout)[-2000:],
            date=datetime.date.today().isoformat(),
        )
        print(name, json.dumps(results[name]), flush=True)
        args.out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    return int(any(results[name]['finding'] for name in args.only))


if __name__ == '__main__':
    sys.exit(main())
