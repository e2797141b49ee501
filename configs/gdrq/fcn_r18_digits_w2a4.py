# 2-bit weights and 4-bit activations, fine-tuned from the float model.
_base_ = './fcn_r18_digits.py'

custom_imports = dict(imports=['mmgdrq'], allow_failed_imports=False)
custom_hooks = [dict(type='mmgdrq.GDRQHook', weight=dict(bits=2), activation=dict(bits=4))]
load_from = 'work_dirs/fcn_r18_digits/epoch_12.pth'

max_epochs = 2
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=0.004))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min=1e-6,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(checkpoint=dict(interval=max_epochs))
