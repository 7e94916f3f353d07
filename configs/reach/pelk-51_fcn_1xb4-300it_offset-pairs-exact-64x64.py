_base_ = './pelk-51_fcn_1xb4-300it_offset-pairs-64x64.py'

train_dataloader = dict(dataset=dict(exact=True))
val_dataloader = dict(dataset=dict(exact=True))
test_dataloader = dict(dataset=dict(exact=True))
