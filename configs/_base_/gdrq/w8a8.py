# 8-bit weights, 8-bit inputs, quantized from the first iteration.
custom_imports = dict(imports=['mmgdrq'], allow_failed_imports=False)
custom_hooks = [
    dict(
        type='mmgdrq.GDRQHook',
        weight=dict(bits=8),
        activation=dict(bits=8),
    )
]
