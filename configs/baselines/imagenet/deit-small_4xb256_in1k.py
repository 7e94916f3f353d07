# mmpretrain's own recipe.
_base_ = 'mmpretrain::deit/deit-small_4xb256_in1k.py'
