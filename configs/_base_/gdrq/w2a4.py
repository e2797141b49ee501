# 2-bit weights, 4-bit inputs: first Scale-Clip without rounding (one epoch), then rounding.
custom_imports = dict(imports=['mmgdrq'], allow_failed_imports=False)
custom_hooks = [
    dict(
        type='mmgdrq.GDRQHook',
        weight=dict(bits=2),
        activation=dict(bits=4),
        stages=dict(reshape=0, quantize=1),
    )
]
