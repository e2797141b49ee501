# Step 1 of GDRQ: Scale-Clip reshapes weights and activations of the float model; nothing is rounded yet.
_base_ = './faster_rcnn_r18_fpn_digits.py'

custom_imports = dict(imports=['mmgdrq'], allow_failed_imports=False)
custom_hooks = [
    dict(
        type='mmgdrq.GDRQHook',
        weight=dict(bits=2),
        activation=dict(bits=4),
        stages=dict(reshape=0),
    )
]
load_from = 'work_dirs/faster_rcnn_r18_fpn_digits/epoch_4.pth'

max_epochs = 1
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=0.0005))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=1, eta_min=2e-4, end=1, convert_to_iter_based=True)]
default_hooks = dict(checkpoint=dict(interval=max_epochs))
