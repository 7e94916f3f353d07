# The centre of the other tables.
_base_ = '../../imagenet/pelk-tiny_32xb128-120e_in1k.py'
